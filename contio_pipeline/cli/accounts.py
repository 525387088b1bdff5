"""Accounts: the Contio users whose data is synced."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contio_pipeline.cli.common import Verbose, app, as_table, command, show, shown
from contio_pipeline.cli.keeping import DryRun, Yes, erase
from contio_pipeline.errors import AccountError, ApiError, ConfigError

if TYPE_CHECKING:
    from contio_pipeline.auth import Tokens, TokenStore
    from contio_pipeline.settings import Settings

accounts_app = typer.Typer(help="Add, list and remove the Contio users whose data is synced.", no_args_is_help=True)
app.add_typer(accounts_app, name="accounts")


@command(accounts_app, "add")
def accounts_add(
    name: Annotated[str, typer.Argument(help="How you want to call the account, e.g. sales or ana@example.com.")],
    refresh_token_stdin: Annotated[
        bool, typer.Option("--refresh-token-stdin", help="Read the refresh token (cto_rt_…) from standard input.")
    ] = False,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Add a Contio user's consent, or replace its refresh token, and try it.

    The token must be dedicated to this pipeline: refresh tokens rotate, so two programs that use one end each other's.
    It is kept in the state folder, readable by you alone, and never printed.
    """
    from contio_pipeline.auth import Tokens, TokenStore
    from contio_pipeline.settings import load_settings

    if not refresh_token_stdin:
        raise ConfigError(
            f"say where the token comes from: contio-pipeline accounts add {name} --refresh-token-stdin, and give it on "
            "standard input"
        )
    settings = load_settings()
    store = TokenStore(settings.state_dir)
    if sys.stdin.isatty():
        from getpass import getpass

        token = getpass("Refresh token (not shown): ").strip()
    else:
        token = sys.stdin.readline().strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("standard input held no refresh token: one line such as cto_rt_v1_… was expected")
    with store.lock(name):
        before = _known_tokens(store, name)
        store.write(name, Tokens(token, profile_id=before.profile_id if before else ""))
    try:
        who = _try_account(settings, name)
    except AccountError as error:
        used_up = store.read(name).refresh_token != token
        if before:
            store.write(name, before)
        else:
            store.remove(name)
        if (
            used_up
        ):  # it is another user's: the trial exchanged it, and what it was exchanged for is not kept under this name
            raise AccountError(f"{error} (with a new token: this one was used up by the check)") from None
        raise
    except (ApiError, ConfigError) as error:
        print(f"Added account {name}. It could not be tried yet: {error}", file=sys.stderr)
    else:
        print(f"Added account {name}: {who}. Next: contio-pipeline sync --account {name}")


def _known_tokens(store: TokenStore, name: str) -> Tokens | None:
    """The account's tokens; None where there are none, or where they are damaged."""
    try:
        return store.read(name)
    except ConfigError:
        return None


def _try_account(settings: Settings, name: str) -> str:
    from contio_pipeline.client import Client
    from contio_pipeline.streams import PROFILE_PATH

    settings.credentials()
    with Client(settings.model_copy(update={"retry_seconds": min(settings.retry_seconds, 5.0)})) as client:
        profile = client.profile(name, PROFILE_PATH)
    return shown(f"{profile.get('display_name') or 'no name'} <{profile.get('email') or 'no e-mail'}>")


@command(accounts_app, "list")
def accounts_list(verbose: Verbose = False) -> None:  # noqa: ARG001 - its callback does the work
    """List the accounts, their scopes, and when their consent ends unless it is renewed by a sync."""
    from contio_pipeline.auth import TokenStore
    from contio_pipeline.settings import load_settings

    store = TokenStore(load_settings().state_dir)
    rows: list[list[Any]] = []
    for name in store.names():
        tokens = _known_tokens(store, name)
        if tokens is None:
            rows.append([name, "damaged: add it again", "", None, None])
            continue
        used = datetime.fromtimestamp(tokens.refreshed_at, UTC) if tokens.refreshed_at else None
        rows.append([name, tokens.profile_id, tokens.scope, used, used and used + timedelta(days=30)])
    if rows:
        show(as_table(("account", "user id", "scopes", "refreshed", "consent ends"), rows))
    else:
        print("No accounts yet. Add one: contio-pipeline accounts add NAME --refresh-token-stdin")


@command(accounts_app, "remove")
def accounts_remove(
    name: Annotated[str, typer.Argument(help="The account.")],
    purge: Annotated[bool, typer.Option("--purge", help="Erase all that was read through it too.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Forget an account's tokens; its rows stay in the warehouse, but for --purge.

    With --purge its rows, their history, quarantine, documents that no other account refers to and all old generations are
    erased, and the files written anew. Look with --dry-run first; --yes erases.
    """
    from contio_pipeline.auth import TokenStore
    from contio_pipeline.settings import load_settings

    if purge:
        erase(account=name, email=None, dry_run=dry_run, yes=yes)
        return
    if dry_run or yes:
        raise ConfigError("--dry-run and --yes go with --purge; without it the rows stay, and there is nothing to list")

    TokenStore(load_settings().state_dir).remove(name)
    print(f"Removed account {name}: it is not synced any more. Its rows stay.")
