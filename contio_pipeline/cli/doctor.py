"""Looking for what is wrong: `doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from contio_pipeline.cli.common import Verbose, app, command, show_table, shown


@command(app)
def doctor(
    account: Annotated[list[str] | None, typer.Option(help="Only this account (repeatable).", metavar="NAME")] = None,
    no_probe: Annotated[
        bool,
        typer.Option("--no-probe", help="Do not ask the API what its documentation leaves open (about 25 requests)."),
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Ask the API nothing.")] = False,
    alert: Annotated[bool, typer.Option("--alert", help="Send a message to CONTIO_ALERT_URL, to try it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Look at everything that can be wrong, and say of each what to do.

    Configuration, accounts and their scopes, clock, disk, permissions, versions, the request budget, sizes, what is not
    complete, and what the API leaves undocumented, compared with the last time. It can be asked at any moment, also while a
    sync runs, and changes nothing. Exit code 1 means that there is a problem.
    """
    from contio_pipeline.doctor import examine

    findings = list(examine(accounts=account or (), offline=offline, alert=alert, ask_undocumented=not no_probe))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        rows = [(finding.level, finding.area, finding.subject, finding.found) for finding in findings]
        show_table(("", "area", "what", "found"), rows)
        for finding in findings:
            if finding.level != "ok":
                print(f"\n{finding.level.capitalize()}: {shown(f'{finding.area} {finding.subject}: {finding.found}')}")
                print(f"  What to do: {shown(finding.remedy)}")
        counts = [sum(finding.level == level for finding in findings) for level in ("problem", "warning")]
        print(f"\nProblems: {counts[0]}. Warnings: {counts[1]}.")
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)
