"""Folders that are their owner's alone, and what is in them made durable.

What lives here: making folders, flushing. What never does: anything that is put into them.
"""

from __future__ import annotations

import os
from pathlib import Path

from contio_pipeline.errors import StorageError


def private_folder(path: Path) -> Path:
    """Make the folder, and each of its parents that is missing, for its owner alone under any umask.

    One that is there already keeps its mode.

    Raises:
        StorageError: it cannot be made, or something else is in its place.
    """
    try:
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the folder {path} cannot be made ({error.strerror}): see what is in its place, the rights and the space there, "
            "or set CONTIO_DATA_DIR or CONTIO_STATE_DIR"
        ) from None
    return path


def flush(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
