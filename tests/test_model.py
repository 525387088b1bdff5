"""The promise, against sequences that nobody thought of: random worlds, changes, faults and syncs, and what must hold after each.

30 short sequences run by default, the same ones each time; CONTIO_MODEL_EXAMPLES says how many random ones instead.
A failure prints the shortest sequence found and a blob that repeats it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest import TestCase
from unittest.mock import patch

import duckdb
from conftest import LISTED, Place
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from tenacity import wait_fixed
from truth import Row, check, check_parquet, expected_row, instant, stored

from contio_pipeline import client, listings
from contio_pipeline.generations import Generation
from contio_pipeline.sandbox.faults import BODIES, EVERYTHING, JSON, LISTS, NAMED, Fault, named
from contio_pipeline.sandbox.generate import File
from contio_pipeline.sandbox.server import Request, Sandbox
from contio_pipeline.sandbox.world import MISSING, World
from contio_pipeline.streams import DOCUMENT_CONTENTS, Stream, Table, stream_named, tables
from contio_pipeline.sync import parts
from contio_pipeline.warehouse import Window
from contio_pipeline.work import StreamReport, SyncReport

ON_DEMAND = os.environ.get("CONTIO_MODEL_EXAMPLES")  # read here: no test keeps a variable of that name

TOP = [stream.name for stream in LISTED if not stream.parent]
NAMES = [stream.name for stream in LISTED]
DETAILS = r"/user/(meetings|action-items|calendar/events)/[0-9a-f-]{36}$"
FIRST_DAY = datetime(2026, 11, 1, tzinfo=UTC)

# What happens ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """Something that happens to the world: `pick` chooses among the rows (and kinds), `days` how far or when."""

    what: str
    stream: str
    pick: int
    days: int


@dataclass(frozen=True)
class Moment:
    """A change just before the nth request of a kind is answered."""

    where: str
    nth: int
    change: Change


@dataclass(frozen=True)
class Trouble:
    """A named fault; one that concerns every request may be aimed at some of them."""

    name: str
    times: int
    aim: str

    def fault(self) -> Fault:
        fault = named(self.name, self.times)
        aimed = AIMS[self.aim]
        fits = fault.path == EVERYTHING or (fault.path == JSON and aimed != BODIES)  # which is no JSON
        return replace(fault, path=aimed) if aimed and fits else fault


AIMS = {"as named": "", "rows by id": DETAILS, "lists": LISTS, "documents": BODIES, "the profile": r"/profile$"}

PLACES: dict[str, Callable[[Request], bool]] = {
    "any request": lambda _: True,
    "a first page": lambda request: request.query.get("offset") == "0",
    "a later page": lambda request: request.query.get("offset", "0") != "0",
    "a row by id": lambda request: re.search(DETAILS, request.path) is not None,
    "a document": lambda request: re.search(BODIES, request.path) is not None,
}

TOO_SLOW = {"hang", "drip", "gzip-bomb"}
"""What these do to a sync, other faults do in less time; tests/test_faults.py has them."""

FALSE_LISTS = {
    "list-empty",  # a list that is empty and says so is believed about rows that nobody has seen yet
}
FALSE_CONTENTS = {
    "content-empty",  # no length, no hash and no type of a document is announced elsewhere
    "204",
}
"""Lies that nobody can tell from the truth: after these, complete means less."""


def _when(change: Change) -> Any:
    """A time as the API may write it: at the edge of a window, in another zone, as a day, without a zone, or none."""
    at = FIRST_DAY + timedelta(days=change.days)
    return (
        at.strftime("%Y-%m-%dT10:00:00Z"),
        at.strftime("%Y-%m-%dT00:00:00Z"),
        at.strftime("%Y-%m-%dT05:30:00+05:30"),
        at.strftime("%Y-%m-%dT23:59:59.999999999Z"),
        at.strftime("%Y-%m-%dT00:00:00-07:00"),
        at.strftime("%Y-%m-%d"),
        at.strftime("%Y-%m-%dT12:00:00"),
        None,
        MISSING,
    )[change.pick % 9]


BAD: Row = {"title": 17, "id": None, "created_at": "soon", "start_time": "soon", "updated_at": "soon"}


def is_broken(row: Row) -> bool:
    """Whether the row breaks its promise, in one of the ways in which rows are broken here."""
    return any(name in row and row[name] == value for name, value in BAD.items())


class Changes:
    """Every change that can happen to the world; one for which there is no row changes nothing."""

    def __init__(self, world: World, sandbox: Sandbox) -> None:
        self.world = world
        self.sandbox = sandbox
        self.rewritten: set[str] = set()
        self._gone: dict[str, dict[str, Row]] = {name: {} for name in NAMES}

    def make(self, change: Change) -> None:
        with self.world.lock:
            before = {name: {key: one.row for key, one in self.world._rows[name].items()} for name in NAMES}
            getattr(self, f"_{change.what.replace(' ', '_')}")(change)
            for name in NAMES:
                lost = {key: row for key, row in before[name].items() if key not in self.world._rows[name]}
                self._gone[name] |= {key: row for key, row in lost.items() if key not in self.world.redirects}

    def _one(self, change: Change, fits: Callable[[Any], bool] = lambda _: True) -> list[str]:
        keys = [key for key, record in self.world._rows[change.stream].items() if fits(record)]
        return [keys[change.pick % len(keys)]] if keys else []

    def _account(self, change: Change) -> str:
        return list(self.world.accounts)[change.pick % len(self.world.accounts)]

    def _meeting(self, change: Change) -> list[str]:
        return self._one(replace(change, stream="meetings"))

    def _insert(self, change: Change) -> None:
        one = change.stream == "calendar_events" or change.pick % 3 == 0
        account = self._account(change) if one else None
        asked = [account] if account else list(self.world.accounts)
        if change.stream in TOP[:1] + TOP[2:] or any(self.world.items(name, "meetings") for name in asked):
            date = {stream_named(change.stream).date_field: _when(change)}
            self.world.insert(change.stream, account=account, **date)

    def _update(self, change: Change) -> None:
        self.world.update(change.stream, ids=self._one(change))

    def _redate(self, change: Change) -> None:
        date = {stream_named(change.stream).date_field: _when(change)}
        self.world.update(change.stream, ids=self._one(change), **date)

    def _unstamp(self, change: Change) -> None:
        self.world.update(change.stream, ids=self._one(change), updated_at=MISSING)

    def _move(self, change: Change) -> None:
        self.world.move(change.stream, ids=self._one(change), days=change.days)

    def _delete(self, change: Change) -> None:
        self.world.delete(change.stream, ids=self._one(change))

    def _come_back(self, change: Change) -> None:
        gone = [key for key in self._gone[change.stream] if key not in self.world._rows[change.stream]]
        meeting = self._meeting(change)
        if gone and meeting:
            parent = {} if change.stream in {"meetings", "calendar_events"} else {"meeting_id": meeting[0]}
            account = self._account(change)
            self.world.insert(change.stream, account=account, id=gone[change.pick % len(gone)], **parent)

    def _hide(self, change: Change) -> None:
        self.world.hide(self._account(change), meeting_ids=self._meeting(change))

    def _unhide(self, change: Change) -> None:
        hidden = self.world._hidden[self._account(change)]
        known = [key for key in self.world._rows["meetings"] if key in hidden]
        self.world.unhide(self._account(change), meeting_ids=known or self._meeting(change))

    def _merge(self, change: Change) -> None:
        self.world.merge(ids=self._meeting(change))

    def _give_away(self, change: Change) -> None:
        """An action item goes to another person, or a document to another meeting."""
        if change.stream == "action_items":
            user = self.world.accounts[self._account(change)].user_id
            self.world.update("action_items", ids=self._one(change), assigned_to_user_id=user)
        elif meeting := self._meeting(replace(change, pick=change.pick + change.days)):
            documents = self._one(replace(change, stream="context_documents"))
            self.world.update("context_documents", ids=documents, meeting_id=meeting[0])

    def _process(self, _change: Change) -> None:
        self.world.process_documents()

    def _rewrite(self, change: Change) -> None:
        ids = self._one(replace(change, stream="context_documents"))
        self.world.rewrite_contents(ids)
        self.world.update("context_documents", ids=ids)

    def _rewrite_silently(self, change: Change) -> None:
        ids = self._one(replace(change, stream="context_documents"))
        self.world.rewrite_contents(ids)
        self.rewritten.update(ids)

    def _break(self, change: Change) -> None:
        names = [column.name for column in stream_named(change.stream).columns if column.name in BAD]
        name = names[change.days % len(names)]
        self.world.update(change.stream, ids=self._one(change), **{name: BAD[name]})

    def _mend(self, change: Change) -> None:
        for stream in NAMES:
            for key, row in [(key, record.row) for key, record in self.world._rows[stream].items()]:
                good = dict.fromkeys(BAD, _when(replace(change, pick=0))) | {"title": "Mended", "id": key}
                mended = {name: good[name] for name, value in BAD.items() if name in row and row[name] == value}
                if mended:
                    self.world.update(stream, ids=[key], **mended)

    def _shift(self, change: Change) -> None:
        """Move the rows of a list by so many places, so that no count shows it: some go at one end, as many come at the other."""
        account = self._account(change)
        rows = [row["id"] for row in self.world.items(account, change.stream) if row["id"]]
        field = self.sandbox.filter_fields[change.stream]
        newest, oldest = "2027-05-01T00:00:00Z", "2025-07-01T00:00:00Z"
        front, end = (oldest, newest) if change.stream == "calendar_events" else (newest, oldest)
        count = min(abs(change.days), len(rows))
        self.world.delete(change.stream, ids=rows[:count] if change.days > 0 else rows[len(rows) - count :])
        if count and (change.stream != "action_items" or self.world.items(account, "meetings")):
            self.world.insert(change.stream, count, account=account, **{field: end if change.days > 0 else front})


USUAL = (
    "insert", "update", "redate", "unstamp", "move", "delete", "come back", "hide", "unhide", "merge", "give away", "process",
    "rewrite", "rewrite silently", "break", "mend",
)  # fmt: skip
CHANGE = st.builds(Change, st.sampled_from(USUAL), st.sampled_from(NAMES), st.integers(0, 40), st.integers(-40, 40))
FIRST = st.lists(CHANGE, max_size=5)
MOMENT = st.builds(Moment, st.sampled_from(list(PLACES)), st.integers(1, 8), CHANGE)
TROUBLE = st.builds(
    Trouble, st.sampled_from(sorted(NAMED.keys() - TOO_SLOW)), st.integers(1, 6), st.sampled_from(list(AIMS))
)


def window(first: int, days: int) -> Window:
    """So many days; the first is told from the world's today."""
    return Window(FIRST_DAY + timedelta(days=first), FIRST_DAY + timedelta(days=first + days))


