"""Accounts: the Contio users whose data is synced."""

from __future__ import annotations

import io
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contio_pipeline.cli.common import Verbose, app, as_text, command, show_table
from contio_pipeline.cli.keeping import DryRun, Yes, erase
from contio_pipeline.errors import ConfigError, CredentialsRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from contio_pipeline.accounts import Listed

accounts_app = typer.Typer(help="Add, list and remove the Contio users whose data is synced.", no_args_is_help=True)
app.add_typer(accounts_app, name="accounts")

_A_MINUTE = 60.0
_EVERY = 25


@command(app)
def login(
    account: Annotated[
        str | None,
        typer.Option(
            help="How you want to call the account; by default as now, or by the user's e-mail address.", metavar="NAME"
        ),
    ] = None,
    no_browser: Annotated[
        bool,
        typer.Option("--no-browser", help="Print the address to open anywhere, and take what comes back by hand."),
    ] = False,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Let a Contio user consent in the browser, and add the account (or renew its consent).

    The partner application must have registered the address that the browser comes back to: CONTIO_REDIRECT_URI, by default
    http://127.0.0.1:8765/callback.

    The tokens are dedicated to this pipeline and kept in the state folder, readable by you alone. Give them to no other
    program: refresh tokens rotate, so two programs that use one end each other's.
    """
    from contio_pipeline.login import PATIENCE, Login
    from contio_pipeline.settings import load_settings

    attempt = Login(load_settings(), account)

    def ready() -> None:
        print(
            f"Opening the browser, and waiting {PATIENCE / _A_MINUTE:.0f} minutes for the consent. If nothing shows up, open "
            f"this address on this machine (on another: use --no-browser):\n\n{attempt.url}\n",
            file=sys.stderr,
        )

    if no_browser:
        print(f"Open this address in any browser, and consent:\n\n{attempt.url}\n")
        print(
            "The browser then goes to an address that may not load: that is expected. Paste that address here, whole, or the "
            "code in it; within five minutes:",
            flush=True,
        )
        code = attempt.read_pasted(sys.stdin.readline())
    else:
        code = attempt.wait_for_browser(ready)
    done = attempt.finish(code)
    print(
        f"{'Renewed the consent of' if done.renewed else 'Added'} account {done.account}: {done.who or 'user not known'}."
    )
    for warning in done.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    print(f"Next: contio-pipeline sync --account {done.account}")


@command(accounts_app, "add")
def accounts_add(
    name: Annotated[str, typer.Argument(help="How you want to call the account, e.g. sales or ana@example.com.")],
    refresh_token_stdin: Annotated[
        bool, typer.Option("--refresh-token-stdin", help="Read the refresh token (cto_rt_…) from standard input.")
    ] = False,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Add a Contio user's consent, or replace its refresh token, and try it. Where there is a browser, use login.

    The token must be dedicated to this pipeline: refresh tokens rotate, so two programs that use one end each other's.
    It is kept in the state folder, readable by you alone, and never printed.
    """
    from contio_pipeline.accounts import Entry, Keeper, check_name, check_token
    from contio_pipeline.settings import load_settings

    if not refresh_token_stdin:
        raise ConfigError(
            f"say where the token comes from: contio-pipeline accounts add {name} --refresh-token-stdin, and give it on "
            f"standard input; or let the user consent in the browser: contio-pipeline login --account {name}"
        )
    settings = load_settings()
    check_name(name)
    if sys.stdin.isatty():
        from getpass import getpass

        token = getpass("Refresh token (not shown): ")
    else:
        token = sys.stdin.readline()
    keeper = Keeper(settings)
    fresh, done = keeper.take([Entry(name, check_token(token))], replace=True)
    [outcome] = keeper.trials([*fresh, *done])
    if outcome.state == "refused" and outcome.error:
        raise outcome.error
    said = "Added" if fresh else "This token was given before; it is in use since by"
    if outcome.error:
        print(f"{said} account {name}. It could not be tried yet: {outcome.error}", file=sys.stderr)
    else:
        print(f"{said} account {name}: {outcome.who}. Next: contio-pipeline sync --account {name}")
    for warning in outcome.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    if isinstance(outcome.error, CredentialsRefused):
        raise typer.Exit(1)


@command(accounts_app, "import")
def accounts_import(
    replace: Annotated[
        bool, typer.Option("--replace", help="Give accounts that are there already the new tokens of the same users.")
    ] = False,
    try_them: Annotated[
        bool, typer.Option("--try/--no-try", help="Try each token at once; without, the next sync does.")
    ] = True,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Add many accounts from standard input: lines of CSV (name,refresh_token) or of JSON (name, refresh_token).

    All lines are checked first: when one is wrong, nothing is changed. Then all tokens are stored, and each is tried, at the
    pace that the API allows (100 in five minutes). It can be stopped, and run again with the same lines: tokens that
    were given before and are in use since are left alone. A token that is refused is not kept.

    Each token must be dedicated to this pipeline: refresh tokens rotate, so two programs that use one end each other's.
    """
    from contio_pipeline.accounts import Keeper, Outcome, read_entries
    from contio_pipeline.settings import load_settings

    settings = load_settings()
    keeper = Keeper(settings, _say_waiting())
    lines = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", errors="replace")
    fresh, before = keeper.take(read_entries(lines), replace=replace)
    print(f"{len(fresh)} tokens stored, {len(before)} were given before and are in use", file=sys.stderr)
    outcomes: list[Outcome] = []
    for outcome in keeper.trials(fresh) if try_them else ():
        outcomes.append(outcome)
        where = f"{outcome.entry.name} (line {outcome.entry.line})"
        if outcome.error:
            word = "Refused" if outcome.state == "refused" else "Kept, not tried"
            print(f"{word}: {where}: {outcome.error}", file=sys.stderr)
        for warning in outcome.warnings:
            print(f"Warning: {where}: {warning}", file=sys.stderr)
        if len(outcomes) % _EVERY == 0:
            print(f"{len(outcomes)} of {len(fresh)} tried", file=sys.stderr)
    count = {state: sum(outcome.state == state for outcome in outcomes) for state in ("added", "kept", "refused")}
    told = (
        f"{count['added']} work, {count['kept']} could not be tried, {count['refused']} were refused"
        if outcomes
        else ""
    )
    print(f"Imported {len(fresh) - count['refused']} accounts{f': {told}' if told else ''}. Next: contio-pipeline sync")
    if count["kept"] or count["refused"]:
        raise typer.Exit(1)


def _say_waiting() -> Callable[[float], None]:
    """Says at most once a minute that the request budget is used up."""
    said = -_A_MINUTE

    def waiting(seconds: float) -> None:
        nonlocal said
        if time.monotonic() > said + _A_MINUTE:
            said = time.monotonic()
            print(f"waiting for the request budget ({seconds:.0f} s)", file=sys.stderr)

    return waiting


@command(accounts_app, "list")
def accounts_list(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with everything that is known.")] = False,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """List the accounts: whose they are, what they may do, when they were synced, and when their consent ends.

    Each sync renews the consent for 30 days. What is shown of syncs is what is published.
    """
    from contio_pipeline.accounts import listed
    from contio_pipeline.settings import load_settings

    found, now = listed(load_settings()), datetime.now(UTC)
    if as_json:
        import json
        from dataclasses import asdict

        rows = [asdict(one) | {"days_left": one.days_left(now)} for one in found]
        print(json.dumps(rows, ensure_ascii=False, indent=2, default=as_text))
    elif found:
        columns = (
            "account",
            "user",
            "user id",
            "scopes",
            "last sync",
            "complete",
            "refreshed",
            "consent ends",
            "days left",
        )
        show_table(columns, [_account_row(one, now) for one in found])
    else:
        print("No accounts yet. Add one: contio-pipeline login")


def _account_row(one: Listed, now: datetime) -> list[Any]:
    if one.damaged:
        scopes = f"damaged: contio-pipeline login --account {one.account}"
    elif one.refused_at:
        scopes = f"refused since {one.refused_at:%Y-%m-%d}: contio-pipeline login --account {one.account}"
    elif one.missing_scopes:
        scopes = f"lacks {' '.join(one.missing_scopes)}"
    else:
        scopes = "all" if one.scopes else "not tried yet"
    complete = {None: None, True: "yes", False: "NO"}[one.complete]
    if one.complete is False and one.complete_as_of:
        complete = f"NO (last: {one.complete_as_of:%Y-%m-%d %H:%M})"
    times = (one.refreshed_at, one.consent_ends, one.days_left(now))
    return [one.account, one.user, one.user_id, scopes, one.synced_at, complete, *times]


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
