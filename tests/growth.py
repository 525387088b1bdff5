"""`make growth`: a year of nights in an hour, to see what grows that should not: files, memory, time.

    python tests/growth.py [--meetings 1000000] [--action-items 2000000] [--nights 1000] [--publish-every 20] [--json FILE]

No HTTP and no clock: rows are made up, decoded, committed and published as a sync does it, first all, then night after night with
some new rows, some changed ones (nine of ten in the window of the last 7 days, the others up to 90 days old) and some that are
gone, each night under the time that it would have. The working file is opened anew each night; each checkpoint is a process of
its own, so that its memory is its own. Read the table so:

  rows, history     stored in all, in thousands: of the lists; of their histories
  windows, runs     rows of ops.windows and ops.runs
  file, free        MB of the working file, and of its blocks that hold nothing
  gen. file         MB of the DuckDB file of the newest generation
  Parquet, parts    MB and number of its Parquet files
  new, parts, due   MB of Parquet that one publish wrote (hard links not counted), in how many files, and how many months of
                    tables there were in which any row had changed: more files than due is work for nothing
  kept              MB on disk of all generations that are kept, hard links counted once
  commit, publish   seconds of CPU: of a night's commits, of one publish; `wall` is that of a publish
  RSS               the most memory of the process, in MB

Then it says of each column what it grew like, from the third line on. It asserts nothing about time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench import table, tell
from load_server import DAYS, Row, action_item, identity, meeting

from contio_pipeline import __version__
from contio_pipeline.generations import Generation
from contio_pipeline.publish import publish
from contio_pipeline.rows import Batch, decode
from contio_pipeline.streams import Stream, stream_named
from contio_pipeline.warehouse import Listing, Scope, Warehouse, Window

ACCOUNT = "growth"
ZERO = datetime(2026, 1, 1, tzinfo=UTC)
"""Midnight before the first sync."""

AT = timedelta(hours=2, minutes=15)
BACK, AHEAD = 7, 31
"""Days of a night's window."""

OLD = 90
"""Days: what changes is not older."""

GONE_AFTER = 3
"""Days after which the first few rows of each day are gone."""

A_BATCH = 1000
MB = 2**20

