"""The request budget, shared by all processes on the machine: a SQLite table of slots in the state folder.

What lives here: who may send the next request, and when. What never does: HTTP, retries.

A slot is stamped *now + request timeout* when it is taken and *now* when its answer arrives or it fails, so that the
server's clock never sees two requests closer together than ours does. A slot leaves the table one window after its stamp.
The clock is the machine's monotonic one, so that a jump of the wall clock changes nothing; after a reboot (another boot id)
all slots count as now. The file is disposable: it is made anew when it is damaged.

A refusal all the same says that the limit is lower than believed, or that another program behind this IP asks too. What the
server did allow becomes the limit. After a while that grows with each refusal, more is tried, one request at a time, so that a
wrong guess costs one more refusal (docs/decisions/0014).
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from contio_pipeline.errors import StorageError, Throttled
from contio_pipeline.folders import private_folder

_LONGEST_NAP = 5.0
"""Seconds between two looks at the table while it is full: another process may have freed slots."""

_LEAST_LEARNED = 0.05
"""Share of the limit; a refusal when fewer were answered in the window says something else than that the limit is lower."""

_PATIENCE, _MORE_PATIENCE, _LONGEST_PATIENCE = 1, 12, 288
"""Windows until more than what was learned is tried; so many times as long after each refusal, up to a day of 5 minutes each."""

_UNPROVEN, _FEW = 0.1, 2
"""Where more than this share of the limit is used, and more than the server ever allowed in a window, a process has so few under
way: if the limit is lower than believed, no more are refused before that is known."""

_MOMENT = 0.2
"""Seconds that nobody sends anything after a refusal, until it is said for how long."""

_NAP = 0.02
"""Seconds until the next look, when one more request waits for those under way."""


class Budget:
    """At most `limit` requests in any `window` seconds, over all processes that use the same file.

    Safe to use from several threads; each has its own connection.
    """

    def __init__(
        self,
        path: Path,
        *,
        limit: int,
        window: float,
        timeout: float,
        sleep: Callable[[float], None] = time.sleep,
        on_wait: Callable[[float], None] = lambda _seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._limit = limit
        self._window = window
        self._timeout = timeout
        self._sleep = sleep
        self._on_wait = on_wait
        self._clock = clock
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._counting = threading.Lock()
        self._under_way = 0
        self._boot = _boot_id()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Wait for a slot, and hold it while one request is sent and answered."""
        number = self._acquire()
        refused = False
        try:
            yield
        except Throttled:
            refused = True
            raise
        finally:
            self._release(number, refused=refused)

    def refused(self, seconds: float) -> int | None:
        """Let no process send anything for so long, and no more in a window than the server did allow: it answered 429.

        Returns:
            The limit that is kept from now on, when this taught a new one.
        """
        with self._change() as connection:
            now = self._clock()
            connection.execute("UPDATE state SET held_until = max(held_until, ?)", (now + min(seconds, self._window),))
            answered = self._answered(connection)
            allowed, patience, probe_at, since = self._learned(connection)
            if answered < max(1, _LEAST_LEARNED * self._limit):
                return None
            if since > now - self._window:  # one of the crowd that was under way
                new = (answered, patience, probe_at, since)
            else:
                patience = min(patience * _MORE_PATIENCE, _LONGEST_PATIENCE) if patience else _PATIENCE
                new = (answered, patience, now + patience * self._window, now)
            connection.execute("DELETE FROM learned")
            connection.execute("INSERT INTO learned VALUES (1, ?, ?, ?, ?)", new)
            return int(answered) if answered != allowed else None

    def allowed(self) -> int:
        """How many requests a window may hold now: the limit, or what was learned."""
        return self._learned(self._connection())[0]

    def _answered(self, connection: sqlite3.Connection) -> int:
        """How many requests the server allowed in the last window, for sure: sent and answered in it, and not refused."""
        now = self._clock()
        [count] = connection.execute(
            "SELECT count(*) FROM slots WHERE sent > ? AND stamp <= ? AND NOT refused", (now - self._window, now)
        ).fetchone()
        return int(count)

    def _learned(self, connection: sqlite3.Connection) -> tuple[int, int, float, float]:
        """What the server allows, the windows to wait before more is tried, when that is, and when it was learned."""
        found = connection.execute("SELECT allowed, patience, probe_at, since FROM learned").fetchone()
        allowed, *rest = found or (self._limit, 0, 0.0, -math.inf)
        return min(allowed, self._limit), *rest

    def used(self) -> int:
        """How many slots are taken now."""
        [count] = (
            self._connection()
            .execute("SELECT count(*) FROM slots WHERE stamp > ?", (self._clock() - self._window,))
            .fetchone()
        )
        return int(count)

    def close(self) -> None:
        """Close the connections of all threads."""
        while self._connections:
            self._connections.pop().close()

    def _acquire(self) -> int:
        while True:
            try:
                wait, number = self._try()
            except sqlite3.OperationalError as error:
                raise StorageError(
                    f"the request budget {self._path} cannot be used ({error}): see that the disk is not full and the folder can "
                    "be written; the file may be removed"
                ) from error
            if not wait:
                return number
            self._on_wait(wait)
            self._sleep(min(wait, _LONGEST_NAP))

    def _try(self) -> tuple[float, int]:
        """Seconds to wait (0 when a slot was taken) and the slot's number."""
        with self._change() as connection:
            now = self._clock()
            [boot, held_until, taken, proven] = connection.execute(
                "SELECT boot, held_until, taken, proven FROM state, proof"
            ).fetchone()
            if boot != self._boot:
                connection.execute("UPDATE slots SET stamp = ?, sent = NULL", (now,))
                connection.execute("UPDATE state SET boot = ?, held_until = 0", (self._boot,))
                connection.execute("DELETE FROM learned")
                held_until = 0.0
            # The count is kept beside the slots: counting them at every request would cost more than the request's own work.
            taken -= connection.execute("DELETE FROM slots WHERE stamp <= ?", (now - self._window,)).rowcount
            allowed, _, probe_at, _ = self._learned(connection)
            more = allowed <= taken < self._limit and now >= probe_at
            unproven = taken >= max(proven, _UNPROVEN * self._limit)
            if held_until > now:
                result = held_until - now, 0
            elif more and connection.execute("SELECT 1 FROM slots WHERE stamp > ?", (now,)).fetchone():
                result = _NAP, 0  # one at a time, of all processes
            elif unproven and self._under_way >= _FEW:
                result = _NAP, 0
            elif taken >= allowed and not more:
                [leaves] = connection.execute(
                    "SELECT stamp FROM slots ORDER BY stamp LIMIT 1 OFFSET ?", (taken - allowed,)
                ).fetchone()
                result = max(leaves + self._window - now, 0.001), 0
            else:
                cursor = connection.execute("INSERT INTO slots (stamp, sent) VALUES (?, ?)", (now + self._timeout, now))
                result = 0.0, int(cursor.lastrowid or 0)
                taken += 1
                with self._counting:
                    self._under_way += 1
            connection.execute("UPDATE state SET taken = ?", (taken,))
        return result

    def _release(self, number: int, *, refused: bool) -> None:
        """Restamp a slot; an answer beyond what was learned shows that the server allows as much."""
        try:
            self._restamp(number, refused=refused)
        finally:
            with self._counting:
                self._under_way -= 1

    def _restamp(self, number: int, *, refused: bool) -> None:
        with suppress(sqlite3.OperationalError):  # a full disk: the slot then stays taken for longer, which is safe
            connection = self._connection()
            now = self._clock()
            connection.execute("UPDATE slots SET stamp = ?, refused = ? WHERE number = ?", (now, refused, number))
            if refused:
                connection.execute("UPDATE proof SET proven = 0")
                connection.execute("UPDATE state SET held_until = max(held_until, ?)", (now + _MOMENT,))
                return
            connection.execute("UPDATE proof SET proven = taken FROM state WHERE taken > proven")
            if connection.execute("SELECT 1 FROM learned").fetchone():
                connection.execute("UPDATE learned SET allowed = max(allowed, ?)", (self._answered(connection),))
                connection.execute("DELETE FROM learned WHERE allowed >= ?", (self._limit,))

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            try:
                connection = self._open()
            except sqlite3.OperationalError:
                time.sleep(0.1)  # two processes making the file at once: switching to WAL does not wait by itself
                connection = self._open()
            except sqlite3.DatabaseError:
                for name in (
                    self._path,
                    *(self._path.with_name(self._path.name + end) for end in ("-wal", "-shm")),
                ):
                    with suppress(FileNotFoundError):
                        name.unlink()
                connection = self._open()
            self._local.connection = connection
            self._connections.append(connection)
        return connection

    def _open(self) -> sqlite3.Connection:
        private_folder(self._path.parent)
        connection = sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS slots "
                "(number INTEGER PRIMARY KEY, stamp REAL NOT NULL, sent REAL, refused INT NOT NULL DEFAULT 0)"
            )
            if "sent" not in {column for _, column, *_ in connection.execute("PRAGMA table_info(slots)")}:  # of before
                connection.execute("ALTER TABLE slots ADD COLUMN refused INT NOT NULL DEFAULT 0")
                connection.execute("ALTER TABLE slots ADD COLUMN sent REAL")
            connection.execute("CREATE INDEX IF NOT EXISTS slots_stamp ON slots (stamp)")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS state "
                "(one INTEGER PRIMARY KEY CHECK (one = 1), boot TEXT, held_until REAL, taken INT)"
            )
            connection.execute(
                "CREATE TABLE IF NOT EXISTS proof (one INTEGER PRIMARY KEY CHECK (one = 1), proven INT NOT NULL)"
            )
            connection.execute("INSERT OR IGNORE INTO proof VALUES (1, 0)")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS learned "
                "(one INTEGER PRIMARY KEY CHECK (one = 1), allowed INT, patience INT, probe_at REAL, since REAL)"
            )
            connection.execute("INSERT OR IGNORE INTO state VALUES (1, ?, 0, 0)", (self._boot,))
        except BaseException:
            connection.close()  # Python 3.13 warns of those that are not
            raise
        return connection


def _boot_id() -> str:
    """Names this boot of the machine; where the system has no name for it, the minute in which it started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"booted about {round((time.time() - time.monotonic()) / 60)}"