WINDOW = st.builds(window, st.integers(-300, 50), st.integers(1, 120))
SOME_ACCOUNTS = st.sets(st.integers(0, 2)).map(sorted)  # empty: all
SOME_STREAMS = st.sets(st.sampled_from(parts(LISTED))).map(
    lambda names: [name for name in parts(LISTED) if name in names]
)

# Shifts that together leave the number of different rows as it should be: one place lost and found again, or none.
UNSEEN_SHIFTS = st.permutations([2, -1]) | st.permutations([3, -1]) | st.permutations([2, 2, -2]) | st.just([1])
SHIFTS = UNSEEN_SHIFTS | st.lists(st.integers(-3, 3), min_size=1, max_size=3)


# What was true --------------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """A row as an account could read it, and the meeting below which."""

    row: Row
    meeting: str | None


View = dict[tuple[str, str], dict[str, Seen]]
"""What can be read at one moment: account and stream -> id -> row."""


class Chronicle:
    """All that the world ever held, and each state of it during the current sync."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.views: list[View] = []
        self.versions: dict[tuple[str, str, str], dict[str, Row]] = {}
        self.parents: dict[str, set[str | None]] = {}
        self.contents: dict[str, set[str]] = {}
        self._hashes: dict[int, tuple[Row, str]] = {}
        self._digests: dict[File, str] = {}

    def begin(self) -> None:
        self.views = []
        self.world._cache.pop("chronicle", None)
        self.look()

    def look(self) -> None:
        """Take the world down, if it is another than at the last look: it forgets its cache at each change."""
        with self.world.lock:
            if "chronicle" in self.world._cache:
                return
            view: View = {
                (account, stream): {
                    key: Seen(record.row, record.meeting)
                    for key, record in self.world._rows[stream].items()
                    if self.world._visible(account, stream, record)
                }
                for account in self.world.accounts
                for stream in NAMES
            }
            for key, record in self.world._rows["context_documents"].items():
                if record.file:
                    self.contents.setdefault(key, set()).add(self.digest(record.file))
            self.world._cache["chronicle"] = True
        self.views.append(view)
        for (account, stream), rows in view.items():
            for key, seen in rows.items():
                if not is_broken(seen.row):
                    self.versions.setdefault((account, stream, key), {})[self.hash(seen.row)] = seen.row
                    self.parents.setdefault(key, set()).add(seen.meeting)

    def hash(self, row: Row) -> str:
        """As `_hash` is defined; rows are replaced, never modified, so that each is hashed once."""
        if id(row) not in self._hashes:
            text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            self._hashes[id(row)] = row, hashlib.sha256(text.encode()).hexdigest()
        return self._hashes[id(row)][1]

    def digest(self, file: File) -> str:
        if file not in self._digests:
            self._digests[file] = hashlib.sha256(file.content()).hexdigest()
        return self._digests[file]

    def during(self, account: str, stream: str) -> list[dict[str, Seen]]:
        """The account's rows in each state of this sync."""
        return [view[account, stream] for view in self.views]

    def visible(self, account: str, stream: str) -> set[str]:
        """Ids of rows that could be read all the time."""
        return set.intersection(*(set(rows) for rows in self.during(account, stream)))

    def steady(self, account: str, stream: str) -> dict[str, Seen]:
        """Rows that stood unchanged all the time."""
        first, *later = self.during(account, stream)
        return {
            key: seen
            for key, seen in first.items()
            if all(key in rows and rows[key].row is seen.row and rows[key].meeting == seen.meeting for rows in later)
        }


