"""The library as assets and ops see it: refresh one table, publish, and what Dagster is told of it.

What lives here: errors turned into Dagster's, progress into its log, reports into metadata and checks. What never does: a
decision about rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

import dagster as dg
from pydantic import Field

from contio_pipeline import dashboard, streams
from contio_pipeline.errors import ConfigError, ContioError, WarehouseBusy
from contio_pipeline.health import PUBLISHED, Check, Problem, checks
from contio_pipeline.settings import load_settings
from contio_pipeline.streams import Table
from contio_pipeline.sync import Run
from contio_pipeline.warehouse import Window
from contio_pipeline.work import StreamReport
from contio_pipeline.workfile import SQL_TYPES

Context = dg.OpExecutionContext | dg.AssetExecutionContext

_BUSY_SECONDS, _BUSY_TRIES = 30, 120
_PREVIEW_ROWS, _PREVIEW_WIDTH = 5, 60
_A_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step did, as its asset's page shows it.

    Attributes:
        asset: its key.
        facts: metadata, mostly numbers; small, because each day of a range repeats them.
        details: larger metadata, told once.
        days: how many live rows each day of the window has; a day that is not named has none.
        checks: of the asset.
        problems: what a person should know, and do, although the step did its work.
    """

    asset: str
    facts: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
    days: dict[str, int] = field(default_factory=dict)
    checks: list[dg.AssetCheckResult] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def fail_if_broken(self) -> None:
        """Fail the step where a table contradicts itself: nothing may be published then.

        Raises:
            dagster.Failure: a check that blocks did not pass.
        """
        blocking = {check.name for check in checks() if check.level == "blocks"}
        told = [check.description or "" for check in self.checks if check.check_name in blocking and not check.passed]
        if told:
            raise dg.Failure("; ".join(told), allow_retries=False)

    def fail_if_incomplete(self) -> None:
        """Fail the run, after all that is good was done.

        Raises:
            dagster.Failure: there are problems.
        """
        if self.problems:
            told = "Published, but not complete. " + "; ".join(self.problems)
            raise dg.Failure(told, metadata={TOLD_BY_CHECKS: True}, allow_retries=False)


