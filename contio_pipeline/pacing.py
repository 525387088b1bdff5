"""The request budget, shared by all processes on the machine: a SQLite table of slots in the state folder.

What lives here: who may send the next request, and when. What never does: HTTP, retries.

A slot is stamped *now + request timeout* when it is taken and *now* when its answer arrives or it fails, so that the
server's clock never sees two requests closer together than ours does. A slot leaves the table one window after its stamp.
The clock is the machine's monotonic one, so that a jump of the wall clock changes nothing; after a reboot (another boot id)
all slots count as now. The file is disposable: it is made anew when it is damaged.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from contio_pipeline.errors import StorageError
from contio_pipeline.folders import private_folder

_LONGEST_NAP = 5.0
"""Seconds between two looks at the table while it is full: another process may have freed slots."""


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._limit = limit
        self._window = window
        self._timeout = timeout
        self._sleep = sleep
        self._clock = clock
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._boot = _boot_id()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Wait for a slot, and hold it while one request is sent and answered."""
        number = self._acquire()
        try:
            yield
        finally:
            with suppress(sqlite3.OperationalError):  # a full disk: the slot then stays taken for longer, which is safe
                self._connection().execute("UPDATE slots SET stamp = ? WHERE number = ?", (self._clock(), number))

    def hold(self, seconds: float) -> None:
        """Let no process send anything for so long: the server said that the budget is used up."""
        self._connection().execute(
            "UPDATE state SET held_until = max(held_until, ?)", (self._clock() + min(seconds, self._window),)
        )

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
            self._sleep(min(wait, _LONGEST_NAP))

    def _try(self) -> tuple[float, int]:
        """Seconds to wait (0 when a slot was taken) and the slot's number."""
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            now = self._clock()
            [boot, held_until, taken] = connection.execute("SELECT boot, held_until, taken FROM state").fetchone()
            if boot != self._boot:
                connection.execute("UPDATE slots SET stamp = ?", (now,))
                connection.execute("UPDATE state SET boot = ?, held_until = 0", (self._boot,))
                held_until = 0.0
            # The count is kept beside the slots: counting them at every request would cost more than the request's own work.
            taken -= connection.execute("DELETE FROM slots WHERE stamp <= ?", (now - self._window,)).rowcount
            if held_until > now:
                result = held_until - now, 0
            elif taken >= self._limit:
                [oldest] = connection.execute("SELECT min(stamp) FROM slots").fetchone()
                result = max(oldest + self._window - now, 0.001), 0
            else:
                cursor = connection.execute("INSERT INTO slots (stamp) VALUES (?)", (now + self._timeout,))
                result = 0.0, int(cursor.lastrowid or 0)
                taken += 1
            connection.execute("UPDATE state SET taken = ?", (taken,))
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        return result

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
            connection.execute("CREATE TABLE IF NOT EXISTS slots (number INTEGER PRIMARY KEY, stamp REAL NOT NULL)")
            connection.execute("CREATE INDEX IF NOT EXISTS slots_stamp ON slots (stamp)")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS state "
                "(one INTEGER PRIMARY KEY CHECK (one = 1), boot TEXT, held_until REAL, taken INT)"
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
