"""The command line: typer commands, progress, tables, exit codes.

What lives here: words for people. What never does: logic; every command calls the library and renders what it returns.
Imports are inside the commands: `--help` and `query` should not wait for what `sync` needs.

Exit codes: 0 complete; 1 something is not complete or failed; 2 usage or configuration; 130 stopped.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import signal
import sys
import threading
import time
from typing import Annotated

import typer

from contio_pipeline import __version__
from contio_pipeline.cli import (  # noqa: F401 - they register their commands
    accounts,
    doctor,
    keeping,
    reading,
    syncing,
    trying,
)
from contio_pipeline.cli.common import Log, Verbose, app, log, tell
from contio_pipeline.errors import ContioError

_GARBAGE = 10_000
_STOPPED = 130  # as a shell reports Ctrl-C
_AGAIN = 4.0
"""Seconds: far longer than ending takes, and short enough to end within 15."""

_ONE_STOP = 1.0
"""Seconds in which all that asks to stop is one."""


def main() -> None:
    """Run the command line; no traceback ever reaches a user."""
    gc.freeze()
    gc.set_threshold(_GARBAGE)  # rows hold no cycles, and looking for some takes a thirtieth of a sync
    os.umask(0o077)  # the warehouse's side files, too, are nobody else's; publish opens up what readers get
    for ends in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(ends, _stop)
    _wake_for_stops()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it is None when the caller closed it
            stream.reconfigure(errors="backslashreplace")
    code: int | str | None = 0
    try:
        app(prog_name="contio-pipeline", standalone_mode=True)
    except ContioError as error:
        tell(f"Error: {error}", level="ERROR")
        code = error.exit_code
    except SystemExit as ending:
        code = ending.code
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        tell(f"Error: {error}", level="ERROR")
        code = 1
    except Exception as error:  # noqa: BLE001 - the last line of defence
        stopped = _asked or "interrupted" in str(error).lower()  # DuckDB's word for Ctrl-C
        code = _STOPPED if stopped else _unexpected(error)
    if code == _STOPPED:
        print("Stopped; nothing is half-written. Run the command again to go on.", file=sys.stderr)
        sys.stdout.flush()
        os._exit(_STOPPED)  # a thread that looks up a name or connects would be waited for
    sys.exit(code)


def _unexpected(error: Exception) -> int:
    """Say that something happened that nobody foresaw; the places go to the log."""
    tell(
        f"Error: unexpected {type(error).__name__} ({error}). Nothing was half-written. Please report it with what "
        "`contio-pipeline --verbose …` says.",
        level="ERROR",
    )
    place = error.__traceback__
    while place:
        log.info("  at %s line %s", place.tb_frame.f_code.co_qualname, place.tb_lineno)
        place = place.tb_next
    return 1


_asked: list[float] = []
"""When each stop was raised, by `time.monotonic`."""


def _stop(_signal: int, _frame: object) -> None:
    """Stop, and again in a while: C code that calls Python, such as DuckDB's look for pandas, loses an exception at times.

    Not at once: what a wait does while it ends is not made for a second exception.
    """
    now = time.monotonic()
    if _asked and now < _asked[-1] + _ONE_STOP:
        return
    _asked.append(now)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN, _AGAIN)
    raise KeyboardInterrupt


def _wake_for_stops() -> None:
    """Let no stop wait for the main thread to wake up by itself.

    One that comes in the instant before the main thread begins to wait, or that another thread gets, is only noted: Python
    runs no handler before the wait is over, and that for a server may take hours. The note also goes into a pipe.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_ring, args=(reader,), name="stops", daemon=True).start()


def _ring(reader: int) -> None:
    """Interrupt what the main thread waits for, some time after each stop that came: it ended long ago, or hears it now."""
    while came := os.read(reader, 1):
        if came[0] != signal.SIGALRM and signal.getsignal(came[0]) is _stop:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN, _AGAIN)


def _show_version(value: bool) -> None:
    if value:
        print(f"contio-pipeline {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    log.handlers[:] = [Log()]
    if log.level == logging.NOTSET:
        log.setLevel(logging.WARNING)