class Contio(dg.ConfigurableResource[Any]):
    """The pipeline. All else comes from the CONTIO_… settings, read when a step starts."""

    accounts: list[str] = Field(default=[], description="Only these accounts; empty means all.")
    night: bool = Field(
        default=False,
        description="Of each account list what it needs to be complete, or everything where that is cheap, whatever the days.",
    )
    digest: bool = Field(
        default=False, description="When the run has ended, post what was done to CONTIO_ALERT_URL, if that is set."
    )
    verify_documents: bool = Field(
        default=False, description="Download all contents of documents again, compare, and repair."
    )
    accept_losses: bool = Field(
        default=False,
        description="Believe a listing that lacks most of the rows that are known; each is still confirmed.",
    )

    def refresh(self, context: Context, table: Table, window: Window) -> Outcome:
        """Make one table equal to the API for all accounts.

        A broken account or an incomplete listing fails the check, not the step: what is good goes on, and `publish` tells.
        """
        with self._run(context, window) as run:
            run.refresh(table.name)
            looked_at = run.check(table.name)
            rows, newest = run.look(table, _PREVIEW_ROWS)
            days = run.rows_by_day(table, window) if window.start else {}
            parts, folder = run.report.streams, run.settings.data_dir / "current"
        broken = {part.account: part.listing.reason for part in parts if not part.listing.complete}
        accounts = [_account(part) for part in parts]
        facts: dict[str, Any] = {
            "dagster/row_count": rows,
            **{name: sum(account[name] for account in accounts) for name in _NUMBERS},
            "window": f"{window.start:%Y-%m-%d} to {window.end:%Y-%m-%d}, the end not included"
            if window.start and window.end
            else "everything",
            "files": dg.MetadataValue.path(folder / "parquet" / table.schema / table.name),
        }
        details: dict[str, Any] = {
            "accounts": _table(accounts),
            "preview": _table([_short(row, table) for row in newest]),
            "dagster/column_schema": column_schema(table),
        }
        if warnings := [f"{part.account}: {warning}" for part in parts for warning in part.warnings]:
            details["warnings"] = dg.MetadataValue.md("\n".join(f"- {warning}" for warning in warnings))
        results = [result_of(check, found) for check, found in looked_at]
        complete = [Problem(reason or "not complete", account) for account, reason in broken.items()]
        results.append(result_of(complete_check(table.name), complete, accounts=len(parts), not_complete=len(broken)))
        return Outcome(table.name, facts, details, days, results)

    def publish(self, context: Context) -> Outcome:
        """Make what the run brought readable; what it could not make equal to the API is the outcome's failure."""
        with self._run(context, Window()) as run:
            incomplete = run.incomplete()
            generation, new = run.publish()
            results = [result_of(check, found) for check, found in run.check(PUBLISHED)]
            done = run.done()
        files = [path for path in generation.folder.rglob("*") if path.is_file()]
        rows = generation.manifest["rows"]
        broken = {row["account"] for row in incomplete}
        facts: dict[str, Any] = {
            **{name: done.get(name, 0) for name in ("inserted", "updated", "deleted", "requests")},
            "accounts": len(run.accounts),
            "accounts_complete": len(set(run.accounts) - broken),
            "rows": sum(count for name, count in rows.items() if name.startswith("raw.")),
            "files": len(files),
            "bytes": sum(path.stat().st_size for path in files),
            "seconds": round(run.report.seconds, 3),
            "not_complete": len(incomplete),
            "new_generation": new,
            "published_at": dg.MetadataValue.timestamp(generation.published_at),
            "folder": dg.MetadataValue.path(generation.folder),
            "dashboard": dg.MetadataValue.path(generation.folder / dashboard.FILE),
            "tables": _table([{"table": name, "rows": count} for name, count in rows.items()]),
        }
        problems: dict[str, list[str]] = {}
        for row in incomplete:
            problems.setdefault(f"{row['account']}: {row['reason'] or 'not complete'}", []).append(row["stream"])
        told = [f"{what} ({', '.join(whose)})" for what, whose in problems.items()]
        return Outcome(PUBLISHED, facts, checks=results, problems=told)

    @contextmanager
    def _run(self, context: Context, window: Window) -> Iterator[Run]:
        """The run's next part; what goes wrong says in the UI what to do."""
        try:
            with Run(
                load_settings(**({"loss_share": 1} if self.accept_losses else {})),
                run_id=context.run.run_id,
                accounts=self.accounts,
                window=window,
                night=self.night,
                verify_documents=self.verify_documents,
                listener=_Log(context.log),
                declared=streams.STREAMS,
            ) as run:
                yield run
        except WarehouseBusy as error:  # a sync from the command line: wait for it
            context.log.warning(str(error))
            raise dg.RetryRequested(max_retries=_BUSY_TRIES, seconds_to_wait=_BUSY_SECONDS) from None
        except ContioError as error:
            raise dg.Failure(str(error), allow_retries=not isinstance(error, ConfigError)) from None


class _Log:
    """Tells the run's log how a sync goes on."""

    def __init__(self, log: dg.DagsterLogManager) -> None:
        self._log = log
        self._what = ""
        self._said = time.monotonic()

    def started(self, account: str, stream: str) -> None:
        self._what = f"{account} {stream}"

    def advanced(self, done: int, total: int) -> None:
        self._now_and_then(f"{self._what}: {done:,} of {total:,}")

    def waiting(self, seconds: float) -> None:
        self._now_and_then(f"{self._what}: waiting for the request budget ({seconds:.0f} s)")

    def _now_and_then(self, text: str) -> None:
        if time.monotonic() > self._said + _A_MINUTE:
            self._said = time.monotonic()
            self._log.info(text)

    def finished(self, report: StreamReport) -> None:
        listing = report.listing
        text = f"{self._what}: {listing.rows:,} rows, {listing.requests:,} requests, {report.seconds:.1f} s"
        if listing.complete:
            self._log.info(text)
        else:
            self._log.error(f"{text}, not complete: {listing.reason}")

    def publishing(self) -> None:
        self._log.info("publishing")


