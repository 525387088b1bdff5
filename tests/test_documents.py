"""Documents: a file of a hash's name always holds the bytes of that hash, whatever happened while it was written."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from contio_pipeline.documents import DocumentStore, path_of

BODY = b"What was said.\n" * 1000


@pytest.fixture
def store(tmp_path: Path) -> DocumentStore:
    (tmp_path / "data").mkdir()
    return DocumentStore(tmp_path / "data")


def put(store: DocumentStore, *chunks: bytes) -> str:
    incoming = store.incoming()
    for chunk in chunks:
        incoming.write(chunk)
    assert incoming.size == sum(map(len, chunks))
    return incoming.keep()


def files(store: DocumentStore) -> list[Path]:
    """All files of the store, those on their way too."""
    return sorted(path for path in store.folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("chunks", [[], [b""], [b"x"], [BODY], [b"a", b"", BODY, b"\x00\xff"]])
def test_bytes_are_kept_under_their_hash(chunks: list[bytes], store: DocumentStore) -> None:
    body = b"".join(chunks)
    digest = put(store, *chunks)
    assert digest == hashlib.sha256(body).hexdigest()
    assert path_of(store.folder, digest) == store.folder / digest[:2] / digest[2:4] / digest
    assert files(store) == [path_of(store.folder, digest)]
    assert files(store)[0].read_bytes() == body
    assert store.has(digest, len(body))
    assert store.intact(digest)


def test_the_store_is_a_folder_of_the_data_folder_made_when_it_is_needed(store: DocumentStore, tmp_path: Path) -> None:
    assert store.folder == tmp_path / "data" / "documents"
    assert not store.has("ab" * 32, 1)
    assert not store.intact("ab" * 32)
    store.clear_incoming()
    assert not store.folder.exists()
    assert store.intact(put(store, b"x"))


def test_nobody_else_can_read_what_is_stored_whatever_the_umask(store: DocumentStore) -> None:
    before = os.umask(0)
    try:
        put(store, BODY)
    finally:
        os.umask(before)
    everything = [store.folder, *store.folder.rglob("*")]
    assert len(everything) == 5
    assert [path for path in everything if path.stat().st_mode & 0o077] == []


def test_nothing_has_its_name_before_it_is_whole(store: DocumentStore) -> None:
    incoming = store.incoming()
    digest = hashlib.sha256(BODY).hexdigest()
    incoming.write(BODY)
    assert not store.has(digest, len(BODY))
    assert [path.parent for path in files(store)] == [store.folder / "incoming"]
    incoming.keep()
    assert store.has(digest, len(BODY))


def test_equal_bytes_are_stored_once(store: DocumentStore) -> None:
    first, second = store.incoming(), store.incoming()
    for incoming in (first, second):
        incoming.write(BODY)
    assert first.keep() == second.keep()
    assert len(files(store)) == 1
    assert files(store)[0].read_bytes() == BODY


def test_keeping_bytes_again_mends_a_damaged_file(store: DocumentStore) -> None:
    digest = put(store, BODY)
    path_of(store.folder, digest).write_bytes(b"damaged")
    assert put(store, BODY) == digest
    assert store.intact(digest)


def test_what_is_dropped_is_gone(store: DocumentStore) -> None:
    incoming = store.incoming()
    incoming.write(BODY)
    incoming.drop()
    assert files(store) == []
    incoming.drop()


def test_what_was_kept_cannot_be_dropped(store: DocumentStore) -> None:
    incoming = store.incoming()
    incoming.write(BODY)
    digest = incoming.keep()
    incoming.drop()
    assert store.intact(digest)


def test_a_file_of_another_size_is_not_there(store: DocumentStore) -> None:
    digest = put(store, BODY)
    assert store.has(digest, len(BODY))
    assert not store.has(digest, len(BODY) - 1)
    path_of(store.folder, digest).write_bytes(BODY[:-1])
    assert not store.has(digest, len(BODY))


@pytest.mark.parametrize("damage", [BODY[:-1], BODY + b"x", b"\x00" + BODY[1:], b""])
def test_a_file_with_other_bytes_is_not_intact(damage: bytes, store: DocumentStore) -> None:
    digest = put(store, BODY)
    assert store.intact(digest)
    path_of(store.folder, digest).write_bytes(damage)
    assert not store.intact(digest)


def test_a_file_larger_than_the_read_buffer_is_hashed_whole(store: DocumentStore) -> None:
    body = bytes(range(256)) * (3 << 12)
    digest = put(store, body)
    assert store.intact(digest)
    path_of(store.folder, digest).write_bytes(body[:-1] + b"\x00")
    assert not store.intact(digest)


def test_a_killed_download_leaves_nothing_that_could_be_taken_for_whole(store: DocumentStore) -> None:
    kept = put(store, b"kept")
    program = """
import sys
from pathlib import Path
from contio_pipeline.documents import DocumentStore
incoming = DocumentStore(Path(sys.argv[1])).incoming()
incoming.write(b"half" * 100_000)
print("written", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(store.folder.parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    left = [path for path in files(store) if path != path_of(store.folder, kept)]
    assert [path.parent for path in left] == [store.folder / "incoming"]
    store.clear_incoming()
    assert files(store) == [path_of(store.folder, kept)]
    assert store.intact(kept)


def test_a_full_disk_raises_and_what_was_written_can_be_dropped(store: DocumentStore) -> None:
    program = """
import resource, signal, sys
from pathlib import Path
from contio_pipeline.documents import DocumentStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # as a full disk: what is beyond cannot be written
incoming = DocumentStore(Path(sys.argv[1])).incoming()
try:
    for _ in range(5):
        incoming.write(b"x" * 3_000)
    incoming.keep()
except OSError as error:
    print("refused")
incoming.drop()
print("dropped")
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, str(store.folder.parent)], capture_output=True, text=True, check=False
    )
    assert (ran.stdout.split(), ran.stderr) == (["refused", "dropped"], "")
    assert files(store) == []
