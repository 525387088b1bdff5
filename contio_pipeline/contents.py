"""Contents: download what Contio has finished processing and what is not stored yet, by state.

What lives here: which documents are due, downloading them into the store, recording the outcome. What never does: SQL,
sending, lists.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from typing import Any

from contio_pipeline.documents import TOO_LARGE, DocumentStore, Incoming
from contio_pipeline.errors import ApiError, BrokenAnswer, Enough, NotFound, ScopeMissing, StorageError
from contio_pipeline.journal import Journal
from contio_pipeline.protocol import fill_path, named
from contio_pipeline.streams import UNFINISHED, Stream
from contio_pipeline.work import Done, StreamReport, Work

_CONTENTS_A_COMMIT = 50
_TEXT_BYTES_A_COMMIT = 8 << 20


class Fetcher:
    """Makes the bytes on disk equal to what the API serves."""

    def __init__(self, work: Work, *, verify: bool) -> None:
        """With `verify`, all contents are downloaded again, compared and repaired."""
        self._work = work
        self._client = work.client
        self._warehouse = work.warehouse
        self._listener = work.listener
        self._verify = verify
        self._store = DocumentStore(work.settings.data_dir)
        self._store.clear_incoming()

    def fetch(self, report: StreamReport, stream: Stream) -> None:
        """Download what is finished and not stored yet; state decides, so it does not matter which window was listed."""
        rows = self._warehouse.contents_state(stream, report.account)
        report.listing.rows = report.listing.total = len(rows)
        known = {row["id"] for row in rows if row["state"]}
        ready: list[dict[str, Any]] = []
        settled: list[dict[str, Any]] = []
        for row in rows:
            row["version"] = _version(row)
            state = self._content_state(row)
            if state == "stored":
                ready.append(row)
            elif (row["state"], row["stored_version"]) != (state, row["version"]):
                settled.append(_content(row, state, f"{stream.status_field} is {row['status']}"))
        due = [row for row in ready if self._verify or not self._have(row)]
        report.changes.unchanged = len(rows) - len(due) - len(settled)
        report.changes.inserted = sum(1 for content in settled if content["id"] not in known)
        report.changes.updated = len(settled) - report.changes.inserted
        elsewhere = {} if self._verify else self._warehouse.stored_elsewhere(stream, report.account)
        downloads: list[dict[str, Any]] = []
        for row in due:
            twin = elsewhere.get((row["id"], row["version"]))
            if twin and self._store.has(twin["sha256"], twin["size_bytes"]):
                settled.append(twin)
                self._count_content(report, row, twin["sha256"])
            else:
                downloads.append(row)
        self._warehouse.put_contents(report.account, settled)
        try:
            self._fetch(report, stream, downloads)
        finally:
            self._read_texts()

    def _read_texts(self) -> None:
        """Read the text of all that is stored and not read yet, some at a time."""
        most = self._work.settings.document_text_max_kb << 10
        waiting: list[dict[str, Any]] = []
        for digest, size in self._warehouse.untold_texts(most, TOO_LARGE):
            if not self._store.has(digest, size):  # which downloads see to
                continue
            text, reason = self._store.text(digest, most)
            told = {"text": text, "characters": None if text is None else len(text), "reason": reason}
            waiting.append({"sha256": digest, "size_bytes": size, "decoded_at": datetime.now(UTC), **told})
            if len(waiting) >= _CONTENTS_A_COMMIT or sum(row["size_bytes"] for row in waiting) > _TEXT_BYTES_A_COMMIT:
                self._warehouse.put_texts(waiting)
                waiting = []
        self._warehouse.put_texts(waiting)
        self._warehouse.drop_old_texts()

    def _fetch(self, report: StreamReport, stream: Stream, downloads: list[dict[str, Any]]) -> None:
        done = Done(len(downloads))
        report.planned = len(downloads)
        fetched: list[dict[str, Any]] = []
        with self._work.journal(report) as journal:
            answers = self._client.in_parallel(partial(self._download, report.account, stream, journal), downloads)
            try:
                for row, answer in zip(downloads, answers, strict=False):
                    done.add(failed=isinstance(answer, ApiError))
                    self._listener.advanced(done.count, done.total)
                    if isinstance(answer, ApiError):
                        fetched.append(_content(row, "unavailable", str(answer)))
                        self._tell(report, stream, row, answer)
                    else:
                        fetched.append(_content(row, "stored", None) | answer)
                        self._count_content(report, row, answer["sha256"])
                    if len(fetched) >= _CONTENTS_A_COMMIT:
                        self._warehouse.put_contents(report.account, fetched)
                        fetched = []
                    if done.hopeless:
                        break
            finally:  # also when it has to stop
                self._warehouse.put_contents(report.account, fetched)
            if done.count < done.total:
                report.interrupted(f"{done.total - done.count} documents were not asked for")
            else:
                journal.drop()

    def _content_state(self, row: dict[str, Any]) -> str:
        """What a document's processing state allows: an early download may hold what was not scrubbed yet."""
        if self._work.settings.documents == "all":
            return "stored"
        return "waiting" if row["status"] in UNFINISHED else "error" if row["status"] == "error" else "stored"

    def _have(self, row: dict[str, Any]) -> bool:
        return (
            row["state"] == "stored"
            and row["stored_version"] == row["version"]
            and self._store.has(row["sha256"], row["size_bytes"])
        )

    def _count_content(self, report: StreamReport, row: dict[str, Any], digest: str) -> None:
        if row["sha256"] is None:
            report.changes.inserted += 1
        elif row["sha256"] != digest or not self._have(row):
            report.changes.updated += 1
        else:
            report.changes.unchanged += 1

    def _tell(self, report: StreamReport, stream: Stream, row: dict[str, Any], error: ApiError) -> None:
        """Report a document that could not be had; one that is gone since it was listed is no failure."""
        if isinstance(error, NotFound):
            try:
                self._client.read(
                    report.account, fill_path(stream.detail_path or "", id=row["id"], parent_id=row["parent_id"])
                )
            except NotFound:
                report.warn(f"document {named(row['id'])} is gone since it was listed: the next sync records it")
                return
            except ApiError as other:
                error = other
        report.incomplete(f"document {named(row['id'])} could not be downloaded ({error}): the next sync tries again")

    def _download(
        self, account: str, stream: Stream, journal: Journal, row: dict[str, Any]
    ) -> dict[str, Any] | ApiError:
        """What there is to say of one document's bytes, which are in the store now; runs on a thread."""
        key = f"{row['id']} {row['version']}"
        if not self._verify and (kept := journal.get(key)):
            had: dict[str, Any] = json.loads(kept)
            if self._store.has(had["sha256"], had["size_bytes"]):
                return had | {"fetched_at": datetime.fromisoformat(had["fetched_at"])}
        answer = self._fetch_one(account, stream, row)
        if isinstance(answer, dict):
            journal.put(key, json.dumps(answer, default=str).encode())
        return answer

    def _fetch_one(self, account: str, stream: Stream, row: dict[str, Any]) -> dict[str, Any] | ApiError:
        """Download one document into the store.

        Bytes whose end was not announced may be cut off, and an empty document may be a mistake: such are had twice.
        """
        sinks: list[Incoming] = []

        def new_sink() -> Incoming:
            for sink in sinks:
                sink.drop()
            sinks.append(self._store.incoming())
            return sinks[-1]

        try:
            path = fill_path(stream.content_path or "", id=row["id"], parent_id=row["parent_id"])
            page = None if row["format"] == "html" else "text/html"
            download = self._client.download(account, path, new_sink, refused=page)
            if not download.measured or not sinks[-1].size:
                first = sinks[-1].digest
                download = self._client.download(account, path, new_sink, refused=page)
                if sinks[-1].digest != first:
                    return BrokenAnswer(f"GET {path}: other bytes at each try")
            digest = sinks[-1].keep()
        except (ScopeMissing, Enough):
            raise
        except ApiError as error:
            return error
        except OSError as error:
            raise StorageError(f"a document could not be written below {self._store.folder} ({error})") from error
        finally:
            for sink in sinks:
                sink.drop()
        return {
            "sha256": digest,
            "size_bytes": sinks[-1].size,
            "content_type": download.content_type,
            "filename": download.filename,
            "fetched_at": datetime.now(UTC),
        }


def _version(row: dict[str, Any]) -> str:
    """Names the bytes of a document: they change with its processing state and its time of change."""
    changed = row["changed"].isoformat() if row["changed"] else row["row_hash"]
    return f"{row['status'] or ''} {changed}"


def _content(row: dict[str, Any], state: str, reason: str | None) -> dict[str, Any]:
    """A row of `raw.document_contents`; bytes that were stored before stay known until there are newer ones."""
    kept = ("id", "sha256", "size_bytes", "content_type", "filename", "fetched_at")
    return {name: row[name] for name in kept} | {"state": state, "reason": reason, "_version": row["version"]}
