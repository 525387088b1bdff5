"""Commands in processes of their own that begin at once: forked from one that has imported what they need.

Half a second of each command is Python's start and its imports. A process of each test worker does that once and forks for every
command: a real process, with its own environment, folder, files, signals and end, that runs `contio_pipeline.cli.main`.
What concerns the start itself, or what a command imports, starts `python -m contio_pipeline` (tests/test_cli.py).
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

NO_SETTINGS = {name: value for name, value in os.environ.items() if not name.startswith("CONTIO_")}

_READY = b"."
_HEAD = 8


def command(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input: str = "",  # noqa: A002 - as in subprocess.run
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run `contio-pipeline` with these arguments, as subprocess.run does; what Python itself reads is as it is here."""
    environment = dict(NO_SETTINGS if env is None else env)
    if sys.platform != "linux":  # where libraries may not be used in a fork
        return subprocess.run(
            [sys.executable, "-m", "contio_pipeline", *arguments],
            env=environment,
            cwd=cwd,
            input=input,
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
        )
    asked = json.dumps([list(arguments), environment, str(cwd or Path.cwd())]).encode()
    here, there = socket.socketpair()
    with (
        here,
        there,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        given.write(input.encode())
        given.seek(0)
        files = [given.fileno(), out.fileno(), err.fileno(), there.fileno()]
        socket.send_fds(_nursery(), [len(asked).to_bytes(_HEAD, "big")], files)
        _nursery().sendall(asked)
        there.close()
        here.settimeout(timeout)
        with here.makefile("rb") as told:
            pid = int(told.readline())
            try:
                code = int(told.readline())
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(arguments, timeout) from None
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(arguments, code, *said)


@cache
def _nursery() -> socket.socket:
    """The other end of the process that forks; it ends with this one."""
    here, there = socket.socketpair()
    with there:
        process = subprocess.Popen(
            [sys.executable, __file__, str(there.fileno())],
            pass_fds=[there.fileno()],
            env=NO_SETTINGS,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    atexit.register(process.wait)
    atexit.register(here.close)  # which ends it; the last one comes first
    assert here.recv(1) == _READY
    return here


def _serve(asking: socket.socket) -> Any:
    """Fork for each command that is asked for; returns, in the forked process, what to run."""
    asking.sendall(_READY)
    while True:
        head, files, _flags, _address = socket.recv_fds(asking, _HEAD, 4)
        if not head:
            os._exit(0)
        size, asked = int.from_bytes(head, "big"), b""
        while len(asked) < size:
            asked += asking.recv(size - len(asked))
        watcher = os.fork()
        if watcher:
            for file in files:
                os.close(file)
            os.waitpid(watcher, 0)
            continue
        if os.fork():  # so that nobody has to wait for the one that waits
            os._exit(0)
        asking.close()
        given, out, err, telling = files
        pid = os.fork()
        if pid:
            with socket.socket(fileno=telling) as told:
                told.sendall(f"{pid}\n".encode())
                _pid, status = os.waitpid(pid, 0)
                told.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)
        for number, file in enumerate((given, out, err)):
            os.dup2(file, number)
        for file in files:
            os.close(file)
        return json.loads(asked)


if __name__ == "__main__":
    import httpx  # noqa: F401 - what commands import, but DuckDB and Arrow: they start threads, which a fork has not
    import oauthlib.oauth2  # noqa: F401
    import rich.progress
    import rich.table  # noqa: F401

    import contio_pipeline.cli
    import contio_pipeline.client

    assert threading.active_count() == len(list(Path("/proc/self/task").iterdir())) == 1
    gc.collect()
    gc.freeze()  # a collection in a fork would copy all that was imported
    chosen, environment, folder = _serve(socket.socket(fileno=int(sys.argv[1])))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["contio-pipeline", *chosen]
    contio_pipeline.cli.main()