class Watched(Sandbox):
    """A sandbox that remembers the last version of each row that a list has sent."""

    sent: dict[tuple[str, Any], Row]

    def _page(self, call: Any, rows: list[Row]) -> Any:
        answer = super()._page(call, rows)
        self.sent |= {(call.account, item.get("id")): item for item in json.loads(bytes(answer.body))["items"]}
        return answer


class Tables:
    """What is published: rows of each stream and their history, contents, and where Parquet holds something else."""

    def __init__(self, generation: Generation) -> None:
        with duckdb.connect(generation.database, read_only=True) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            self.unequal = [
                table.name
                for table in tables()
                if table.schema == "raw" and not _parquet_is_equal(connection, table, generation.folder)
            ]
            self.rows = {stream.name: stored(connection, stream.table.full_name) for stream in LISTED}
            self.history = {
                stream.name: connection.execute(
                    f"""SELECT _account, id, list(_operation ORDER BY _changed_at), list(_hash ORDER BY _changed_at)
                        FROM {stream.history.full_name} GROUP BY ALL ORDER BY ALL"""
                ).fetchall()
                for stream in LISTED
            }
            self.contents = {
                (row["_account"], row["id"]): row for row in stored(connection, DOCUMENT_CONTENTS.full_name)
            }
            assumed = "SELECT account, stream FROM ops.assumptions WHERE NOT holds"
            self.false_filters = set(connection.execute(assumed).fetchall())

    def live(self, account: str, stream: str) -> dict[str, Row]:
        """Id -> row."""
        mine = [row for row in self.rows[stream] if row["_account"] == account and row["_deleted_at"] is None]
        return {row["id"]: row for row in mine}


