"""The request budget: never more than the limit in any window, over threads, processes, crashes and reboots."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from contio_pipeline.errors import Cancelled, Throttled
from contio_pipeline.pacing import Budget

WINDOW = 60.0
TIMEOUT = 30.0


class Clock:
    """A clock that stands still, except that sleeping moves it on; `naps` are the sleeps."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


NewBudget = Callable[..., Budget]


@pytest.fixture
def new_budget(tmp_path: Path) -> Iterator[NewBudget]:
    """Make a budget on the test's file, as another process would; keyword arguments are Budget's own."""
    with ExitStack() as stack:

        def make(clock: Clock, limit: int = 2, **how: Any) -> Budget:
            options = {"window": WINDOW, "timeout": TIMEOUT, "sleep": clock.sleep, "clock": clock} | how
            return stack.enter_context(closing(Budget(tmp_path / "state" / "budget.sqlite", limit=limit, **options)))

        yield make


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "budget.sqlite"


def change(file: Path, sql: str, *values: Any) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(sql, values)
        connection.commit()


def take(budget: Budget, times: int = 1) -> None:
    for _ in range(times):
        with budget.slot():
            pass


# Waiting --------------------------------------------------------------------------------------------------------------


def test_as_many_as_the_limit_go_at_once_and_the_next_waits_for_the_oldest_to_leave(new_budget: NewBudget) -> None:
    clock = Clock()
    budget = new_budget(clock, limit=3)
    take(budget)
    clock.now += 10
    take(budget, 2)
    assert (clock.naps, budget.used()) == ([], 3)
    take(budget)
    assert clock.now == pytest.approx(1060)
    take(budget, 2)
    assert clock.now == pytest.approx(1070)
    assert budget.used() == 3


def test_a_slot_leaves_one_window_after_its_answer_and_not_after_it_was_taken(new_budget: NewBudget) -> None:
    clock = Clock()
    budget = new_budget(clock, limit=1)
    with budget.slot():
        clock.now += 20
    take(budget)
    assert clock.now == pytest.approx(1080)


def test_a_request_under_way_is_counted_however_long_it_takes(new_budget: NewBudget) -> None:
    clock = Clock()
    busy, other = new_budget(clock, limit=1, window=5.0), new_budget(clock, limit=1, window=5.0)
    with busy.slot():
        clock.now += 25  # five windows
        assert other.used() == 1
    take(other)
    assert clock.now == pytest.approx(1030)


def test_a_request_that_fails_is_counted_like_an_answer(new_budget: NewBudget) -> None:
    clock = Clock()
    budget = new_budget(clock, limit=1)

    def fail() -> None:
        with budget.slot():
            clock.now += 7
            raise RuntimeError("no answer")

    with pytest.raises(RuntimeError, match="no answer"):
        fail()
    take(budget)
    assert clock.now == pytest.approx(1067)


def test_all_who_use_the_file_share_its_slots(new_budget: NewBudget) -> None:
    clock = Clock()
    budgets = [new_budget(clock, limit=4) for _ in range(3)]
    for budget in (*budgets, budgets[0]):
        take(budget)
    assert {budget.used() for budget in budgets} == {4}
    take(budgets[2])
    assert clock.now == pytest.approx(1060)


def test_slots_outlive_the_process_that_took_them(new_budget: NewBudget) -> None:
    clock = Clock()
    first = new_budget(clock)
    take(first, 2)
    first.close()
    second = new_budget(clock)
    assert second.used() == 2
    take(second)
    assert clock.now == pytest.approx(1060)


def test_budgets_of_other_files_are_not_touched(tmp_path: Path, new_budget: NewBudget) -> None:
    clock = Clock()
    take(new_budget(clock, limit=1))
    how = {"limit": 1, "window": WINDOW, "timeout": TIMEOUT, "sleep": clock.sleep, "clock": clock}
    with closing(Budget(tmp_path / "other.sqlite", **how)) as other:
        take(other)
    assert clock.naps == []


