"""Documents that are gone, cut off, empty, changed or not documents at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Place
from truth import check

from contio_pipeline.sandbox.faults import Fault, named
from contio_pipeline.work import StreamReport, SyncReport

NewPlace = Callable[..., Place]

NOT_FOUND = '{"code": "not_found", "error": "Not found"}'


@pytest.fixture
def place(new_place: NewPlace) -> Place:
    return new_place(meetings=20, accounts=1)


def contents(report: SyncReport) -> StreamReport:
    [found] = [one for one in report.streams if one.stream == "document_contents"]
    return found


def stored(place: Place, identity: str) -> Any:
    [row] = place.query(f"SELECT state, sha256, reason FROM raw.document_contents WHERE id = '{identity}'")
    return row


def document(place: Place, *, source_format: str = "csv", **fields: Any) -> str:
    """A new document that is ready to be downloaded."""
    fields = {"source_format": source_format, "file_status": "complete"} | fields
    [identity] = place.world.insert("context_documents", account="ana", **fields)
    return identity


def test_a_document_that_is_gone_since_it_was_listed_is_no_failure(place: Place) -> None:
    gone = document(place)

    def delete(request: Any) -> None:
        if request.path.endswith(f"{gone}/content"):
            place.world.delete("context_documents", ids=[gone])

    place.sandbox.before = delete
    report = place.sync()
    place.sandbox.before = None
    assert report.complete
    assert any("gone since it was listed" in warning for warning in contents(report).warnings)
    assert place.sync().total("deleted") == 1
    check(place.world, place.settings)


def test_bytes_that_are_missing_of_a_document_that_is_there_are_reported(place: Place) -> None:
    there = document(place)
    place.sandbox.faults = [Fault(f"{there}/content$", status=404, body=NOT_FOUND)]
    report = place.sync()
    assert there in (contents(report).listing.reason or "")
    assert stored(place, there)[0] == "unavailable"
    assert place.sync().complete
    check(place.world, place.settings)


def test_a_document_that_changes_while_it_is_downloaded_is_downloaded_again_the_next_night(place: Place) -> None:
    changing = document(place)

    def change(request: Any) -> None:
        if request.path.endswith(f"{changing}/content"):
            place.world.rewrite_contents([changing], body="after")
            place.world.update("context_documents", ids=[changing])

    place.sandbox.before = change
    place.sync()
    place.sandbox.before = None
    place.sandbox.reset_log()
    assert place.sync().complete
    assert len(place.asked("/content")) == 1
    check(place.world, place.settings)


def test_an_empty_answer_is_doubted_and_an_empty_document_is_stored(place: Place) -> None:
    empty, full = document(place), document(place)
    place.world.rewrite_contents([empty], body="")
    place.sandbox.faults = [Fault(f"{full}/content$", status=200, body="")]
    report = place.sync()
    assert "other bytes at each try" in (contents(report).listing.reason or "")
    assert stored(place, empty)[:2] == ("stored", hashlib.sha256(b"").hexdigest())
    assert place.sync().complete
    check(place.world, place.settings)


@pytest.mark.parametrize(
    ("source_format", "status", "media_type", "state"),
    [
        ("csv", 200, "text/html; charset=utf-8", "unavailable"),
        ("csv", 206, "application/octet-stream", "unavailable"),
        ("csv", 204, "", "unavailable"),
        ("csv", 200, "application/x-odd", "stored"),
        ("html", 200, "text/html", "stored"),
    ],
)
def test_what_is_not_a_document_is_not_stored(
    source_format: str, status: int, media_type: str, state: str, place: Place
) -> None:
    asked = document(place, source_format=source_format)
    fault = Fault(f"{asked}/content$", status=status, body="" if status == 204 else "<html>", times=3)
    fault.headers = {"content-type": media_type} if media_type else {}
    place.sandbox.faults = [fault]
    report = place.sync()
    assert stored(place, asked)[0] == state
    assert report.complete == (state == "stored")
    place.sandbox.faults = []
    place.world.update("context_documents", ids=[asked])
    assert place.sync().complete
    check(place.world, place.settings)


def test_one_that_cannot_be_had_for_ever_keeps_no_other_from_being_stored(place: Place) -> None:
    lost, others = document(place), [document(place) for _ in range(12)]
    place.sandbox.faults = [Fault(f"{lost}/content$", status=400, body='{"code": "odd", "error": "odd"}', times=99)]
    for _night in range(2):
        assert not place.sync().complete
        assert stored(place, lost)[0] == "unavailable"
        assert {stored(place, other)[0] for other in others} == {"stored"}


@pytest.mark.parametrize("damage", [b"", b"short", b"as long as it was, other bytes"])
def test_a_file_that_is_damaged_is_repaired(damage: bytes, place: Place) -> None:
    identity = document(place)
    place.world.rewrite_contents([identity], body="as long as it was, these bytes")
    place.sync()
    digest = stored(place, identity)[1]
    path = place.settings.data_dir / "documents" / digest[:2] / digest[2:4] / digest
    path.chmod(0o600)
    path.write_bytes(damage)
    assert place.sync(
        verify_documents=len(damage) == 30
    ).complete  # only reading the bytes shows what the size does not
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


def test_a_content_cut_off_by_the_connection_is_had_again(place: Place) -> None:
    identity = document(place)
    place.world.rewrite_contents([identity], body="x" * 10_000)
    place.sandbox.faults = [named("cut-off", 1), named("reset", 1), named("cut-off-unsized", 1)]
    for fault in place.sandbox.faults:
        fault.path, fault.alone = f"{identity}/content$", True
    place.overrides["retry_seconds"] = 30
    assert place.sync().complete
    check(place.world, place.settings)


# Texts ----------------------------------------------------------------------------------------------------------------

TEXT = "SELECT text, characters, reason FROM mart.document_texts WHERE id = '{}'"


@pytest.mark.parametrize(
    ("body", "text", "reason"),
    [
        ("größe,1\r\n🚀".encode(), "größe,1\r\n🚀", None),
        (b"\xef\xbb\xbfmark", "mark", None),
        ("größe".encode("utf-16"), "größe", None),
        (b"caf\xe9", None, "it is no text in UTF-8 or UTF-16"),
        (b"%PDF\x00\x01", None, "it is no text in UTF-8 or UTF-16"),
        (b"x" * 2049, None, "it is larger than 2 kB (CONTIO_DOCUMENT_TEXT_MAX_KB)"),
        (b"x" * 2048, "x" * 2048, None),
    ],
)
def test_the_text_of_a_document_or_why_there_is_none(
    body: bytes, text: str | None, reason: str | None, place: Place
) -> None:
    there = document(place)
    place.world.rewrite_contents([there], body=body)
    place.overrides["document_text_max_kb"] = 2
    place.sync()
    assert place.query(TEXT.format(there)) == [(text, None if text is None else len(text), reason)]


def test_texts_follow_the_limit_and_the_bytes_at_no_request(place: Place) -> None:
    there = document(place)
    place.world.rewrite_contents([there], body=b"x" * 3000)
    place.sync()
    place.sandbox.reset_log()
    for most, characters in ((1, None), (4, 3000), (0, None), (1024, 3000)):
        place.overrides["document_text_max_kb"] = most
        place.sync()
        [(_, found, reason)] = place.query(TEXT.format(there))
        assert (found, reason is None) == (characters, characters is not None)
    assert place.asked("/content") == []
    place.world.rewrite_contents([there], body=b"y")
    place.world.update("context_documents", ids=[there], title="new bytes")
    place.sync()
    assert place.query(TEXT.format(there)) == [("y", 1, None)]
    assert place.query("SELECT count(*) FROM raw.document_texts WHERE starts_with(text, 'xxx')") == [(0,)]


def test_a_document_without_bytes_says_why_it_has_no_text(place: Place) -> None:
    waiting = document(place, file_status="processing")
    place.sync()
    assert place.query(TEXT.format(waiting)) == [(None, None, "file_status is processing")]
    later = document(place)
    place.sync(documents=False)
    assert place.query(TEXT.format(later)) == [(None, None, "its contents were not downloaded")]
