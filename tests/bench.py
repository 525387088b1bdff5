"""`make bench`: what each kind of run costs, against a bare fetch of the very same pages on the same machine.

    python tests/bench.py [--meetings 100000] [--latency-ms 40] [--rate 1000/3] [--profile] [--json FILE]

Seconds of one machine say little about another; ratios do. So each path is run as a command of its own, and then the pages that
it asked for are fetched once more by nothing but httpx and json, which throws them away: `x bare` is the pipeline's CPU time over
that. Both are whole processes, with their start. Read a table so:

  requests, least   what was sent, and the fewest that could be: full pages of 100, one for the profile, one for each meeting
                    whose documents are listed, one for each document that is new
  rows              of the lists that were read, and documents downloaded; for `publish` all rows that are stored
  wall, CPU         seconds; CPU is user and system time of the process and all that it started
  us/row, us/req    CPU in millionths of a second
  RSS               the most memory that a process of it had, in MB
  bare              CPU of the bare fetch

It asserts nothing about time. With --rate, `used` is the share of the requests that the limit allows which were sent in the whole
windows from the first request on: what is missing from 100 % is time in which the pipeline did something else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import load_server

HERE = Path(__file__).resolve()
ACCOUNT = "bench"
NO_RATE = (1000, 0.5)
"""What the pipeline is told where the server sets no limit: never in its way, and its budget holds as few slots as usual."""

THREADS = 4
"""Of the bare fetch: as many requests at once as the pipeline sends."""

SHOWN = 15
PYTHON = "Python (compiled)"
Function = tuple[str, int, str]
"""As the profiler names one: file, line, name."""

DAYS = 7

# Measuring ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Of a process and all that it waited for: seconds, seconds, MB."""

    wall: float
    cpu: float
    rss: float


def measured(command: Sequence[str], folder: Path, environment: dict[str, str], given: str = "") -> Cost:
    """Run a command and wait for it.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    source, said = folder / "given", folder / "said"
    source.write_text(given)
    with source.open() as stdin, said.open("w+") as log:
        begun = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdin=stdin, stdout=log, stderr=log, cwd=folder)
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[2:]} ended with {process.returncode}:\n{said.read_text()[-3000:]}")
    size = 2**20 if sys.platform == "darwin" else 2**10
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / size)


def cores() -> tuple[int | None, int | None]:
    """One processor for the client and one for the server, where there are two and the system lets one choose."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    mine = sorted(os.sched_getaffinity(0))
    return (mine[0], mine[1]) if len(mine) > 1 else (None, None)


