"""Content-addressed bytes on disk: `documents/ab/cd/<sha256>`.

What lives here: writing bytes so that a file of that name is always whole, and looking whether one still is. What never
does: HTTP, SQL, names that a server gave.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from contio_pipeline.folders import flush, private_folder

_READ_BYTES = 1 << 20
TOO_LARGE = "it is larger than"
"""How the reason begins why a document has no text that a larger limit would give it."""


class Incoming:
    """Bytes on their way to the store: written to a temporary file, named by their hash when `keep` is called."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        incoming = folder / "incoming"
        descriptor, name = tempfile.mkstemp(dir=private_folder(incoming))
        self._file = os.fdopen(descriptor, "wb")
        self._path = Path(name)
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes, /) -> None:
        """Take the next bytes."""
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes so far, hexadecimal."""
        return self._hash.hexdigest()

    def keep(self) -> str:
        """Make the bytes durable under their hash, and return it (hexadecimal SHA-256)."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        digest = self.digest
        target = path_of(self._folder, digest)
        private_folder(target.parent)
        self._path.replace(target)
        for folder in (target.parent, target.parent.parent, self._folder):
            flush(folder)
        return digest

    def drop(self) -> None:
        """Forget the bytes; does nothing once they were kept."""
        with suppress(OSError):  # a full disk fails once more, and then lets go
            self._file.close()
        with suppress(FileNotFoundError):
            self._path.unlink()


class DocumentStore:
    """The folder of one warehouse's documents; one process writes at a time (the warehouse's lock)."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir / "documents"

    def incoming(self) -> Incoming:
        """A place for the bytes of one download."""
        return Incoming(self.folder)

    def has(self, digest: str, size: int) -> bool:
        """Whether a file of that hash and size is there (its bytes are not read)."""
        try:
            return path_of(self.folder, digest).stat().st_size == size
        except FileNotFoundError:
            return False

    def intact(self, digest: str) -> bool:
        """Whether the file is there and its bytes still have that hash."""
        found = hashlib.sha256()
        try:
            with path_of(self.folder, digest).open("rb") as file:
                while data := file.read(_READ_BYTES):
                    found.update(data)
        except FileNotFoundError:
            return False
        return found.hexdigest() == digest

    def path(self, digest: str) -> Path:
        """Where the bytes of that hash are, if they are stored."""
        return path_of(self.folder, digest)

    def text(self, digest: str, most: int) -> tuple[str | None, str | None]:
        """The text that the bytes of that hash are, or why they are none.

        UTF-8 is expected, and UTF-16 where a byte order mark says so: which other encoding it may be nobody knows.

        Args:
            digest: of a document.
            most: bytes; larger ones are not read.
        """
        path = path_of(self.folder, digest)
        if path.stat().st_size > most:
            return None, f"{TOO_LARGE} {most >> 10:,} kB (CONTIO_DOCUMENT_TEXT_MAX_KB)"
        data = path.read_bytes()
        encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            return None, "it is no text in UTF-8 or UTF-16"
        return text, None

    def files(self) -> Iterator[Path]:
        """Every stored document, named by its hash."""
        return self.folder.glob("??/??/*")

    def remove(self, paths: Iterable[Path]) -> None:
        """Delete stored documents, durably; call it while holding the writer's lock."""
        folders = set()
        for path in paths:
            path.unlink()
            folders.add(path.parent)
        for folder in folders:
            flush(folder)

    def clear_incoming(self) -> None:
        """Remove what killed downloads left behind; call it while holding the writer's lock."""
        for path in (self.folder / "incoming").glob("*"):
            path.unlink()


def path_of(folder: Path, digest: str) -> Path:
    """Where the bytes of that hash are, below the documents folder."""
    return folder / digest[:2] / digest[2:4] / digest