def checks_of(of: str, declared: tuple[streams.Stream, ...]) -> list[Check]:
    """All checks of a table, or of what is published."""
    complete = [] if of == PUBLISHED else [complete_check(of)]
    return [*complete, *(check for check in checks(declared) if check.of == of)]


def complete_check(of: str) -> Check:
    """Does the table hold what the API holds? Only the run that listed it knows."""
    doc = "The table holds what the API holds, for every account that was asked for."
    return Check("complete", of, doc, "fails", lambda _case: ())


def result_of(check: Check, found: Sequence[Problem], **facts: int) -> dg.AssetCheckResult:
    """What a check found, as Dagster keeps it; each problem by itself, for alerts."""
    return dg.AssetCheckResult(
        asset_key=check.of,
        check_name=check.name,
        passed=not found,
        severity=dg.AssetCheckSeverity.WARN if check.level == "warns" else dg.AssetCheckSeverity.ERROR,
        metadata={**facts, PROBLEMS: [asdict(problem) for problem in found]},
        description="\n".join(map(str, found)) or None,
    )


def evaluation_of(result: dg.AssetCheckResult) -> dg.AssetCheckEvaluation:
    """The same, for whoever is no asset."""
    return dg.AssetCheckEvaluation(
        check_name=result.check_name or "",
        asset_key=result.asset_key or dg.AssetKey([]),
        passed=result.passed,
        metadata=result.metadata,
        severity=result.severity,
        description=result.description,
    )


PROBLEMS = "problems"
"""The metadata in which a check tells each problem."""

TOLD_BY_CHECKS = "told_by_checks"
"""The metadata of a failure of which the checks say more."""


def column_schema(table: Table) -> dg.TableSchema:
    """A table's columns as the UI shows them."""
    return dg.TableSchema([dg.TableColumn(c.name, SQL_TYPES[c.kind], description=c.doc) for c in table.columns])


_NUMBERS = (
    "rows", "inserted", "updated", "deleted", "unchanged", "quarantined", "requests", "429s", "seconds", "bytes",
)  # fmt: skip


def _account(part: StreamReport) -> dict[str, Any]:
    """What a sync did for one account, a value per heading."""
    listing, changes = part.listing, part.changes
    return {
        "account": part.account,
        "listed": _listed(part),
        "rows": listing.rows,
        "inserted": changes.inserted,
        "updated": changes.updated,
        "deleted": changes.deleted,
        "unchanged": changes.unchanged,
        "quarantined": changes.quarantined,
        "requests": listing.requests,
        "429s": part.throttled,
        "seconds": round(part.seconds, 3),
        "bytes": part.bytes,
        "complete": listing.complete,
        "reason": listing.reason or "",
    }


def _listed(part: StreamReport) -> str:
    """What was asked for, and why."""
    start, end = part.plan.window.start, part.plan.window.end
    days = f"{start:%Y-%m-%d} to {end - timedelta(days=1):%Y-%m-%d}" if start and end else "everything"
    more = ", and what is not done" if part.plan.open_rows else ""
    return (
        part.plan.why if part.plan.why.startswith(days) else ", ".join(filter(None, (f"{days}{more}", part.plan.why)))
    )


def _short(row: dict[str, Any], table: Table) -> dict[str, str]:
    """A row as a preview shows it: what the API sent, cut short."""
    shown = [column.name for column in table.columns if not column.name.endswith("_raw")]
    own = [name for name in shown if name == "_account" or not name.startswith("_")]
    return {name: "" if row[name] is None else str(row[name])[:_PREVIEW_WIDTH] for name in own}


def _table(rows: Sequence[dict[str, Any]]) -> dg.MetadataValue[Any]:
    """Rows as a table in the UI."""
    if not rows:
        return dg.MetadataValue.text("none")
    kinds = {bool: "bool", int: "int", float: "float"}
    schema = dg.TableSchema([dg.TableColumn(name, kinds.get(type(value), "string")) for name, value in rows[0].items()])
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows], schema=schema)