# The machine ----------------------------------------------------------------------------------------------------------


class Model(RuleBasedStateMachine):
    """A world, its server, one installation, and after each sync the question whether it kept its promise."""

    @initialize(
        seed=st.integers(0, 10**6),
        meetings=st.integers(3, 12),
        accounts=st.integers(1, 3),
        documents=st.integers(1, 12),
        max_limit=st.sampled_from([100, 1, 2, 3, 4, 7]),
        filter_fields=st.just({})
        | st.fixed_dictionaries(
            {},
            optional={
                "meetings": st.sampled_from(["created_at", "updated_at", "end_time"]),
                "action_items": st.sampled_from(["updated_at", "due_date", "completed_at"]),
                "calendar_events": st.just("end_time"),
            },
        ),
        habits=st.fixed_dictionaries(
            {
                "inclusive_end": st.booleans(),
                "unknown_parent": st.sampled_from(["empty", "404"]),
                "rotate": st.booleans(),
            }
        ),
        threads=st.sampled_from([1, 8]),  # one at a time repeats itself exactly
        loss_count=st.sampled_from([50, 2]),
    )
    def begin(
        self,
        seed: int,
        meetings: int,
        accounts: int,
        documents: int,
        max_limit: int,
        filter_fields: dict[str, str],
        habits: dict[str, Any],
        threads: int,
        loss_count: int,
    ) -> None:
        self.open = ExitStack()
        logging.disable()  # thousands of examples would be kept by pytest
        self.open.callback(logging.disable, logging.NOTSET)
        self.world = World(seed=seed, meetings=meetings, accounts=accounts)
        self.names = list(self.world.accounts)
        self.world.delete("context_documents", ids=list(self.world._rows["context_documents"])[documents:])
        limits = {"rate_limit": 1_000_000, "oauth_limit": 1_000_000, "max_limit": max_limit}
        self.sandbox = Watched(self.world, **limits, filter_fields=filter_fields, **habits)
        self.open.callback(self.sandbox.stop)
        self.sandbox.start()
        self.folder = Path(tempfile.mkdtemp(prefix="contio-model-"))
        self.open.callback(shutil.rmtree, self.folder)
        for module, name, value in (
            (client, "IN_FLIGHT", threads),
            (client, "_BACK_OFF", wait_fixed(0.02)),
            (listings, "_BLIND_COUNT", 3),  # a small world has not twenty rows in a window
        ):
            self.open.enter_context(patch.object(module, name, value))
        self.place = Place(self.world, self.sandbox, self.folder)
        self.place.overrides = {"rate_window_seconds": 1, "loss_count": loss_count}
        self.place.add_accounts(signed_in=True)
        self.changes = Changes(self.world, self.sandbox)
        self.chronicle = Chronicle(self.world)
        self.tables: Tables | None = None
        self.doubtful: set[tuple[str, str]] = set()

    def teardown(self) -> None:
        self.open.close()

    # Rules ------------------------------------------------------------------------------------------------------------

    @rule(first=FIRST)
    def good_sync(self, first: list[Change]) -> None:
        """Nothing goes wrong and nothing happens meanwhile: everything is equal, and doing it again changes nothing."""
        self._change(first)
        visible = {(name, row["id"]) for name in self.names for row in self.world.items(name, "context_documents")}
        verify = bool(self._doubtful() & visible)
        report = self._sync(verify_documents=verify, accept_losses=True)
        wrong = {
            (part.account, part.stream): part.listing.reason for part in report.streams if not part.listing.complete
        }
        assert wrong.keys() == self._hopeless(), wrong
        if not wrong and not self._unlisted_events():
            check(self.world, self.place.settings)
        else:
            check_parquet(report.generation.folder, report.generation.database)
        before = self.tables
        again = self._sync(accept_losses=True)
        assert [again.total(name) for name in ("inserted", "updated", "deleted")] == [0, 0, 0]
        assert self.place.asked("/content") == []
        assert self.tables.history == before.history
        assert not again.new_generation

    @rule(first=FIRST, window=WINDOW, accounts=SOME_ACCOUNTS, streams=SOME_STREAMS)
    def sync_window(self, first: list[Change], window: Window, accounts: list[int], streams: list[str]) -> None:
        self._change(first)
        self._sync(window=window, **self._some(accounts, streams))

    @rule(first=FIRST, accounts=SOME_ACCOUNTS, streams=SOME_STREAMS)
    def sync_some(self, first: list[Change], accounts: list[int], streams: list[str]) -> None:
        self._change(first)
        self._sync(**self._some(accounts, streams))

    @rule(
        first=FIRST,
        window=st.just(Window()) | WINDOW,
        accounts=SOME_ACCOUNTS,
        streams=st.just([]) | SOME_STREAMS,
        trouble=st.lists(TROUBLE, max_size=3),
        meanwhile=st.lists(MOMENT, max_size=4),
        heal=st.booleans(),
    )
    def sync_in_trouble(
        self,
        first: list[Change],
        window: Window,
        accounts: list[int],
        streams: list[str],
        trouble: list[Trouble],
        meanwhile: list[Moment],
        heal: bool,
    ) -> None:
        self._change(first)
        some = self._some(accounts, streams)
        self._sync(trouble=trouble, meanwhile=meanwhile, window=window, **some)
        if heal:
            self.good_sync([])

    @rule(
        first=FIRST,
        account=st.integers(0, 2),
        stream=st.sampled_from(TOP),
        shifts=SHIFTS,
        pages=st.lists(st.integers(1, 6), min_size=3, max_size=3, unique=True),
    )
    def sync_a_list_that_shifts(
        self, first: list[Change], account: int, stream: str, shifts: list[int], pages: list[int]
    ) -> None:
        """Between pages rows go at one end of the list and come at the other."""
        meanwhile = [
            Moment("a later page", page, Change("shift", stream, account % len(self.names), by))
            for page, by in zip(sorted(pages), shifts, strict=False)
        ]
        self._change(first)
        self._sync(meanwhile=meanwhile, **self._some([account], [stream]))

    @rule(
        first=FIRST,
        account=st.integers(0, 2),
        stream=st.sampled_from(TOP),
        refusal=st.sampled_from(["503", "waf-403", "html", "reset"]),
        heal=st.booleans(),
    )
    def sync_a_list_that_lies(self, first: list[Change], account: int, stream: str, refusal: str, heal: bool) -> None:
        """The list is empty, which is not true, and nothing can be learned of any row."""
        trouble = [Trouble("list-empty", 1, "as named"), Trouble(refusal, 50, "rows by id")]
        self._change(first)
        self._sync(trouble=trouble, **self._some([account], [stream]))
        if heal:
            self.good_sync([])

    def _change(self, changes: list[Change]) -> None:
        for change in changes:
            self.changes.make(change)

    def _some(self, accounts: Iterable[int], streams: Sequence[str]) -> dict[str, Any]:
        names = {self.names[number % len(self.names)] for number in accounts}
        return {"accounts": sorted(names), "streams": streams}

    # One sync ---------------------------------------------------------------------------------------------------------

    def _sync(
        self,
        *,
        trouble: Sequence[Trouble] = (),
        meanwhile: Sequence[Moment] = (),
        accept_losses: bool = False,
        **options: Any,
    ) -> SyncReport:
        """Sync, with what goes wrong and what happens meanwhile, and see whether it may have left things as it did."""
        overrides = self.place.overrides
        hurry = {"timeout_seconds": 1, "retry_seconds": 0.2} if trouble else {}
        self.place.overrides = overrides | hurry | ({"loss_share": 1} if accept_losses else {})
        faults = [one.fault() for one in trouble]
        self.sandbox.faults = list(faults)
        self.sandbox.sent = {}
        self.sandbox.reset_log()
        counts: Counter[str] = Counter()
        errors: list[BaseException] = []

        def before(request: Request) -> None:
            try:
                self.chronicle.look()
                counts.update(where for where, fits in PLACES.items() if fits(request))
                for moment in meanwhile:
                    if PLACES[moment.where](request) and counts[moment.where] == moment.nth:
                        self.changes.make(moment.change)
                        self.chronicle.look()
            except BaseException as error:
                errors.append(error)
                raise

        self.chronicle.begin()
        self.sandbox.before = before
        try:
            report = self.place.sync(**options)
        finally:
            self.sandbox.before = None
            self.sandbox.faults = []
            self.place.overrides = overrides
        if errors:
            raise errors[0]
        self.chronicle.look()
        for budget in self.place.settings.state_dir.glob("*budget*"):
            budget.unlink()  # which a 429 may have closed
        happened = {one.name for one, fault in zip(trouble, faults, strict=True) if fault.times < one.times}
        self._judge(report, trouble, happened, verified=bool(options.get("verify_documents")))
        return report

    def _judge(self, report: SyncReport, trouble: Sequence[Trouble], happened: set[str], *, verified: bool) -> None:
        """See whether the sync may have left things as it did."""
        before_it, self.tables = self.tables, Tables(report.generation)
        if happened & FALSE_CONTENTS:
            self.doubtful |= {(name, key) for name in self.names for key in self.chronicle.contents}
        self._nothing_is_lost(before_it)
        self._nothing_is_invented()
        self._it_was_worth_its_requests(trouble)
        assert not self.tables.unequal
        for part in report.streams:
            assert part.listing.complete or part.listing.reason
            if verified and part.listing.complete and part.stream == DOCUMENT_CONTENTS.name:
                live = {(part.account, key) for key in self.tables.live(part.account, "context_documents")}
                self.doubtful = self._doubtful() - live
                self.changes.rewritten.clear()
            if part.listing.complete and not happened & FALSE_LISTS:
                self._is_equal(part, report)
            if not trouble and not report.window.start and part.stream in NAMES:
                self._nothing_went_back(part)

    def _doubtful(self) -> set[tuple[str, str]]:
        """Documents whose bytes may be others than their metadata say, until they are verified."""
        return self.doubtful | {(name, key) for name in self.names for key in self.changes.rewritten}

    # What must hold after any sync --------------------------------------------------------------------------------------

    def _nothing_is_lost(self, before: Tables | None) -> None:
        for name in self.names:
            for stream in NAMES:
                known = before.live(name, stream).keys() if before else set()
                lost = (known & self.chronicle.visible(name, stream)) - self.tables.live(name, stream).keys()
                assert not lost, f"{name} {stream}: {lost} can be read all the time"

    def _nothing_is_invented(self) -> None:
        """Each row is a version that the account could read once, and the history says how it became so."""
        for stream in LISTED:
            rows = {(row["_account"], row["id"]): row for row in self.tables.rows[stream.name]}
            assert len(rows) == len(self.tables.rows[stream.name]), f"{stream.name}: an id twice"
            for (account, key), row in rows.items():
                version = self.chronicle.versions.get((account, stream.name, key), {}).get(row["_hash"])
                assert version is not None, f"{account} {stream.name} {key} never was so"
                assert _payload(stream, row) == _payload(stream, expected_row(stream, account, version))
                assert not stream.parent or row["_parent_id"] in self.chronicle.parents[key]
            assert {(account, key) for account, key, *_ in self.tables.history[stream.name]} == rows.keys()
            for account, key, operations, hashes in self.tables.history[stream.name]:
                row = rows[account, key]
                assert (operations[-1] == "delete") == (row["_deleted_at"] is not None), (stream.name, key)
                assert hashes[-1] == row["_hash"]
                assert set(hashes) <= self.chronicle.versions[account, stream.name, key].keys()
                assert _is_history(operations), (stream.name, key, operations)
        for (account, key), content in self.tables.contents.items():
            if content["state"] == "stored" and (account, key) not in self.doubtful:
                assert content["sha256"] in self.chronicle.contents[key]

    def _it_was_worth_its_requests(self, trouble: Sequence[Trouble]) -> None:
        rows = sum(len(rows) for view in self.chronicle.views[:1] for rows in view.values())
        known = sum(len(rows) for rows in self.tables.rows.values())
        bound = 100 + 10 * (rows + known) + 3 * sum(one.times for one in trouble)
        assert len(self.sandbox.requests) <= bound

    def _nothing_went_back(self, part: StreamReport) -> None:
        """What a list has sent last is not older than what is stored."""
        stream, live = stream_named(part.stream), self.tables.live(part.account, part.stream)
        if not stream.version_field or (stream.parent and not part.listing.complete):
            return
        for key in self.chronicle.visible(part.account, part.stream) & live.keys():
            sent = self.sandbox.sent.get((part.account, key), {})
            if not is_broken(sent) and sent.get("updated_at") and live[key]["updated_at"]:
                assert live[key]["updated_at"] >= instant(sent["updated_at"]), (
                    f"{part.stream} {key} is an older version"
                )

    # What complete means ------------------------------------------------------------------------------------------------

    def _is_equal(self, part: StreamReport, report: SyncReport) -> None:
        """What the part covers is equal to the truth; where the world changed meanwhile, what stood still is."""
        if part.stream == DOCUMENT_CONTENTS.name:
            self._contents_are_equal(part.account)
        elif stream_named(part.stream).parent:
            self._children_are_equal(part.account, stream_named(part.stream), report.window)
        else:
            self._list_is_equal(part.account, stream_named(part.stream), report)

    def _list_is_equal(self, account: str, stream: Stream, report: SyncReport) -> None:
        dates: tuple[Any, Any] | None = (report.window.start, report.window.end) if report.window.start else None
        if stream.dates == "required":
            dates = dates or self.place.settings.calendar_range(report.started_at)
        start, end = dates or (None, None)
        live = self.tables.live(account, stream.name)
        by, inclusive = self.sandbox.filter_fields[stream.name], self.sandbox.inclusive_end
        listed = self.world.select(account, stream.name, by=by, start=start, end=end, inclusive_end=inclusive)
        steady = self.chronicle.steady(account, stream.name)
        # Pages of one row have nothing to overlap with: a shift in such a list cannot be noticed.
        blindly = self.sandbox.max_limit == 1 and len(self.chronicle.views) > 1
        for row in listed:
            if row["id"] in steady and not is_broken(row) and not blindly:
                assert row["id"] in live, f"{account} {stream.name} {row['id']} is not there"
                assert live[row["id"]]["_hash"] == self.chronicle.hash(row), f"{account} {stream.name} {row['id']}"
                assert live[row["id"]]["_missing_since"] is None
        doubted = (account, stream.name) in self.tables.false_filters
        for key, row in live.items():
            date = row[stream.date_field]
            inside = not dates or (date is not None and dates[0] <= date < dates[1])
            if inside and not (dates and (row["_window_blind"] or doubted)):
                self._is_now(account, stream, key, row)

    def _children_are_equal(self, account: str, stream: Stream, window: Window) -> None:
        steady, live = self.chronicle.steady(account, stream.name), self.tables.live(account, stream.name)
        for parent, meeting in self.tables.live(account, stream.parent or "").items():
            date = meeting["start_time"]
            if window.start and window.end and not (date and window.start <= date < window.end):
                continue
            for key, seen in steady.items():
                if seen.meeting == parent and not is_broken(seen.row):
                    assert key in live, f"{account} {stream.name} {key} is not there"
                    assert live[key]["_hash"] == self.chronicle.hash(seen.row)
                    assert (live[key]["_parent_id"], live[key]["_missing_since"]) == (parent, None)
            for key, row in live.items():
                if row["_parent_id"] == parent:
                    self._is_now(account, stream, key, row)

    def _is_now(self, account: str, stream: Stream, key: str, row: Row) -> None:
        """The live row is a version that the account could read during this sync, unless that was a broken one."""
        seen = [rows[key].row for rows in self.chronicle.during(account, stream.name) if key in rows]
        assert seen, f"{account} {stream.name} {key} could not be read any more"
        assert any(is_broken(one) or self.chronicle.hash(one) == row["_hash"] for one in seen), f"{stream.name} {key}"

    def _contents_are_equal(self, account: str) -> None:
        held_back = {"pending": "waiting", "processing": "waiting", "error": "error"}
        steady = self.chronicle.steady(account, "context_documents")
        for key, row in self.tables.live(account, "context_documents").items():
            if key in steady and self.chronicle.hash(steady[key].row) == row["_hash"]:
                content = self.tables.contents[account, key]
                assert content["state"] == held_back.get(row["file_status"], "stored")
                file = self.world.file(account, steady[key].meeting, key)
                if content["state"] == "stored" and (account, key) not in self._doubtful():
                    assert content["sha256"] == self.chronicle.digest(file), f"{account} {key}"

    # What a good sync cannot do -------------------------------------------------------------------------------------------

    def _hopeless(self) -> set[tuple[str, str]]:
        """Where rows break their promise: more than one in a hundred, or one without an id."""
        found = set()
        for name in self.names:
            for stream in NAMES:
                listed = self._listed(name, stream)
                broken = [row for row in listed if is_broken(row)]
                if len(broken) > len(listed) / 100 or any(row.get("id") is None for row in broken):
                    found.add((name, stream))
            if (name, "meetings") in found:
                found.add((name, "context_documents"))
        return found

    def _listed(self, account: str, stream: str) -> list[Row]:
        if stream_named(stream).dates != "required":
            return self.world.items(account, stream)
        start, end = self.place.settings.calendar_range(FIRST_DAY)
        by, inclusive = self.sandbox.filter_fields[stream], self.sandbox.inclusive_end
        return self.world.select(account, stream, by=by, start=start, end=end, inclusive_end=inclusive)

    def _unlisted_events(self) -> bool:
        """Whether some events are in no range by either of their dates: they stay as they were seen last."""
        return any(
            {row["id"] for row in self._listed(name, "calendar_events")}
            != {row["id"] for row in self.world.items(name, "calendar_events")}
            or self.sandbox.filter_fields["calendar_events"] != "start_time"
            for name in self.names
        )


