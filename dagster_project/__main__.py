"""`python -m dagster_project`: Dagster's UI and daemon on the data folder, until Ctrl-C or SIGTERM.

What lives here: the environment that the two need, and that one never outlives the other; `--only` runs one of them, as a
service.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from contio_pipeline.errors import ConfigError
from contio_pipeline.settings import load_settings
from dagster_project.home import ROOT, dagster_home

_LOOK_SECONDS, _GRACE_SECONDS = 0.2, 12
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run both; returns the exit code: 0 after a signal, 1 when one of them ended by itself."""
    parser = argparse.ArgumentParser(prog="python -m dagster_project", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address of the UI; it has no login (default: %(default)s)")
    parser.add_argument("--port", default=3000, type=int, help="port of the UI (default: %(default)s)")
    parser.add_argument("--only", choices=["webserver", "daemon"], help="run one of the two, as a service of its own")
    arguments = parser.parse_args()
    os.umask(0o077)  # runs inherit it: what they write is nobody else's, but for what is published
    names = [arguments.only] if arguments.only else ["webserver", "daemon"]
    try:
        settings = load_settings()
        folder = dagster_home(settings.data_dir)
        locks = [_only_one(folder, name) for name in names]
        if "webserver" in names:
            _check_address(arguments.host, arguments.port)
    except ConfigError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    at = f" The UI: http://{arguments.host}:{arguments.port}" if "webserver" in names else ""
    print(f"Dagster keeps its runs in {folder}.{at} (Ctrl-C ends it)", flush=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell that starts us in the background has the first ignored
        signal.signal(number, lambda *_: stop.set())
    # Code servers come and go, and say so as a warning.
    workspace = ["--workspace", str(ROOT / "workspace.yaml"), "--code-server-log-level", "error"]
    logs = ["--log-format", "json" if settings.log_format == "json" else "colored"]
    commands = {
        "webserver": ["dagster-webserver", "--host", arguments.host, "--port", str(arguments.port), *workspace, *logs],
        "daemon": ["dagster-daemon", "run", *workspace, *logs],
    }
    _recover(folder, settings.data_dir, daemon="daemon" in names)
    running = {
        name: subprocess.Popen(
            [Path(sys.executable).with_name(commands[name][0]), *commands[name][1:]],
            start_new_session=True,
            pass_fds=[lock.fileno()],  # so that the lock is held for as long as the program is there
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - there are no threads yet
        )
        for name, lock in zip(names, locks, strict=True)
    }
    while not stop.wait(_LOOK_SECONDS) and all(process.poll() is None for process in running.values()):
        pass
    ended = [name for name, process in running.items() if process.poll() is not None]
    _end(list(running.values()))
    for name in ended:
        print(f"Error: the {name} ended by itself (exit code {running[name].returncode}); see above", file=sys.stderr)
    for lock in locks:
        lock.close()
    print("Stopped.", flush=True)
    return 1 if ended else 0


def _recover(folder: Path, data_dir: Path, *, daemon: bool) -> None:
    """Make Dagster's databases before two programs try to at once, and end the runs that died with the daemon before."""
    made = folder / ".tables-made"
    with (folder / ".tables.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if daemon or not made.exists():
            command = [sys.executable, "-m", "dagster_project.recover", str(data_dir)]
            subprocess.run(command, check=True, start_new_session=True)  # Ctrl-C comes after
            made.touch()


def _die_with_parent() -> None:
    """Let the kernel end this process when the one that started it is gone, however that ended; Linux alone can."""
    if prctl := getattr(ctypes.CDLL(None), "prctl", None):
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _only_one(folder: Path, name: str) -> IO[str]:
    """Hold the program's lock in Dagster's folder: two daemons would run each schedule twice.

    Raises:
        ConfigError: another process holds it.
    """
    lock = (folder / f".{name}.lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise ConfigError(
            f"Dagster's {name} already runs on {folder} (process {lock.read().strip() or 'unknown'}): use that one, or stop it "
            "first"
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _check_address(host: str, port: int) -> None:
    """Raise ConfigError when the UI could not listen there."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ConfigError(f"the UI cannot listen on {host} port {port} ({why}): choose another --port") from None


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End both and all that they started; a run that is at work keeps what it has committed."""
    for number, seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, 1)):
        for process in processes:
            _signal_group(process, number)
        until = time.monotonic() + seconds
        while any(_signal_group(process, 0) for process in processes) and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Signal a process and all that it started; returns whether any of them is still there."""
    process.poll()
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
