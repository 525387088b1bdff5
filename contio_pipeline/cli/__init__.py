"""The command line: typer commands, progress, tables, exit codes.

What lives here: words for people. What never does: logic; every command calls the library and renders what it returns.
Imports are inside the commands: `--help` and `query` should not wait for what `sync` needs.

Exit codes: 0 complete; 1 something is not complete or failed; 2 usage or configuration; 130 stopped.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
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

_STOPPED = 130  # as a shell reports Ctrl-C
_AGAIN = 4.0
"""Seconds: far longer than ending takes, and short enough to end within 15."""


def main() -> None:
    """Run the command line; no traceback ever reaches a user."""
    os.umask(0o077)  # the warehouse's side files, too, are nobody else's; publish opens up what readers get
    for ends in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(ends, _stop)
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
        code = _STOPPED if "interrupted" in str(error).lower() else _unexpected(error)  # DuckDB's word for Ctrl-C
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


def _stop(_signal: int, _frame: object) -> None:
    """Stop, and again in a while: C code that calls Python, such as DuckDB's look for pandas, loses an exception at times."""
    signal.setitimer(signal.ITIMER_REAL, _AGAIN, _AGAIN)
    raise KeyboardInterrupt


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
