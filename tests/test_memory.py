"""Memory: whatever the server sends, and however much, a sync in a process of its own stays under 400 MB."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import duckdb
import pytest

from contio_pipeline.auth import Tokens, TokenStore
from contio_pipeline.generations import current
from contio_pipeline.protocol import MAX_JSON_BYTES

MOST = 400
"""MB."""

TEXT = "the team agreed on a written offer by Friday and two risks were raised about staffing and delivery"
WORDS = TEXT.split()
LAUNCH = """
import json, os, sys
_, status, used = os.wait4(os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ), 0)
print("\\n" + json.dumps([os.waitstatus_to_exitcode(status), used.ru_maxrss / 1024]))
"""
"""Runs a command and says how it ended and the most memory it had; small itself, for a child begins as large as its parent."""


class Answer(NamedTuple):
    """A body in pieces, never whole in memory, and what is said about it."""

    size: int
    pieces: Iterator[bytes]
    headers: dict[str, str]


Ask = Callable[[str, int], Answer | bytes | dict[str, Any]]
"""From a path below the API's and an offset to the answer."""


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    megabytes: float
    output: str


@contextmanager
def serving(ask: Ask) -> Iterator[str]:
    """A server that makes its answers as they are sent; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send({"access_token": "a", "token_type": "Bearer", "expires_in": 86400, "scope": "profile"})

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            path = parts.path.removeprefix("/v1/partner/user/")
            [offset] = parse_qs(parts.query).get("offset", ["0"])
            self.send({"id": "me"} if path == "profile" else ask(path, int(offset)))

        def send(self, answer: Answer | bytes | dict[str, Any]) -> None:
            if isinstance(answer, dict):
                answer = json.dumps(answer).encode()
            if isinstance(answer, bytes):
                answer = Answer(len(answer), iter([answer]), {"Content-Type": "application/json"})
            self.send_response(200)
            for name, value in {**answer.headers, "Content-Length": str(answer.size)}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for piece in answer.pieces:
                    self.wfile.write(piece)
            except ConnectionError:  # the client has had enough
                self.close_connection = True

        def log_message(self, *_args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def page(rows: list[dict[str, Any]], total: int, offset: int = 0) -> dict[str, Any]:
    return {"items": rows, "total": total, "limit": 100, "offset": offset}


@cache
def text(seed: int) -> str:
    """Some 1,400 characters, of which few repeat."""
    return " ".join(WORDS[byte % len(WORDS)] for byte in hashlib.shake_128(str(seed).encode()).digest(260))


def meeting(number: int, title: str = "Weekly sync") -> dict[str, Any]:
    when = f"{2023 + number % 3}-{number // 3 % 12 + 1:02}-{number % 28 + 1:02}T09:00:00Z"
    return {
        "id": f"meeting-{number * 2654435761 % 2**32:08x}-{number}",
        "title": f"{title} {number}",
        "summary_notes": f"{number} {text(number % 997)}",
        "start_time": when,
        "end_time": when,
        "status": "completed",
        "updated_at": when,
    }


def run(url: str, folder: Path, *arguments: str) -> Outcome:
    """Run the command against the server, with one account."""
    (folder / "state").mkdir(mode=0o700, exist_ok=True)
    TokenStore(folder / "state").write("ana", Tokens("refresh"))
    environment = os.environ | {
        "CONTIO_API_URL": url,
        "CONTIO_TOKEN_URL": f"{url}/oauth2/token",
        "CONTIO_CLIENT_ID": "client",
        "CONTIO_CLIENT_SECRET": "secret",
        "CONTIO_DATA_DIR": str(folder / "data"),
        "CONTIO_STATE_DIR": str(folder / "state"),
        "CONTIO_RATE_LIMIT": "1000000",
        "CONTIO_RETRY_SECONDS": "0",
    }
    command = [sys.executable, "-c", LAUNCH, "-m", "contio_pipeline", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    output, _newline, last = done.stdout.rstrip().rpartition("\n")
    code, megabytes = json.loads(last)
    return Outcome(code, megabytes, output + done.stderr)


def test_a_hundred_thousand_rows(tmp_path: Path) -> None:
    total, title = 100_000, "Weekly sync"

    def ask(_path: str, offset: int) -> dict[str, Any]:
        return page([meeting(number, title) for number in range(offset, min(offset + 100, total))], total, offset)

    with serving(ask) as url:
        first = run(url, tmp_path, "sync", "--stream", "meetings")
        title = "Weekly talk"
        second = run(url, tmp_path, "sync", "--stream", "meetings")
    for outcome in (first, second):
        assert outcome.code == 0, outcome.output
        assert 50 < outcome.megabytes < MOST
    with duckdb.connect(current(tmp_path / "data").database, read_only=True) as connection:
        [counts] = connection.execute(
            "SELECT count(*), count(DISTINCT id), count(*) FILTER (title LIKE 'Weekly talk %') FROM raw.meetings"
        ).fetchall()
        assert counts == (total, total, total)
        assert connection.execute("SELECT count(*) FROM raw.meetings_history").fetchall() == [(2 * total,)]


def bomb(_path: str, offset: int) -> bytes | Answer:
    """A good first page, so that the others are asked for at the same time; they are 10 GB of blanks in 10 MB."""
    if not offset:
        return json.dumps(page([meeting(number) for number in range(100)], 400)).encode()
    packer = zlib.compressobj(9, wbits=31)
    block = b" " * 2**20
    start = packer.compress(block * 8) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(block * 8) + packer.flush(zlib.Z_FULL_FLUSH)
    count = 10 * 2**30 // len(block * 8) - 1
    return Answer(
        len(start) + count * len(again),
        (piece for part in (iter([start]), repeat(again, count)) for piece in part),
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    )


def empty_lists(_path: str, offset: int) -> bytes | Answer:
    """A good first page; the others are 8 MB of empty lists, which Python holds in twenty times as much."""
    if not offset:
        return json.dumps(page([meeting(number) for number in range(100)], 400)).encode()
    body = b'{"total":400,"limit":100,"offset":0,"items":[' + b"[]," * (MAX_JSON_BYTES // 3 - 40) + b"[]]}"
    packed = gzip.compress(body)
    assert 0.99 * MAX_JSON_BYTES < len(body) < MAX_JSON_BYTES
    return Answer(len(packed), iter([packed]), {"Content-Type": "application/json", "Content-Encoding": "gzip"})


@pytest.mark.parametrize("ask", [bomb, empty_lists])
def test_bombs_in_all_pages_at_once(ask: Ask, tmp_path: Path) -> None:
    with serving(ask) as url:
        outcome = run(url, tmp_path, "sync", "--stream", "meetings")
    assert outcome.code == 1, outcome.output
    assert 50 < outcome.megabytes < MOST


def test_large_documents(tmp_path: Path) -> None:
    block = hashlib.shake_128(b"contents").digest(2**20)
    sizes = {"film": 200, **{f"slides-{number}": 20 for number in range(8)}}

    def ask(path: str, _offset: int) -> dict[str, Any] | Answer:
        if path.endswith("/content"):
            count = sizes[path.split("/")[-2]]
            return Answer(count * 2**20, repeat(block, count), {"Content-Type": "application/octet-stream"})
        if path.endswith("/context"):
            rows = [
                {"id": name, "filename": f"{name}.pdf", "size": count * 2**20, "file_status": "complete"}
                for name, count in sizes.items()
            ]
            return page(rows, len(rows))
        return page([meeting(1)] if path == "meetings" else [], int(path == "meetings"))

    with serving(ask) as url:
        outcome = run(url, tmp_path, "sync")
    assert outcome.code == 0, outcome.output
    assert 50 < outcome.megabytes < MOST
    with duckdb.connect(current(tmp_path / "data").database, read_only=True) as connection:
        stored = dict(connection.execute("SELECT id, sha256 FROM raw.document_contents").fetchall())
    assert stored == {name: hashlib.sha256(block * count).hexdigest() for name, count in sizes.items()}