class Load(AbstractContextManager["Load"]):
    """The load server, in a process of its own."""

    def __init__(self, options: argparse.Namespace, core: int | None = None) -> None:
        limit, window = options.rate
        command = [sys.executable, str(HERE.with_name("load_server.py"))]
        for name in ("meetings", "action_items", "events", "documents", "latency_ms"):
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        command += ["--end", options.end.isoformat(), "--rate", f"{limit}/{window}" if limit else "off"]
        command += [] if core is None else ["--core", str(core)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        ready = json.loads(self._process.stdout.readline() or "{}")
        if not ready:
            raise RuntimeError("the load server did not start")
        self.url, self.token = ready["url"], ready["token"]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # it ends by that
        self._process.stdout.close()
        try:
            self._process.wait(10)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def ask(self, what: str) -> Any:
        """See `load_server.Server.control`."""
        with urllib.request.urlopen(f"{self.url}/_load/{what}", timeout=60) as answer:  # noqa: S310 - our own
            return json.load(answer)


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        name: as the table has it.
        command: of contio-pipeline.
        before: what happens first: `change` of what the server holds, `touch` of what is stored.
    """

    name: str
    command: tuple[str, ...]
    before: str = ""


@dataclass
class Installation:
    """Folders of one installation, its settings, and the account in it."""

    folder: Path
    load: Load
    options: argparse.Namespace
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        limit, window = self.options.rate if self.options.rate[0] else NO_RATE
        end: datetime = self.options.end
        mine = {
            "API_URL": self.load.url,
            "TOKEN_URL": f"{self.load.url}/oauth2/token",
            "CLIENT_ID": load_server.CLIENT_ID,
            "CLIENT_SECRET": load_server.CLIENT_SECRET,
            "DATA_DIR": str(self.folder / "data"),
            "STATE_DIR": str(self.folder / "state"),
            "RATE_LIMIT": str(limit),
            "RATE_WINDOW_SECONDS": str(window),
            "CALENDAR_START": f"{end - timedelta(days=load_server.DAYS + 1):%Y-%m-%d}",
            "CALENDAR_END": f"{end + timedelta(days=2):%Y-%m-%d}",
        }
        usual = {name: value for name, value in os.environ.items() if not name.startswith("CONTIO_")}
        self.environment = usual | {f"CONTIO_{name}": value for name, value in mine.items()}

    def run(self, *command: str, given: str = "") -> Cost:
        """One command of contio-pipeline."""
        return measured([sys.executable, "-m", "contio_pipeline", *command], self.folder, self.environment, given)

    def mode(self, *command: str, given: str = "") -> Cost:
        """This script as another process: see `MODES`."""
        return measured([sys.executable, str(HERE), *command], self.folder, self.environment, given)

    def add_account(self) -> None:
        """As after a login."""
        self.run("accounts", "add", ACCOUNT, "--refresh-token-stdin", given=f"{self.load.ask('login')}\n")

    def prepare(self, path: Kind) -> int:
        """What happens before a run, and is not measured; returns how many rows are stored, where it looks."""
        stored = 0
        if path.before == "change":
            self.load.ask("change?share=0.01")
        elif path.before == "touch":
            self.mode("--touch", str(self.folder / "data"))
            stored = int((self.folder / "said").read_text())
        if self.options.rate[0]:
            time.sleep(self.options.rate[1])  # the budget remembers
        self.load.ask("reset")
        return stored


def paths(end: datetime) -> list[Kind]:
    """All kinds of runs, in the order in which one installation goes through them."""
    days = (f"{end - timedelta(days=DAYS):%Y-%m-%d}", f"{end + timedelta(days=1):%Y-%m-%d}")
    window = ("sync", "--since", days[0], "--until", days[1])
    lists = ("meetings", "action_items", "calendar_events")
    return [
        Kind("first sync", ("sync", *(word for name in lists for word in ("--stream", name)))),
        Kind("documents", ("sync", "--stream", "context_documents", "--stream", "document_contents")),
        Kind("night", ("sync", "--night")),
        Kind("night, 1 % changed", ("sync", "--night"), "change"),
        Kind("7 days", window),
        Kind("7 days, 1 % changed", window, "change"),
        Kind("publish", ("publish",), "touch"),
    ]


def measure(path: Kind, place: Installation) -> dict[str, Any]:
    """One run of a path, and the bare fetch of what it asked for."""
    stored = place.prepare(path)
    cost = place.run(*path.command)
    counts = place.load.ask("counts")
    found: dict[str, Any] = {**asdict(cost), **counts, "server_cpu": counts["cpu"], "cpu": cost.cpu, "bare": None}
    targets = place.load.ask("targets")
    if targets:
        limit = place.options.rate[0]
        place.load.ask("reset?limit=0")
        bare = place.mode("--fetch", place.load.url, place.load.token, given="\n".join(targets))
        place.load.ask(f"reset?limit={limit}")
        found["bare"] = asdict(bare)
    else:
        found["rows"] = stored
    return found


def summed(path: Kind, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each number, and what follows from them."""
    last = runs[-1]
    found: dict[str, Any] = {"name": path.name, "command": " ".join(path.command)}
    for name in ("requests", "least", "rows", "wall", "cpu", "rss", "server_cpu", "bytes"):
        found[name] = statistics.median(run[name] for run in runs)
    found["bare"] = last["bare"] and {
        name: statistics.median(run["bare"][name] for run in runs) for name in ("wall", "cpu", "rss")
    }
    shares = [run["used"] for run in runs if run["used"] is not None]
    return found | {
        "kinds": last["kinds"],
        "lists": last["lists"],
        "us_per_row": found["cpu"] / found["rows"] * 1e6 if found["rows"] else None,
        "us_per_request": found["cpu"] / found["requests"] * 1e6 if found["requests"] else None,
        "times_bare": found["cpu"] / found["bare"]["cpu"] if found["bare"] else None,
        "times_least": found["requests"] / found["least"] if found["least"] else None,
        "refused": max(run["refused"] for run in runs),
        "peak_in_flight": max(run["peak_in_flight"] for run in runs),
        "most_in_a_window": max(run["most_in_a_window"] for run in runs),
        "used": statistics.median(shares) if shares else None,
        "runs": runs,
    }


# The whole ----------------------------------------------------------------------------------------------------------------


def bench(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that was asked for, as it goes to --json."""
    client, server = cores()
    if client is not None:
        os.sched_setaffinity(0, {client})  # what is started inherits it
    every = paths(options.end)
    todo = [path for path in every if not options.only or path.name in options.only]
    every = every[: every.index(todo[-1]) + 1]  # what comes later stands on what comes before
    runs: dict[str, list[dict[str, Any]]] = {path.name: [] for path in todo}
    profiles = {}
    with Load(options, server) as load:
        for repeat in range(options.repeat):
            place = _installation(folder / str(repeat), load, options)
            for path in every:
                if path in todo:
                    runs[path.name].append(measure(path, place))
                    tell(f"{repeat + 1} of {options.repeat}: {path.name}, {runs[path.name][-1]['wall']:.1f} s")
                else:
                    place.prepare(path)
                    place.run(*path.command)
        if options.profile:
            place = _installation(folder / "profiled", load, options)
        for path in every if options.profile else ():
            place.prepare(path)
            place.mode("--profiled", str(folder / "profile"), *path.command)
            if path in todo:
                profiles[path.name] = where(folder / "profile")
                tell(f"profiled: {path.name}")
    return {
        "options": {name: str(value) for name, value in vars(options).items()},
        "machine": {"python": platform.python_version(), "system": platform.platform(), "pinned": client is not None},
        "paths": [summed(path, runs[path.name]) for path in todo],
        "profiles": profiles,
    }


def _installation(folder: Path, load: Load, options: argparse.Namespace) -> Installation:
    folder.mkdir()
    place = Installation(folder, load, options)
    place.add_account()
    return place


def tell(text: str) -> None:
    """How it goes on."""
    print(text, file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _shown(value: float | None, form: str = ",.0f") -> str:
    return "-" if value is None else format(value, form)


def report(found: dict[str, Any]) -> str:
    """What a person reads."""
    told = [
        table(
            (
                "",
                "requests",
                "least",
                "x least",
                "rows",
                "wall s",
                "CPU s",
                "us/row",
                "us/req",
                "RSS MB",
                "bare s",
                "x bare",
            ),
            [
                (
                    one["name"],
                    _shown(one["requests"]),
                    _shown(one["least"]),
                    _shown(one["times_least"], ".3f"),
                    _shown(one["rows"]),
                    _shown(one["wall"], ".2f"),
                    _shown(one["cpu"], ".2f"),
                    _shown(one["us_per_row"]),
                    _shown(one["us_per_request"]),
                    _shown(one["rss"]),
                    _shown(one["bare"] and one["bare"]["cpu"], ".2f"),
                    _shown(one["times_bare"], ".2f"),
                )
                for one in found["paths"]
            ],
        ),
        table(
            ("", "used", "429", "most in a window", "peak in flight", "server CPU s", "asked for"),
            [
                (
                    one["name"],
                    _shown(one["used"], ".1%"),
                    _shown(one["refused"]),
                    _shown(one["most_in_a_window"]),
                    _shown(one["peak_in_flight"]),
                    _shown(one["server_cpu"], ".2f"),
                    ", ".join(f"{count:,} {kind}" for kind, count in one["kinds"].items()) or "-",
                )
                for one in found["paths"]
            ],
        ),
    ]
    for name, profile in found["profiles"].items():
        own = [(f"{line['own']:.3f}", f"{line['calls']:,}", line["where"]) for line in profile["functions"]]
        modules = [(f"{line['own']:.3f}", f"{line['share']:.0%}", line["module"]) for line in profile["modules"]]
        told += [
            f"{name}: {profile['total']:.2f} s of CPU under the profiler, which makes small functions dearer than they are",
            table(("own s", "calls", "function"), own),
            table(("own s", "share", "module"), modules),
        ]
    return "\n\n".join(told)


# Profiles -----------------------------------------------------------------------------------------------------------------


def where(file: Path) -> dict[str, Any]:
    """Where the time of a profiled run went: the dearest functions by their own time, and all modules that matter."""
    import pstats

    stats: dict[Function, tuple[int, int, float, float, dict[Function, tuple[int, int, float, float]]]]
    stats = pstats.Stats(str(file)).stats  # type: ignore[attr-defined]
    total = sum(one[2] for one in stats.values()) or 1.0
    dearest = sorted(stats.items(), key=lambda one: -one[1][2])[:SHOWN]
    modules: dict[str, float] = {}
    for function, (_, _, own, _, callers) in stats.items():
        spent = {_module(*function): own}
        if PYTHON in spent and callers:  # what Python's own types take is their caller's doing
            spent = {}
            for caller, (_, _, part, _) in callers.items():
                spent[_module(*caller)] = spent.get(_module(*caller), 0) + part
        for module, seconds in spent.items():
            modules[module] = modules.get(module, 0) + seconds
    return {
        "total": total,
        "functions": [
            {"where": f"{_module(*function)}: {function[2]}", "calls": calls, "own": own}
            for function, (calls, _, own, _, _) in dearest
        ],
        "modules": [
            {"module": module, "own": own, "share": own / total}
            for module, own in sorted(modules.items(), key=lambda one: -one[1])[:SHOWN]
        ],
    }


def _module(file: str, _line: int, function: str) -> str:
    """A name to add up by: a module of ours, a package of others, a module of Python's."""
    if file == "~":
        known = ("duckdb", "pyarrow", "sqlite3", "_socket", "_json", "posix", "marshal")
        return next((f"{name} (compiled)" for name in known if name in function), PYTHON)
    parts = Path(file.removeprefix("<frozen ").removesuffix(">")).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1].removesuffix(".py")
    return ".".join(parts[-2:] if "contio_pipeline" in parts else parts[-1:]).removesuffix(".py")


# As another process -------------------------------------------------------------------------------------------------------


def fetch(url: str, token: str) -> None:
    """Ask for each path of standard input, parse what is JSON, and throw it away."""
    from concurrent.futures import ThreadPoolExecutor

    import httpx

    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
    with (
        httpx.Client(base_url=url, headers=headers, timeout=60, verify=False, trust_env=False) as client,  # noqa: S501 - no TLS
        ThreadPoolExecutor(THREADS) as threads,
    ):

        def one(target: str) -> None:
            answer = client.get(target)
            if answer.headers["content-type"] == "application/json":
                json.loads(answer.content)

        for _ in threads.map(one, sys.stdin.read().split()):
            pass


def touch(data_dir: str) -> None:
    """Change 1 % of the stored rows of the last days, as a sync that was killed before it published would leave them."""
    from contio_pipeline.privacy import Policy
    from contio_pipeline.streams import STREAMS
    from contio_pipeline.warehouse import Warehouse

    rows = 0
    with Warehouse(Path(data_dir), origin=None) as warehouse:
        for stream in STREAMS:
            table, dated = stream.table.full_name, stream.date_field
            with warehouse.transaction() as connection:
                connection.execute(
                    f"""UPDATE {table} SET _changed_at = now() WHERE rowid IN (
                        SELECT rowid FROM {table} WHERE {dated} > (SELECT max({dated}) - INTERVAL {DAYS} DAY FROM {table})
                        USING SAMPLE reservoir(1 %))"""
                )
            rows += warehouse.look(stream.table, 0, Policy())[0]
    print(rows)


def profiled(file: str, *command: str) -> None:
    """A command of contio-pipeline under the profiler, by the CPU time of each thread.

    From Python 3.12 on there can be one profiler at a time, which sees the main thread only.
    """
    import cProfile
    import pstats
    import threading

    from contio_pipeline.cli import main

    def new() -> cProfile.Profile:
        return cProfile.Profile(time.thread_time)

    profiles, run = [new()], threading.Thread.run

    def profiled_run(self: threading.Thread) -> None:
        profiles.append(mine := new())
        mine.enable()
        try:
            run(self)
        finally:
            mine.disable()

    if sys.version_info < (3, 12):
        threading.Thread.run = profiled_run  # type: ignore[method-assign]
    sys.argv = ["contio-pipeline", *command]
    code: object = 0
    profiles[0].enable()
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    profiles[0].disable()
    pstats.Stats(*[one for one in profiles if one.getstats()]).dump_stats(file)
    sys.exit(code)  # type: ignore[arg-type]


MODES: dict[str, Callable[..., None]] = {"--fetch": fetch, "--touch": touch, "--profiled": profiled}

# The command line ---------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    load_server.add_options(parser)
    names = [path.name for path in paths(datetime.now(UTC))]
    add = parser.add_argument
    add("--repeat", type=int, default=3, help="how often all of it is done; the medians are shown (%(default)s)")
    add(
        "--only",
        action="append",
        choices=names,
        help="measure this path only (repeatable); those before it are run too",
    )
    add("--profile", action="store_true", help="once more under a profiler: where the CPU time of each path goes")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured to this file")
    options = parser.parse_args(arguments)
    options.end = options.end or datetime.now(UTC).replace(microsecond=0)
    if options.repeat < 1:
        parser.error("--repeat must be 1 or more")
    return options


def main() -> int:
    """Measure and print."""
    if sys.argv[1:2] and (mode := MODES.get(sys.argv[1])):
        mode(*sys.argv[2:])
        return 0
    options = parse(sys.argv[1:])
    for ends in (signal.SIGINT, signal.SIGTERM):  # nothing is left behind, nor when a shell's `&` had SIGINT ignored
        signal.signal(ends, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="contio-bench-") as folder:
        found = bench(options, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, default=str) + "\n")
    print(report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
