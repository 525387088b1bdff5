"""Folders and files that are their owner's alone, and on what kind of disk they lie.

What lives here: making them, flushing them, replacing a small file whole, asking the system where a folder is. What never does:
what is put into them.
"""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from contio_pipeline.errors import StorageError

MOUNTS = Path("/proc/self/mounts")
"""What is mounted where; other systems than Linux have no such file."""

_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d|smbfs|ncpfs|afs|9p|ceph|glusterfs|lustre|beegfs|gpfs|pvfs2|davfs2?|"
    r"fuse\.(sshfs|glusterfs|ceph\S*|rclone|s3fs|goofys|gcsfuse|juicefs|mountpoint-s3|davfs2?|smbnetfs|curlftpfs)"
)
"""Types whose locks do not reach other machines, or that lose them when the network does."""


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
            "or choose another (set CONTIO_DATA_DIR or CONTIO_STATE_DIR, where it is one of these)"
        ) from None
    return path


def flush(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_file(path: Path, text: str) -> None:
    """Replace a small file, readable by its owner alone: whole or not at all, and on disk when this returns."""
    private_folder(path.parent)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # made 0600 under any umask
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        flush(path.parent)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def network_file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The type of the network file system that the folder lies (or would lie) on; None where it is none, or nobody says."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
        place = path.resolve()
    except (OSError, RuntimeError):  # no such table; a link that leads to itself
        return None
    found: tuple[int, str] = (-1, "")
    for line in lines:
        _device, point, kind, *_ = [*line.split(), "", "", ""]
        at = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point))
        if place.is_relative_to(at) and len(at.parts) >= found[0]:  # of two on one point the later one hides the other
            found = (len(at.parts), kind)
    return found[1] if _NETWORK.fullmatch(found[1]) else None