MAKES: dict[str, Callable[[int, datetime, int], Row]] = {
    "meetings": meeting,
    "action_items": lambda number, created, version: action_item(number, created, identity(1, number // 2), version),
}
COLUMNS = {
    "night": "",
    "rows": "rows",
    "history": "history",
    "windows": "windows",
    "runs": "runs",
    "file": "file",
    "free": "free",
    "generation_file": "gen. file",
    "parquet": "Parquet",
    "parts": "parts",
    "new": "new",
    "new_parts": "parts",
    "due": "due",
    "kept": "kept",
    "commit": "commit",
    "publish": "publish",
    "wall": "wall",
    "rss": "RSS",
}

# What there is on which day -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """The rows of one stream: each is known by its number, days count from the first night."""

    stream: Stream
    bulk: int
    new: int
    changed: int
    gone: int

    def day(self, day: int) -> range:
        """The numbers of the rows of a day."""
        if day >= 0:
            return range(self.bulk + day * self.new, self.bulk + (day + 1) * self.new)
        return range(self.bulk * (day + DAYS) // DAYS, self.bulk * (day + DAYS + 1) // DAYS)

    def day_of(self, number: int) -> int:
        """The day of a row."""
        if number >= self.bulk:
            return (number - self.bulk) // self.new
        day = number * DAYS // self.bulk - DAYS
        return next(one for one in (day, day - 1, day + 1) if number in self.day(one))

    def goes(self, number: int) -> bool:
        """Whether the row is one of those that will be gone."""
        return number - self.day(self.day_of(number)).start < self.gone

    def changes(self, night: int) -> Iterator[int]:
        """The numbers of the rows that change in the day before a night."""
        dice = random.Random(night)
        lately, before = (range(self.day(first).start, self.day(last).stop) for first, last in _spans(night))
        old = self.changed // 10 if before else 0
        picked = {*_pick(dice, lately, self.changed - old), *_pick(dice, before, old)}
        return (number for number in sorted(picked) if not self.goes(number))

    def batch(self, numbers: Sequence[int], version: int = 0) -> list[Batch]:
        """Rows as a list would hold them."""
        make, found = MAKES[self.stream.name], []
        for begin in range(0, len(numbers), A_BATCH):
            items = [make(number, self._moment(number), version) for number in numbers[begin : begin + A_BATCH]]
            found.append(decode(self.stream.columns, items))
        return found

    def _moment(self, number: int) -> datetime:
        day = self.day_of(number)
        rows = self.day(day)
        return ZERO + timedelta(days=day + (number - rows.start) / len(rows))


def _spans(night: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last day of what may change: lately, and before that."""
    return (night - BACK, night - 1), (max(night - OLD, -DAYS), night - BACK - 1)


def _pick(dice: random.Random, numbers: range, count: int) -> list[int]:
    return dice.sample(numbers, min(count, len(numbers)))


@dataclass
class Listed:
    """What a night's window of one stream holds: made once, kept for as many nights as it lies in the window."""

    made: Made
    days: dict[int, tuple[list[Batch], list[Batch]]] = field(default_factory=dict)
    """Day -> rows that stay, rows that will be gone."""
    changed: dict[tuple[int, int], list[Batch]] = field(default_factory=dict)
    """Night and day -> rows of that day in the version of that night."""
    old: list[Batch] = field(default_factory=list)
    """Rows before the window that changed tonight."""

    def move_to(self, night: int) -> None:
        """Make what is not there yet, and forget what is over."""
        first = night - BACK
        for day in range(first, night):
            if day not in self.days:
                rows = self.made.day(day)
                stays, goes = rows[self.made.gone :], rows[: self.made.gone]
                self.days[day] = self.made.batch(stays), self.made.batch(goes)
        self.days = {day: batches for day, batches in self.days.items() if day >= first}
        known = {of for of, _ in self.changed}
        for then in range(max(1, first), night + 1):
            if then not in known:
                self._change(then, tonight=then == night)
        self.changed = {key: batches for key, batches in self.changed.items() if key[1] >= first and key[0] >= first}

    def _change(self, night: int, *, tonight: bool) -> None:
        by_day: dict[int, list[int]] = {}
        for number in self.made.changes(night):
            by_day.setdefault(self.made.day_of(number), []).append(number)
        self.changed[night, night] = []  # seen
        before = []
        for day, numbers in by_day.items():
            if day >= night - BACK:
                self.changed[night, day] = self.made.batch(numbers, night)
            else:
                before += numbers
        if tonight:
            self.old = self.made.batch(before, night)

    def batches(self, night: int) -> Iterator[Batch]:
        """All that the window holds."""
        for day, (stays, goes) in self.days.items():
            yield from stays
            if night - day <= GONE_AFTER:
                yield from goes
        for _, batches in sorted(self.changed.items()):
            yield from batches


# Nights -------------------------------------------------------------------------------------------------------------------


@dataclass
class Nights:
    """Some nights in one process, and what they cost."""

    folder: Path
    made: list[Made]
    commit: float = 0.0
    publishes: list[dict[str, float]] = field(default_factory=list)

    def bulk(self) -> None:
        """The first sync: everything, one listing for each stream."""
        now = ZERO + AT  # in the month of the first nights, as everywhere
        with self._open() as warehouse:
            for made in self.made:
                stage = warehouse.stage(made.stream)
                stage.begin_pass()
                for day in range(-DAYS, 0):
                    for batch in made.batch(made.day(day)):
                        stage.add(batch)
                listing = Listing(total=stage.distinct())
                stage.accept()
                warehouse.commit(stage, ACCOUNT, Window(), listing, Scope(undated=True), "bulk", now)
            self._run(warehouse, "bulk", now)
            self._publish(warehouse, now)

    def nights(self, first: int, last: int, publish_every: int) -> None:
        """One night after the other."""
        listed = [Listed(made) for made in self.made]
        for night in range(first, last + 1):
            for one in listed:
                one.move_to(night)
            with self._open() as warehouse:
                now = ZERO + timedelta(days=night) + AT
                begun = time.process_time()
                for one in listed:
                    self._list(warehouse, one, night, now)
                self._run(warehouse, f"night {night}", now)
                self.commit += time.process_time() - begun
                if night % publish_every == 0 or night in (1, last):
                    self._publish(warehouse, now + timedelta(minutes=10))

    def _open(self) -> Warehouse:
        return Warehouse(self.folder, origin=None)

    def _list(self, warehouse: Warehouse, listed: Listed, night: int, now: datetime) -> None:
        """A window; the rows that it lacks are gone; rows before it that changed are read by id."""
        stream, run = listed.made.stream, f"night {night}"
        window = Window(ZERO + timedelta(days=night - BACK), ZERO + timedelta(days=night + AHEAD))
        assert window.start
        assert window.end
        stage = warehouse.stage(stream)
        stage.begin_pass()
        for batch in listed.batches(night):
            stage.add(batch)
        listing = Listing(total=stage.distinct())
        stage.accept()
        scope = Scope(dates=(window.start, window.end))
        changes = warehouse.commit(stage, ACCOUNT, window, listing, scope, run, now)
        if not listing.complete:
            raise RuntimeError(f"night {night}: {listing.reason}")
        gone = dict.fromkeys(changes.missing, "not_found")
        if gone:
            warehouse.settle(stream, ACCOUNT, gone=gone, run_id=run, now=now)
        stage = warehouse.stage(stream)
        for batch in listed.old:
            stage.add(batch)
        warehouse.commit(stage, ACCOUNT, None, Listing(complete=False), Scope(), run, now)

    def _run(self, warehouse: Warehouse, run_id: str, now: datetime) -> None:
        warehouse.put_run(
            {"run_id": run_id, "started_at": now, "finished_at": now, "version": __version__, "complete": True}
        )

    def _publish(self, warehouse: Warehouse, now: datetime) -> None:
        last = max((one["at"] for one in _published(self.folder)), default=0.0)
        due = sum(_months_changed(warehouse, made.stream, datetime.fromtimestamp(last, UTC)) for made in self.made)
        cpu, wall = time.process_time(), time.monotonic()
        generation, _new = publish(warehouse, now)
        cost = {"publish": time.process_time() - cpu, "wall": time.monotonic() - wall, "due": due}
        self.publishes.append(cost | measured_generation(generation) | {"at": now.timestamp()})
        with (self.folder.parent / "published").open("a") as log:
            log.write(json.dumps(self.publishes[-1]) + "\n")

    def found(self, night: int, nights: int) -> dict[str, Any]:
        """What there is now, and what it cost since the last checkpoint."""
        with self._open() as warehouse:

            def count(name: str) -> int:
                return int(warehouse.query(f"SELECT count(*) AS n FROM {name}")[0]["n"])

            blocks = warehouse.query("SELECT * FROM pragma_database_size() WHERE database_name = 'warehouse'")[0]
            found: dict[str, Any] = {
                "night": night,
                "rows": sum(count(made.stream.table.full_name) for made in self.made) / 1e3,
                "history": sum(count(made.stream.history.full_name) for made in self.made) / 1e3,
                "windows": count("ops.windows"),
                "runs": count("ops.runs"),
                "free": blocks["free_blocks"] * blocks["block_size"] / MB,
                "commit": self.commit / max(1, nights),
                "nights": nights,
            }
        found["file"] = (self.folder / "warehouse.duckdb").stat().st_size / MB
        found["kept"] = kept(self.folder / "generations") / MB
        last = self.publishes[-1]
        found |= {name: last[name] for name in ("generation_file", "parquet", "parts", "new", "new_parts", "due")}
        usual = self.publishes[:-1] if len(self.publishes) > 1 else self.publishes  # the last may be one out of the row
        for name in ("publish", "wall"):
            found[name] = sum(one[name] for one in usual) / len(usual)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return found | {"rss": peak * (1 if sys.platform == "darwin" else 1024) / MB}


def _published(folder: Path) -> list[dict[str, float]]:
    log = folder.parent / "published"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _months_changed(warehouse: Warehouse, stream: Stream, since: datetime) -> int:
    """Months of the stream's table and of its past in which a row changed."""
    months = f"count(DISTINCT strftime({stream.date_field}, '%Y-%m'))"
    changed = "_changed_at > $1 OR _deleted_at > $1 OR _missing_since > $1"
    [rows] = warehouse.query(f"SELECT {months} AS n FROM {stream.table.full_name} WHERE {changed}", [since])
    replaced = f"SELECT id FROM {stream.history.full_name} WHERE _changed_at > $1 AND _operation <> 'insert'"
    [past] = warehouse.query(f"SELECT {months} AS n FROM {stream.past.full_name} WHERE id IN ({replaced})", [since])
    return int(rows["n"] + past["n"])


def measured_generation(generation: Generation) -> dict[str, float]:
    """Sizes in MB; a file that only this generation has names of is a new one."""
    named = [path.stat() for path in (generation.folder / "parquet").rglob("*.parquet")]
    names = Counter(part.st_ino for part in named)
    parts = list({part.st_ino: part for part in named}.values())
    new = [part.st_size for part in parts if part.st_nlink == names[part.st_ino]]
    return {
        "generation_file": generation.database.stat().st_size / MB,
        "parquet": sum(part.st_size for part in parts) / MB,
        "parts": len(parts),
        "new": sum(new) / MB,
        "new_parts": len(new),
    }


def kept(folder: Path) -> int:
    """Bytes of all files below the folder, each counted once however many names it has."""
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({one.st_ino: one.st_size for one in files}.values())


# What it all means --------------------------------------------------------------------------------------------------------

ALIKE = 0.1
"""What differs by less than this share is the same."""


def verdict(column: str, checkpoints: list[dict[str, Any]]) -> str:
    """What a column grew like."""
    values = [one[column] for one in checkpoints]
    nights = [one["night"] for one in checkpoints]
    middle, end = len(values) // 2, len(values) - 1

    def slope(begin: int, end: int) -> float:
        return float((values[end] - values[begin]) / max(1, nights[end] - nights[begin]))

    first, last = values[0], values[-1]
    if max(values) - min(values) <= ALIKE * max(values):
        return "flat"
    if abs(last - first) <= ALIKE * max(values):
        return f"no trend, between {min(values):,.3g} and {max(values):,.3g}"
    for driver in ("rows", "history"):
        known = checkpoints[-1][driver] / checkpoints[0][driver]
        if column != driver and first and known > 1 + ALIKE and abs(last / first / known - 1) <= ALIKE:
            return f"in proportion to {driver}"
    if last < first:
        how = "shrinks"
    elif values != sorted(values):
        how = "uneven"
    elif slope(middle, end) > 1.5 * slope(0, middle):
        how = "FASTER THAN LINEAR"
    else:
        how = "levels off" if slope(middle, end) < slope(0, middle) / 2 else "linear"
    return f"{how}, {slope(0, end):+.3g} a night"


def report(found: dict[str, Any]) -> str:
    """What a person reads."""
    checkpoints = found["checkpoints"]

    def shown(name: str, value: float) -> str:
        digits = 2 if name in {"commit", "publish", "wall"} else 0
        return f"{value:,.{digits}f}"

    rows = [[shown(name, one[name]) for name in COLUMNS] for one in checkpoints]
    later = checkpoints[2:]  # the first two are those of a fresh file
    verdicts = (
        [(name.replace("_", " "), verdict(name, later)) for name in COLUMNS if name != "night"] if later[2:] else []
    )
    anew = found["written_anew"]
    lines = [
        table(list(COLUMNS.values()), rows),
        "\n".join(f"{name + ':':17} {told}" for name, told in verdicts),
        f"The working file, written anew: {anew:,.0f} MB, {anew / checkpoints[-1]['file']:.0%} of what it is.",
    ]
    return "\n\n".join(line for line in lines if line)


# The whole ----------------------------------------------------------------------------------------------------------------


def streams(options: argparse.Namespace) -> list[Made]:
    """The two lists that grow."""
    return [
        Made(stream_named(name), bulk, max(1, round(bulk * options.new_share)), options.changed, options.gone)
        for name, bulk in (("meetings", options.meetings), ("action_items", options.action_items))
    ]


def part(options: argparse.Namespace, folder: Path, first: int, last: int) -> dict[str, Any]:
    """Nights in this process; night 0 is the first sync."""
    nights = Nights(folder, streams(options))
    if last == 0:
        nights.bulk()
    else:
        nights.nights(first, last, options.publish_every)
    return nights.found(last, last - first + 1)


def grow(options: argparse.Namespace, arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """Everything, a process for each checkpoint; as it goes to --json."""
    steps = max(1, options.nights // options.checkpoints)
    ends = [0, 1, *range(steps, options.nights, steps), options.nights]
    ends = sorted(set(ends))
    checkpoints = []
    for before, last in zip([-1, *ends], ends, strict=False):
        begun = time.monotonic()
        command = [sys.executable, __file__, *arguments, "--part", str(folder), str(before + 1), str(last)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        checkpoints.append(json.loads(done.stdout))
        tell(f"night {last}: {time.monotonic() - begun:.0f} s")
    with Warehouse(folder, origin=None) as warehouse:
        warehouse.rewrite()
    anew = (folder / "warehouse.duckdb").stat().st_size / MB
    shown = {name: str(value) for name, value in vars(options).items()}
    return {"options": shown, "checkpoints": checkpoints, "publishes": _published(folder), "written_anew": anew}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--meetings", type=int, default=50_000, help="stored by the first sync, of one year (%(default)s)")
    add("--action-items", type=int, default=100_000, help="the same (%(default)s)")
    add("--nights", type=int, default=60, help="after the first sync (%(default)s)")
    add(
        "--new-share", type=float, default=0.001, help="new rows of a night, as a share of the first ones (%(default)s)"
    )
    add("--changed", type=int, default=200, help="changed rows of a night, of each list (%(default)s)")
    add("--gone", type=int, default=5, help="rows of a day that will be gone, of each list (%(default)s)")
    add("--publish-every", type=int, default=1, metavar="K", help="publish each K-th night (%(default)s)")
    add("--checkpoints", type=int, default=6, help="lines of the table, besides the first two (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured to this file")
    add("--part", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if min(options.meetings, options.action_items) < DAYS * (options.gone + 1):
        parser.error(f"there must be more rows than {DAYS * (options.gone + 1)}: a few on each day of the first year")
    if min(options.nights, options.publish_every, options.checkpoints) < 1:
        parser.error("--nights, --publish-every and --checkpoints must be 1 or more")
    return options


def main() -> int:
    """Grow and print."""
    options = parse(sys.argv[1:])
    if options.part:
        folder, first, last = options.part
        print(json.dumps(part(options, Path(folder), int(first), int(last))))
        return 0
    os.umask(0o077)
    with tempfile.TemporaryDirectory(prefix="contio-growth-") as folder:
        found = grow(options, sys.argv[1:], Path(folder) / "data")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