def test_waiting_looks_again_every_few_seconds_for_another_may_have_made_room(
    new_budget: NewBudget, file: Path
) -> None:
    clock = Clock()

    class Room(Clock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if len(self.naps) == 3:
                change(file, "DELETE FROM slots")
                change(file, "UPDATE state SET taken = 0")

    take(new_budget(clock, limit=1))
    impatient = Room()
    take(new_budget(impatient, limit=1))
    assert impatient.naps == [5.0] * 3


def test_waiting_can_be_ended_and_then_nothing_was_taken(new_budget: NewBudget) -> None:
    clock = Clock()
    take(new_budget(clock, limit=1))

    def stop(_seconds: float) -> None:
        raise Cancelled("stopped")

    stopped = new_budget(clock, limit=1, sleep=stop)
    with pytest.raises(Cancelled):
        take(stopped)
    assert stopped.used() == 1
    clock.now += WINDOW
    assert stopped.used() == 0
    take(stopped)


# 429 ------------------------------------------------------------------------------------------------------------------


def test_a_hold_stops_everybody_although_slots_are_free(new_budget: NewBudget) -> None:
    clock = Clock()
    throttled, other = new_budget(clock, limit=100), new_budget(clock, limit=100)
    take(throttled)
    throttled.refused(17)
    take(other)
    assert clock.now == pytest.approx(1017)
    assert all(nap <= 5 for nap in clock.naps)
    take(throttled, 0)
    assert other.used() == 2


def test_a_hold_is_never_longer_than_the_window_for_then_all_is_forgotten(new_budget: NewBudget) -> None:
    clock = Clock()
    budget = new_budget(clock)
    budget.refused(86_400)
    take(budget)
    assert clock.now == pytest.approx(1000 + WINDOW)


def test_a_shorter_hold_does_not_end_a_longer_one(new_budget: NewBudget) -> None:
    clock = Clock()
    one, other = new_budget(clock), new_budget(clock)
    one.refused(30)
    other.refused(3)
    take(other)
    assert clock.now == pytest.approx(1030)


class Server:
    """A strict one: of any window it allows so many, and those that it refuses count too."""

    def __init__(self, clock: Clock, limit: int) -> None:
        self.clock, self.limit, self.seconds = clock, limit, 0.0
        self.seen: list[float] = []
        self.refused = 0

    def ask(self) -> None:
        self.seen.append(self.clock.now)
        if sum(stamp > self.clock.now - WINDOW for stamp in self.seen) > self.limit:
            self.refused += 1
            raise Throttled("429")
        self.clock.now += self.seconds


def ask(budget: Budget, server: Server) -> int | None:
    """Send one request, as the client does; what a refusal taught, if anything."""
    try:
        with budget.slot():
            server.ask()
    except Throttled:
        return budget.refused(1)
    return None


def test_a_limit_lower_than_believed_is_learned_and_kept_by_everybody(new_budget: NewBudget) -> None:
    clock = Clock()
    budget, other = new_budget(clock, limit=100), new_budget(clock, limit=100)
    server = Server(clock, 40)
    assert [taught for _ in range(41) if (taught := ask(budget, server))] == [40]
    for _ in range(400):
        ask(other, server)
    assert other.allowed() == 40
    assert server.refused == 2  # the second one asked for more, once
    used = len(server.seen) / ((clock.now - 1000) / WINDOW)
    assert used > 0.95 * 40


def test_a_slow_answer_does_not_raise_what_was_learned(new_budget: NewBudget) -> None:
    """The server forgets a request before we do: one that is allowed then does not show that the limit is higher."""
    clock = Clock()
    budget, server = new_budget(clock, limit=100), Server(clock, 40)
    for _ in range(41):
        ask(budget, server)
    server.seconds = WINDOW / 40
    for _ in range(40 * 10):
        ask(budget, server)
        assert budget.allowed() <= 40
    server.seconds = 0.0
    for _ in range(40 * 10):
        ask(budget, server)
    assert server.refused == 2  # at the beginning, and when more was tried


def test_when_the_other_program_is_gone_the_whole_limit_is_used_again(new_budget: NewBudget) -> None:
    clock = Clock()
    budget, server = new_budget(clock, limit=100), Server(clock, 40)
    for _ in range(41):
        ask(budget, server)
    server.limit = 100
    for _ in range(400):
        ask(budget, server)
    assert budget.allowed() == 100
    assert server.refused == 1


def test_after_each_refusal_more_is_tried_later(new_budget: NewBudget) -> None:
    clock = Clock()
    budget, server = new_budget(clock, limit=100), Server(clock, 40)
    for _ in range(40 * 150):
        ask(budget, server)
    assert server.refused == 3  # at the beginning, after 1 window, after 12 more


def test_a_refusal_that_has_nothing_to_do_with_the_limit_teaches_none(new_budget: NewBudget) -> None:
    clock = Clock()
    budget = new_budget(clock, limit=100)
    take(budget, 3)
    assert ask(budget, Server(clock, 0)) is None
    assert budget.allowed() == 100


def test_a_crowd_that_is_refused_together_teaches_one_limit(new_budget: NewBudget) -> None:
    clock = Clock()
    budget, other, server = new_budget(clock, limit=100), new_budget(clock, limit=100), Server(clock, 40)
    for _ in range(38):
        ask(budget, server)
    under_way = [one.slot() for one in (budget, budget, other, other)]
    for slot in under_way:
        slot.__enter__()
    outcomes = []
    for slot in under_way:
        try:
            server.ask()
        except Throttled as error:
            slot.__exit__(Throttled, error, None)
            outcomes.append(budget.refused(1))
        else:
            slot.__exit__(None, None, None)
    assert outcomes == [40, None]
    assert budget.allowed() == 40


def test_nobody_sends_anything_between_a_refusal_and_the_word_for_how_long(new_budget: NewBudget) -> None:
    clock = Clock()
    budget, other = new_budget(clock, limit=100), new_budget(clock, limit=100)
    with pytest.raises(Throttled), budget.slot():
        raise Throttled("429")
    assert clock.naps == []
    take(other)
    assert clock.naps == [pytest.approx(0.2)]


def test_what_was_learned_ends_with_the_boot(file: Path, new_budget: NewBudget) -> None:
    clock = Clock()
    budget, server = new_budget(clock, limit=100), Server(clock, 40)
    for _ in range(41):
        ask(budget, server)
    change(file, "UPDATE state SET boot = 'another'")
    take(new_budget(clock, limit=100))
    assert budget.allowed() == 100


# Processes ------------------------------------------------------------------------------------------------------------

WORKER = """
import json, sys, threading, time
from pathlib import Path
from contio_pipeline.pacing import Budget
file, limit, window, threads, rounds = Path(sys.argv[1]), *map(float, sys.argv[2:])
budget = Budget(file, limit=int(limit), window=window, timeout=30.0)
spans = []
def work():
    for _ in range(int(rounds)):
        with budget.slot():
            begun = time.monotonic()
            time.sleep(0.003)
            spans.append((begun, time.monotonic()))
print("ready", flush=True)
sys.stdin.readline()
workers = [threading.Thread(target=work) for _ in range(int(threads))]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
budget.close()
print(json.dumps(spans))
"""


def test_three_processes_never_send_more_than_the_limit_in_any_window(file: Path) -> None:
    limit, window, processes, threads, rounds = 6, 0.3, 3, 2, 4
    command = [sys.executable, "-c", WORKER, str(file), *map(str, (limit, window, threads, rounds))]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
            for _ in range(processes)
        ]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:  # they make the file at the same time
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        answers = [worker.communicate() for worker in workers]
    assert [error for _, error in answers] == [""] * processes
    spans = [span for out, _ in answers for span in eval(out)]  # noqa: S307 - our own list of numbers
    assert len(spans) == processes * threads * rounds
    # Wherever in its span the server saw a request: no more than the limit can lie in one window.
    for begun, _ in spans:
        near = [span for span in spans if span[0] <= begun and span[1] > begun - window]
        assert len(near) <= limit