def _parquet_is_equal(connection: duckdb.DuckDBPyConnection, table: Table, folder: Path) -> bool:
    """Whether the files hold the rows of the table; quicker than truth.check_parquet, which looks at each."""
    files = f"read_parquet('{folder}/parquet/raw/{table.name}/month=*/part*.parquet', hive_partitioning = false)"
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    counts = f"SELECT count(*), sum(hash({columns})::HUGEINT) FROM"
    found = connection.execute(f"{counts} {table.full_name} UNION ALL {counts} {files}").fetchall()
    return found[0] == found[1]


def _payload(stream: Stream, row: Row) -> Row:
    """What one version of the row consists of, without where it was listed."""
    return {column.name: row[column.name] for column in stream.payload_columns if column.name != "_parent_id"}


def _is_history(operations: list[str]) -> bool:
    """Whether these can follow each other: a row is inserted once, and after a deletion only comes back."""
    return operations[0] == "insert" and all(
        following == "undelete" if before == "delete" else following in {"update", "delete"}
        for before, following in pairwise(operations)
    )


def case(name: str, examples: int) -> type[TestCase]:
    """A test of its own, so that workers share the time; each has other examples, for its name is their seed."""
    made: type[TestCase] = type(name, (Model,), {}).TestCase
    made.settings = settings(  # type: ignore[attr-defined]
        max_examples=examples,
        derandomize=not ON_DEMAND,
        stateful_step_count=4,
        deadline=None,
        print_blob=True,
        suppress_health_check=[
            HealthCheck.too_slow,  # an example is a server and several syncs
            HealthCheck.data_too_large,
        ],
    )
    return made


EXAMPLES = max(int(ON_DEMAND or 30) // 10, 1)
(
    TestModel0,
    TestModel1,
    TestModel2,
    TestModel3,
    TestModel4,
    TestModel5,
    TestModel6,
    TestModel7,
    TestModel8,
    TestModel9,
) = (case(f"Model{number}", EXAMPLES) for number in range(10))
