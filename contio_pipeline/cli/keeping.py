"""Keeping and not keeping: `forget`, `backup`, `restore`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contio_pipeline.cli.common import Verbose, app, command, show_table
from contio_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from contio_pipeline.forget import Forgotten

DryRun = Annotated[bool, typer.Option("--dry-run", help="List what would be erased, and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Really erase: nothing brings it back.")]


@command(app)
def forget(
    email: Annotated[str, typer.Option(help="The person's e-mail address.", metavar="ADDRESS")],
    dry_run: DryRun = False,
    yes: Yes = False,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Erase a person from all that is stored: accounts, rows, history, quarantine, documents, old generations.

    Erased are the accounts of that address with their tokens and all that was read through them, and every row and document
    that mentions the address, or the user's id. Then all files are written anew, so that nothing is left in them.

    Look with --dry-run first. What Contio's API still holds comes back with the next full sync: delete it there before.
    """
    erase(account=None, email=email, dry_run=dry_run, yes=yes)


def erase(*, account: str | None, email: str | None, dry_run: bool, yes: bool) -> None:
    """Erase, or say what would be; for `forget` and `accounts remove --purge`."""
    from contio_pipeline import forget as module
    from contio_pipeline.settings import load_settings

    if not dry_run and not yes:
        raise ConfigError("look at what would be erased with --dry-run, then run it again with --yes to erase it")
    settings = load_settings()
    found = module.forget(settings, account=account, address=email, dry_run=dry_run, now=datetime.now(UTC))
    _print_forgotten(found, dry_run=dry_run)
    if found.live:
        print(
            f"{found.live:,} of the rows {'are' if dry_run else 'were'} live: what Contio's API still holds comes back with the "
            "next full sync of an account that can read it."
        )
    print("Backups and copies elsewhere are not touched: those made before now hold it still, so delete them.")
    dagster = settings.data_dir / "dagster"
    if found.dagster:
        print(
            f"Dagster's own records mention the address ({len(found.dagster)} files, such as {found.dagster[0]}): stop "
            f"Dagster and delete {dagster}; only its run history is lost.",
            file=sys.stderr,
        )
    elif dagster.is_dir():
        print(
            f"Dagster's run history shows a few rows of each table as they were: to be rid of these too, stop Dagster and "
            f"delete {dagster}."
        )


def _print_forgotten(found: Forgotten, *, dry_run: bool) -> None:
    rows: list[tuple[str, int, int | None]] = [(f"rows of {table}", count, None) for table, count in found.rows.items()]
    rows += [("accounts with their tokens: " + ", ".join(found.accounts), len(found.accounts), None)] * bool(
        found.accounts
    )
    rows += [
        ("documents that no row refers to", len(found.documents), found.document_bytes),
        ("generations, for a new one", len(found.folders), None if not dry_run else _size(found.folders)),
        ("earlier copies of the warehouse", len(found.copies), None if not dry_run else _size(found.copies)),
    ]
    show_table(("would be erased" if dry_run else "erased", "count", "bytes"), [row for row in rows if row[1]])
    if not found.rows and not found.documents:
        print("No row and no document holds anything of it. Generations and copies go all the same: older, they may.")
    if not dry_run:
        print("The warehouse was written anew and published: no byte of it is left there.")


def _size(paths: Iterable[Path]) -> int:
    files = (file for path in paths for file in (path, *path.rglob("*")))
    return sum(file.stat().st_size for file in files if file.is_file())


@command(app)
def backup(
    folder: Annotated[Path, typer.Argument(help="Where backups are kept: not inside the data or state folder.")],
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Copy warehouse, documents and settings to FOLDER/contio-backup-TIME, consistent and with a hash of every file.

    Documents that the backup before has already are shared with it by hard links. Tokens and other secrets are never in a
    backup. While it is made no sync can write.
    """
    from contio_pipeline.backup import backup as make_backup
    from contio_pipeline.settings import load_settings

    begun = datetime.now(UTC)
    made = make_backup(load_settings(), folder, begun)
    seconds = (datetime.now(UTC) - begun).total_seconds()
    print(
        f"{made.documents:,} documents ({made.linked:,} shared with the backup before); {made.copied / 1e6:,.1f} MB written "
        f"in {seconds:.1f} s.",
        file=sys.stderr,
    )
    print(f"Backup: {made.folder}")
    if made.missing:
        print(
            f"Not complete: the files of {len(made.missing):,} documents are missing or damaged, such as {made.missing[0]}: run "
            "contio-pipeline sync --verify-documents, then make another backup",
            file=sys.stderr,
        )
        raise typer.Exit(1)


@command(app)
def restore(
    backup: Annotated[Path, typer.Argument(help="A folder contio-backup-TIME.", metavar="BACKUP")],
    replace: Annotated[bool, typer.Option("--replace", help="Move the warehouse that is there aside.")] = False,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Put a backup's warehouse and documents into the data folder, and publish them.

    Every file of it is verified before anything is touched.
    """
    from contio_pipeline.auth import TokenStore
    from contio_pipeline.backup import restore as put_back
    from contio_pipeline.settings import load_settings

    settings = load_settings()
    restored = put_back(settings, backup, replace=replace, now=datetime.now(UTC))
    if restored.aside:
        print(f"The warehouse that was there is now {restored.aside}: delete it when you do not need it.")
    print(f"Restored {restored.documents:,} documents and the warehouse, and published: {restored.generation.folder}")
    if restored.missing:
        print(f"{restored.missing:,} documents were not in the backup: the next sync downloads them.", file=sys.stderr)
    if restored.api_origin and restored.api_origin != settings.api_url:
        print(
            f"Its rows are those of {restored.api_origin}, but CONTIO_API_URL is {settings.api_url}: set it before you sync.",
            file=sys.stderr,
        )
    print(f"Its settings are in {restored.settings}: put what you need into .env.")
    if not TokenStore(settings.state_dir).names():
        print("Tokens are never in a backup: add the accounts again (contio-pipeline accounts add).")