def test_the_slot_of_a_killed_process_is_freed_one_window_after_its_timeout(file: Path, new_budget: NewBudget) -> None:
    program = f"""
import sys
from pathlib import Path
from contio_pipeline.pacing import Budget
with Budget(Path(sys.argv[1]), limit=1, window={WINDOW}, timeout={TIMEOUT}).slot():
    print("sending", flush=True)
    sys.stdin.read()
"""
    before = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", program, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sending\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    killed = time.monotonic()
    clock = Clock(killed)
    take(new_budget(clock, limit=1))
    assert before + TIMEOUT + WINDOW <= clock.now <= killed + TIMEOUT + WINDOW + 0.01


def test_many_may_make_the_file_at_the_same_time(tmp_path: Path) -> None:
    together = 8
    for number in range(10):
        starting = threading.Barrier(together)

        def start(path: Path, starting: threading.Barrier = starting) -> int:
            with closing(Budget(path, limit=together, window=WINDOW, timeout=TIMEOUT)) as budget:
                starting.wait()
                take(budget)
                starting.wait()
                return budget.used()

        with ThreadPoolExecutor(together) as threads:
            used = list(threads.map(start, [tmp_path / f"budget{number}.sqlite"] * together))
        assert used == [together] * together


# Whatever happened to the file ----------------------------------------------------------------------------------------


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def scrambled(content: bytes) -> bytes:
    return content[:100] + b"\xa5" * (len(content) - 100)


