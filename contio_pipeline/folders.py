"""Folders that are their owner's alone.

What lives here: making them. What never does: anything that is put into them.
"""

from __future__ import annotations

from pathlib import Path


def private_folder(path: Path) -> Path:
    """Make the folder, and each of its parents that is missing, for its owner alone under any umask.

    One that is there already keeps its mode.
    """
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
    return path
