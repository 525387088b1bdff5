"""Trying it: `demo`, `sandbox`."""

from __future__ import annotations

import os
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from contio_pipeline.cli.common import Verbose, app, command, show_table
from contio_pipeline.errors import ConfigError

_LASTS = timedelta(weeks=2)
"""So long what is asked of today and the coming week has an answer in the demo."""


@command(app)
def demo(
    folder: Annotated[Path, typer.Option(help="Where to publish; its state goes beside it.")] = Path("data/demo"),
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Sync a year of made-up meetings of three people from a sandbox API on this machine, and ask two questions.

    Dagster runs the full sync, then a window of eight days, as a night would. It needs no account and no network, and touches
    nothing but its own folders. The meetings end some weeks after the day of the first run; a second run finds nothing changed.
    """
    from contio_pipeline.demo import run
    from contio_pipeline.generations import ask

    done = run(folder)
    for heading, rows in done.tables.items():
        print(f"\n{heading}\n")
        show_table(rows[0], [list(row.values()) for row in rows])
    for question, sql in done.questions.items():
        print(f"\n{question}\n")
        answer = ask(done.generation, sql)
        show_table(answer.names, answer.rows)
    beside_python = Path(sys.executable).with_name("contio-pipeline")
    program = "contio-pipeline" if shutil.which("contio-pipeline") else os.path.relpath(beside_python)
    print(
        f"""
Where things are
  {folder}/current/contio.duckdb   for SQL and BI tools, at any moment
  {folder}/current/parquet/        the same as Parquet
  {folder}/current/dashboard.html  the same as pictures: open it in a browser
  {folder}/documents/              the documents' contents, named by their SHA-256

What to do next
  ask:         CONTIO_DATA_DIR={folder} {program} query "SELECT local_date, title, minutes FROM mart.meetings LIMIT 5"
  look:        CONTIO_DATA_DIR={folder} {program} status
               CONTIO_DATA_DIR={folder} {program} dashboard   (needs a browser)
  Dagster:     CONTIO_DATA_DIR={folder} make up, then http://127.0.0.1:3000: assets, runs, checks
  real data:   set CONTIO_CLIENT_ID and CONTIO_CLIENT_SECRET, then
               {program} login && {program} sync"""
    )
    if datetime.now(UTC).date() > done.day + _LASTS:
        print(
            f"\nIn this demo it is {done.day}. For one of today, delete {folder} and {folder}-state, and run it again."
        )


@command(app)
def sandbox(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 picks a free one.", min=0, max=65535)] = 0,
    seed: Annotated[int, typer.Option(help="The same seed and day make the same data.")] = 1,
    today: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"], help="The day that it is in there; without, the day that it is.", metavar="DAY"
        ),
    ] = None,
    meetings: Annotated[int, typer.Option(help="How many meetings there are.", min=0)] = 300,
    accounts: Annotated[int, typer.Option(help="How many users there are.", min=1)] = 3,
    rate_limit: Annotated[int, typer.Option(help="Requests allowed in five minutes.", min=1)] = 1000,
    fault: Annotated[
        list[str] | None,
        typer.Option(help="Something that goes wrong, for ever or so many times (repeatable).", metavar="NAME[:TIMES]"),
    ] = None,
    env_file: Annotated[
        Path | None,
        typer.Option(help="Write the settings that reach it to this file, with folders of their own beside it."),
    ] = None,
    faults: Annotated[bool, typer.Option("--faults", help="List what can go wrong, and exit.")] = False,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Run a server that speaks the Contio API on made-up data, to rehearse and to test, until Ctrl-C.

    When it is ready it prints one line of JSON: api_url, token_url, authorize_url, client_id, client_secret, and each
    account's refresh_token. What it holds can be read (GET /_sandbox/truth, /_sandbox/requests) and changed (POST
    /_sandbox/change). A login is consented to at once, by the first user, or by the one that ?account= names.

    With --env-file sandbox.env, all other commands reach it where CONTIO_ENV_FILE=sandbox.env is set.
    """
    from contio_pipeline.folders import private_file
    from contio_pipeline.sandbox.faults import FOR_EVER, NAMED, named
    from contio_pipeline.sandbox.server import Sandbox, serve
    from contio_pipeline.sandbox.world import World
    from contio_pipeline.settings import midnight

    if faults:
        show_table(("fault", "what goes wrong"), [(name, what.doc) for name, what in NAMED.items()])
        return
    wrong = []
    for asked in fault or ():
        name, _, times = asked.partition(":")
        if name not in NAMED or not (times or "1").isdecimal() or not int(times or 1):
            raise ConfigError(
                f"there is no fault {asked!r}: contio-pipeline sandbox --faults lists them; NAME:3 is three times, at least once"
            )
        wrong.append(named(name, int(times or FOR_EVER)))
    try:
        world = World(
            seed=seed, meetings=meetings, accounts=accounts, now=midnight((today or datetime.now(UTC)).date())
        )
        server = Sandbox(world, port=port, rate_limit=rate_limit)
    except OSError as error:
        raise ConfigError(
            f"port {port} on 127.0.0.1 cannot be used ({error.strerror}): stop the program that has it, or name another with "
            "--port (0 picks a free one)"
        ) from None
    server.faults = wrong
    if env_file:
        folder = env_file.absolute().parent
        values = {
            "api_url": server.api_url,
            "token_url": server.token_url,
            "authorize_url": server.authorize_url,
            "client_id": world.client_id,
            "client_secret": world.client_secret,
            "rate_limit": rate_limit,
            "data_dir": folder / f"{env_file.stem}-data",
            "state_dir": folder / f"{env_file.stem}-state",
        }
        private_file(env_file, "".join(f"CONTIO_{name.upper()}='{value}'\n" for name, value in values.items()))
    serve(server)