def second_page(content: bytes) -> bytes:
    return content[:4096] + b"\xa5" * (len(content) - 4096)


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"", lambda _: b"no database" * 1000, lambda content: content[:50], half, scrambled, second_page],
    ids=["empty", "something else", "cut in the header", "cut in half", "pages scrambled", "all but the first page"],
)
def test_a_damaged_file_is_made_anew(damage: Callable[[bytes], bytes], file: Path, new_budget: NewBudget) -> None:
    clock = Clock()
    before = new_budget(clock, limit=500)
    take(before, 400)
    before.close()
    file.write_bytes(damage(file.read_bytes()))
    budget = new_budget(clock)
    take(budget, 2)
    assert budget.used() == 2
    take(budget)
    assert clock.now == pytest.approx(1060)


def test_the_journal_of_a_damaged_file_is_not_replayed_into_the_new_one(file: Path, new_budget: NewBudget) -> None:
    clock = Clock()
    before = new_budget(clock, limit=500)
    take(before, 400)
    journal = file.with_name(file.name + "-wal")
    left = journal.read_bytes()  # as a kill leaves it: closing would remove it
    before.close()
    file.write_bytes(b"damaged" * 1000)
    journal.write_bytes(left)
    budget = new_budget(clock)
    take(budget, 2)
    assert budget.used() == 2
    assert clock.naps == []


def test_a_file_that_was_removed_is_made_anew_with_its_folder(file: Path, new_budget: NewBudget) -> None:
    clock = Clock()
    take(new_budget(clock))
    for path in file.parent.iterdir():
        path.unlink()
    file.parent.rmdir()
    again = new_budget(clock)
    take(again)
    assert again.used() == 1


@pytest.mark.parametrize("before", [1_000_000.0, 1.0], ids=["the clock fell back", "the clock is ahead"])
def test_after_a_reboot_all_slots_count_as_now(before: float, file: Path, new_budget: NewBudget) -> None:
    old = new_budget(Clock(before), limit=3)
    take(old)
    old.refused(50)
    old.close()
    change(file, "INSERT INTO slots (stamp) VALUES (?)", before + TIMEOUT)  # the machine went down while this was sent
    change(file, "UPDATE state SET taken = 2, boot = 'another boot'")
    clock = Clock(500.0)
    budget = new_budget(clock, limit=3)
    take(budget)  # one place is left, and the hold is forgotten
    assert clock.now == 500.0
    take(budget)
    assert clock.now == pytest.approx(500 + WINDOW)


def test_within_one_boot_nothing_is_reset(file: Path, new_budget: NewBudget) -> None:
    clock = Clock()
    take(new_budget(clock, limit=2))
    clock.now += 30
    take(new_budget(clock, limit=2), 2)
    assert clock.now == pytest.approx(1060)  # not 1090: the first slot kept its stamp
    with closing(sqlite3.connect(file)) as connection:
        [boot] = connection.execute("SELECT boot FROM state").fetchone()
    assert boot


def test_a_file_of_an_earlier_version_is_gone_on_with(file: Path, new_budget: NewBudget) -> None:
    clock = Clock()
    take(new_budget(clock, limit=2))
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript("ALTER TABLE slots DROP COLUMN sent; ALTER TABLE slots DROP COLUMN refused")
    budget = new_budget(clock, limit=2)
    assert budget.used() == 1
    take(budget, 2)
    assert clock.now == pytest.approx(1060)


def test_slots_that_have_left_are_removed_from_the_file(file: Path, new_budget: NewBudget) -> None:
    clock = Clock()
    budget = new_budget(clock, limit=10)
    for _ in range(5):
        take(budget, 10)
        clock.now += WINDOW
    take(budget)
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM slots").fetchone() == (1,)


def test_the_folder_is_nobody_elses(file: Path, new_budget: NewBudget) -> None:
    take(new_budget(Clock()))
    assert file.parent.stat().st_mode & 0o077 == 0
