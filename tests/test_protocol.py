"""The API's rules, as pure functions: errors, Retry-After, envelopes, pages that fit together, names and paths."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contio_pipeline.errors import (
    ApiError,
    BrokenAnswer,
    Forbidden,
    NotFound,
    ScopeMissing,
    Throttled,
    TooLarge,
    Transient,
    Unauthorized,
)
from contio_pipeline.protocol import (
    MAX_ROWS,
    PAGE_SIZE,
    Page,
    PagePlan,
    check_status,
    fill_path,
    read_clock,
    read_filename,
    read_json,
    read_object,
    read_page,
    read_retry_after,
    row_identity,
)
from contio_pipeline.rows import decode
from contio_pipeline.streams import STREAMS

quick = settings(max_examples=100, deadline=None)
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
HTML = b"<html><body>404 Not Found</body></html>"
any_text = st.text(st.characters(exclude_categories=()), max_size=30)  # lone surrogates too
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda value: st.lists(value, max_size=3) | st.dictionaries(st.text(max_size=5), value, max_size=3),
    max_leaves=5,
)


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def refused(status: int, answer: bytes, headers: dict[str, str] | None = None) -> ApiError:
    """What a status other than a success is read as."""
    with pytest.raises(ApiError) as error:
        check_status(status, httpx.Headers(headers), answer, what="GET meetings", now=NOW)
    return error.value


# Errors ---------------------------------------------------------------------------------------------------------------

API = body(code="some_code", error="Some text", message="Some text", request_id="r-1")
LIST = body(code="some_code", error="Some text", request_id="r-1")
OAUTH = body(error="some_code", error_description="Some text", request_id="r-1")
LIMIT = body(error="some_code", error_description="Some text")


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_a_success_raises_nothing_whatever_its_body(status: int) -> None:
    check_status(status, {}, API, what="GET meetings", now=NOW)


@pytest.mark.parametrize(
    ("status", "answer", "kind"),
    [
        (400, API, ApiError),
        (400, OAUTH, ApiError),
        (400, HTML, ApiError),
        (401, API, Unauthorized),
        (401, HTML, Unauthorized),
        (402, body(code="plan", message="m", feature="f", current_plan="FREE"), ApiError),
        (403, API, Forbidden),
        (403, body(code="insufficient_scope", error="no"), ScopeMissing),
        (403, body(error="insufficient_scope", error_description="no"), ScopeMissing),
        (403, body(error="invalid_scope", error_description="no"), ScopeMissing),
        (403, HTML, ApiError),
        (403, b"", ApiError),
        (403, body(error="no code here"), ApiError),
        (404, API, NotFound),
        (404, OAUTH, NotFound),
        (404, HTML, ApiError),
        (404, b"", ApiError),
        (404, b"null", ApiError),
        (404, b'["code"]', ApiError),
        (404, body(code=404, error="a number is no code"), ApiError),
        (404, body(message="no code here"), ApiError),
        (405, API, ApiError),
        (409, API, ApiError),
        (410, API, ApiError),
        (422, API, ApiError),
        (408, API, Transient),
        (425, b"", Transient),
        (429, LIMIT, Throttled),
        (429, HTML, Throttled),
        (500, API, Transient),
        (502, HTML, Transient),
        (503, b"", Transient),
        (504, HTML, Transient),
        (599, b"", Transient),
    ],
)
def test_a_status_and_the_shape_of_its_body_say_what_it_means(status: int, answer: bytes, kind: type[ApiError]) -> None:
    error = refused(status, answer)
    assert type(error) is kind
    assert error.status == status


@pytest.mark.parametrize("status", [301, 302, 303, 304, 307, 308])
def test_a_redirect_is_final_and_points_at_the_addresses(status: int) -> None:
    error = refused(status, HTML, {"location": "https://elsewhere.example.com"})
    assert type(error) is ApiError
    assert "redirects are never followed: check CONTIO_API_URL and CONTIO_TOKEN_URL" in str(error)
    assert "elsewhere" not in str(error)


@pytest.mark.parametrize(("answer", "request_id"), [(API, "r-1"), (LIST, "r-1"), (OAUTH, "r-1"), (LIMIT, "")])
def test_all_four_error_shapes_give_their_code_text_and_request_id(answer: bytes, request_id: str) -> None:
    for status in (400, 403, 404, 429, 500):
        error = refused(status, answer)
        assert (error.code, error.request_id) == ("some_code", request_id)
        assert str(error).startswith(f"GET meetings: {status} some_code \u2039Some text\u203a")
        assert ("(request_id r-1)" in str(error)) == bool(request_id)


def test_a_body_that_is_not_the_apis_own_is_not_quoted() -> None:
    error = refused(404, HTML)
    assert (error.code, error.request_id) == ("", "")
    assert str(error) == "GET meetings: 404 (not an answer of the API itself)"


def test_what_a_server_says_is_cut_short() -> None:
    error = refused(400, body(code="c" * 1000, error="t" * 1000, request_id="r" * 1000))
    assert len(error.code) == len(error.request_id) == 100
    assert len(str(error)) < 600


@pytest.mark.parametrize("field", ["code", "error", "error_description", "request_id"])
@pytest.mark.parametrize("trick", ["\ud800", "a\nb", "\x1b[2J", "\x00"])
def test_what_a_server_says_becomes_one_line_that_can_be_printed_and_stored(field: str, trick: str) -> None:
    error = refused(400, body(**{"code": "c", "error": "e", "request_id": "r", field: f"x{trick}y"}))
    for text in (str(error), error.code, error.request_id):
        assert text.isprintable()
        assert text.encode()


@pytest.mark.parametrize("status", [408, 429, 503])
def test_an_answer_worth_another_try_says_when(status: int) -> None:
    for headers, expected in (({"Retry-After": "17"}, 17.0), ({}, None), ({"retry-after": "soon"}, None)):
        error = refused(status, b"", headers)
        assert isinstance(error, Transient)
        assert error.retry_after == expected


@quick
@given(
    st.integers(200, 599),
    st.binary() | st.dictionaries(st.sampled_from(["code", "error", "x"]), any_text).map(json.dumps).map(str.encode),
)
def test_any_answer_is_a_success_or_an_api_error(status: int, answer: bytes) -> None:
    if status < 300:
        check_status(status, {}, answer, what="GET x", now=NOW)
        return
    error = refused(status, answer)
    assert error.status == status
    assert isinstance(error, Transient) == (status in {408, 425, 429} or status >= 500)


def test_an_error_body_that_is_nested_too_deeply_is_only_not_understood() -> None:
    assert type(refused(404, b"[" * 100_000)) is ApiError


# Retry-After ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("1.5", 1.5),
        ("86400", 86_400),
        ("Sun, 01 Nov 2026 12:01:30 GMT", 90),
        ("Sunday, 01-Nov-26 12:01:30 GMT", 90),
        ("Sun Nov  1 12:01:30 2026", 90),
        ("Sun, 01 Nov 2026 13:01:30 +0100", 90),
        ("Sun, 01 Nov 2026 12:01:30 -0000", 90),
        ("Sun, 01 Nov 2026 11:00:00 GMT", 0),
        (None, None),
        ("", None),
        ("-5", None),
        ("soon", None),
        ("1e3", None),
        ("nan", None),
        ("inf", None),
        ("12 seconds", None),
        ("2026-11-01T12:01:30Z", None),
    ],
)
def test_retry_after_gives_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert read_retry_after(value, NOW) == seconds


@quick
@given(st.integers(0, 999_999_999))
def test_any_number_of_seconds_is_taken(seconds: int) -> None:
    assert read_retry_after(str(seconds), NOW) == seconds


@quick
@given(st.integers(-100_000, 100_000), st.integers(-12, 14))
def test_a_date_is_the_time_until_then_in_any_zone_and_never_negative(seconds: int, hours: int) -> None:
    then = (NOW + timedelta(seconds=seconds)).astimezone(timezone(timedelta(hours=hours)))
    assert read_retry_after(format_datetime(then), NOW) == max(0, seconds)


numbers = st.integers(0, 10**30).map(str)
almost_dates = st.tuples(
    numbers, st.sampled_from(["Jan", "Dec", "13"]), numbers, numbers, numbers | st.just("GMT")
).map(lambda parts: "Mon, {} {} {} {}:00:00 {}".format(*parts))


@quick
@given(any_text | almost_dates)
@example("Mon, 01 Jan 99999999999 00:00:00 GMT")
@example("Mon, 01 Jan 2026 00:00:00 +99999999999999999999")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
def test_nonsense_counts_as_absent(value: str) -> None:
    seconds = read_retry_after(value, NOW)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("header", "ahead"),
    [
        ("Sun, 01 Nov 2026 12:00:00 GMT", 0),
        ("Sun, 01 Nov 2026 11:59:00 GMT", 60),
        ("Sun, 01 Nov 2026 14:00:00 +0100", -3600),
        ("Sun, 01 Nov 2026 12:00:01 -0000", -1),
        ("now", None),
        ("", None),
        (None, None),
    ],
)
def test_the_date_of_an_answer_says_how_far_a_clock_is_ahead(header: str | None, ahead: float | None) -> None:
    assert read_clock(header, NOW) == ahead


# Envelopes ------------------------------------------------------------------------------------------------------------


def test_a_page_keeps_its_rows_as_received() -> None:
    rows = [{"id": "a", "n": {"x": 1}}, "not a row", None]
    page = read_page(body(items=rows, total=7, limit=100, offset=4), 4)
    assert page == Page(rows, 7, 4)


def test_an_envelope_may_be_empty_or_have_more_or_fewer_fields() -> None:
    assert read_page(body(items=[], total=0), 0) == Page([], 0, 0)
    assert read_page(body(items=[], total=0, next="x"), 0) == Page([], 0, 0)


@pytest.mark.parametrize(
    "answer",
    [
        body(total=0),
        body(items=None, total=0),
        body(items={}, total=0),
        body(items=[]),
        body(items=[], total=None),
        body(items=[], total="0"),
        body(items=[], total=0.0),
        body(items=[], total=True),
        body(items=[], total=-1),
        b"[]",
        b"null",
        b'"items"',
        b"",
        HTML,
        b'{"items": [], "total": 0',
        b'{"items": [], "total": NaN}',
        b'{"items": [], "total": Infinity}',
        b'{"items": [], "total": 0\xff}',
        '{"items": [], "total": 0}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"items": [], "total": ' + b"9" * 10_000 + b"}",
    ],
)
def test_a_broken_envelope_is_an_error_and_never_an_empty_day(answer: bytes) -> None:
    with pytest.raises(BrokenAnswer):
        read_page(answer, 0)


def test_a_page_of_a_hundred_times_the_rows_is_refused() -> None:
    rows = '"x",' * MAX_ROWS
    with pytest.raises(TooLarge, match="10001 rows at once"):
        read_page(f'{{"items": [{rows}"x"], "total": 9}}'.encode(), 0)
    assert len(read_page(f'{{"items": [{rows[:-1]}], "total": 9}}'.encode(), 0).items) == MAX_ROWS


@pytest.mark.parametrize("answer", [b"[]", b"null", b"7", b'"x"', b"", HTML, b"{", b"NaN"])
def test_one_row_must_be_an_object(answer: bytes) -> None:
    with pytest.raises(BrokenAnswer):
        read_object(answer)


def test_an_object_is_read_whole() -> None:
    assert read_object('{"id": "a", "title": "ü", "n": [1, 2.5, null]}'.encode()) == {
        "id": "a",
        "title": "ü",
        "n": [1, 2.5, None],
    }


@pytest.mark.parametrize(
    "value", [b"NaN", b"-Infinity", b"1e999", b"9" * 5_000, b'"\xff"', b'"\xed\xa0\x80"', b'"\\ud800"']
)
def test_what_breaks_the_rules_inside_one_row_takes_only_that_row(value: bytes) -> None:
    answer = b'\xef\xbb\xbf{"items": [{"id": "a", "title": "x"}, {"id": "b", "weight": ' + value + b'}], "total": 2}'
    batch = decode(STREAMS[0].columns, read_page(answer, 0).items)
    assert batch.ids == ["a"]
    assert [(row.key, row.has_id) for row in batch.broken] == [("b", True)]


def test_a_broken_answer_is_worth_another_try() -> None:
    with pytest.raises(Transient, match="success without valid JSON"):
        read_json(HTML)


@quick
@given(json_values)
def test_json_is_read_as_it_was_written(value: Any) -> None:
    assert read_json(json.dumps(value).encode()) == value
    assert read_json(json.dumps(value, ensure_ascii=False).encode()) == value


# Pages ----------------------------------------------------------------------------------------------------------------

Rows = list[dict[str, Any]]


def made(total: int) -> Rows:
    return [{"id": f"row {n}"} for n in range(total)]


def page_of(rows: Rows, offset: int, limit: int) -> Page:
    return Page(rows[offset : offset + limit], len(rows), offset)


def read(limit: int, first: Rows, later: list[Rows]) -> tuple[PagePlan, list[Page]]:
    """Read a list of which each page sees its own state; states repeat when there are fewer than pages."""
    pages = [page_of(first, 0, limit)]
    plan = PagePlan(pages[0])
    for number, offset in enumerate(plan.offsets):
        pages.append(page_of(later[number % len(later)], offset, limit))
        plan.add(pages[-1])
    return plan, pages


def test_the_page_size_is_the_apis_maximum() -> None:
    assert PAGE_SIZE == 100


@quick
@given(st.integers(0, 450), st.integers(2, 100))
@example(100, 100)
@example(101, 100)
@example(199, 100)
@example(200, 100)
def test_the_pages_of_a_quiet_list_cover_all_rows_and_fit(total: int, limit: int) -> None:
    rows = made(total)
    plan, pages = read(limit, rows, [rows])
    assert plan.problem is None
    assert plan.total == total
    assert all(len(page.items) <= limit for page in pages)
    stitched = [*pages[0].items, *(row for page in pages[1:] for row in page.items[1:])]
    assert stitched == rows
    # The overlap costs one row a page: no page is asked for that brings nothing new.
    assert len(pages) == (1 if total <= limit else 1 + -(-(total - limit) // (limit - 1)))


def test_a_list_of_one_page_is_atomic() -> None:
    for total in (0, 1, 99, 100):
        plan, pages = read(100, made(total), [])
        assert (plan.problem, len(pages)) == (None, 1)


def test_a_server_that_caps_the_page_lower_is_stepped_at_its_own_size() -> None:
    plan = PagePlan(Page(made(50)[:10], 50, 0))
    assert list(plan.offsets) == [9, 18, 27, 36, 45]


SHIFTS = {
    "a deletion at the front": lambda rows: rows[1:],
    "a deletion at the front and an append": lambda rows: [*rows[1:], {"id": "new"}],
    "an insertion at the front": lambda rows: [{"id": "new"}, *rows],
    "an insertion at the front and a deletion at the end": lambda rows: [{"id": "new"}, *rows[:-1]],
}


@pytest.mark.parametrize("shift", SHIFTS)
@quick
@given(st.data())
def test_any_single_shift_between_two_pages_is_noticed(shift: str, data: st.DataObject) -> None:
    limit = data.draw(st.integers(2, 20), "limit")
    before = made(data.draw(st.integers(limit + 1, 120), "total"))
    after = SHIFTS[shift](before)
    # Pages are read in parallel, so any of those after the first may have been answered before or after the change.
    pages = len(PagePlan(page_of(before, 0, limit)).offsets)
    late = data.draw(st.integers(0, 2**pages - 1), "which pages came after the change, bit by bit")
    plan, _ = read(limit, before, [after if late >> page & 1 else before for page in range(pages)])
    assert (plan.problem is not None) == (late > 0)


@quick
@given(st.integers(2, 20), st.integers(21, 100), st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_any_number_of_rows_that_leave_and_come_between_pages_is_noticed(
    limit: int, total: int, shifts: list[int]
) -> None:
    forever = made(total + 5)
    states = [forever[n : n + total] for n in shifts]
    pages = len(PagePlan(page_of(states[0], 0, limit)).offsets)
    plan, _ = read(limit, forever[:total], states)
    assert (plan.problem is not None) == any(shifts[n % len(shifts)] for n in range(pages))


def test_each_problem_says_what_was_seen() -> None:
    rows = made(10)
    for later, text in (
        (rows[1:], "the list changed while it was read (10 rows, then 9)"),
        ([*rows[1:], {"id": "new"}], "rows moved between two pages while they were read"),
    ):
        assert read(4, rows, [later])[0].problem == text


@pytest.mark.parametrize("length", [0, 1, 3, 5])
def test_a_page_of_another_length_than_promised_is_noticed(length: int) -> None:
    rows = made(20)
    plan = PagePlan(page_of(rows, 0, 4))
    plan.add(Page(rows[3 : 3 + length], 20, 3))
    assert plan.problem == f"a page had {length} rows where 4 were due"


def test_a_problem_is_not_forgotten_when_later_pages_fit_again() -> None:
    rows, other = made(40), [{"id": "x"}, *made(39)]
    plan, pages = read(10, rows, [other, rows, rows, rows])
    assert len(pages) > 3
    assert plan.problem


def test_rows_that_were_announced_but_not_sent_are_a_problem() -> None:
    plan = PagePlan(Page([], 5, 0))
    assert plan.problem == "the API announced 5 rows and sent none"
    assert list(plan.offsets) == []


def test_more_rows_than_announced_are_a_problem() -> None:
    assert PagePlan(Page(made(3), 2, 0)).problem == "a page had 3 rows where 2 were due"


def test_pages_of_one_row_cover_the_list_and_only_a_new_total_shows_a_change() -> None:
    rows = made(4)
    plan, pages = read(1, rows, [rows])
    assert (plan.problem, [page.items[0] for page in pages]) == (None, rows)
    for shift in ("a deletion at the front", "an insertion at the front"):
        assert read(1, rows, [rows, SHIFTS[shift](rows)])[0].problem


def test_rows_are_the_same_by_id_or_else_by_all_they_hold() -> None:
    assert row_identity({"id": "a", "title": "x"}) == row_identity({"id": "a", "title": "y"})
    assert row_identity({"id": "a"}) != row_identity({"id": "b"})
    assert row_identity({"id": 7, "x": 1}) == row_identity({"x": 1, "id": 7})
    for one, other in (
        ({"x": 1}, {"x": 2}),
        ({"id": 1}, {"id": "1"}),
        ({"id": ""}, {"id": None}),
        ({"id": ""}, {"id": "", "x": 1}),
        ("a", {"id": "a"}),
        ("a", {"id": '"a"'}),
        (None, "null"),
        ([1], [2]),
    ):
        assert row_identity(one) != row_identity(other)


# File names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('attachment; filename="notes.md"', "notes.md"),
        ("attachment; filename=notes.md", "notes.md"),
        ('attachment; FILENAME = "notes.md" ; size=3', "notes.md"),
        ('attachment; filename="a \\"quoted\\" name.md"', 'a "quoted" name.md'),
        ('attachment; filename="semi;colon.md"', "semi;colon.md"),
        ("attachment; filename*=UTF-8''na%C3%AFve%20file.md", "naïve file.md"),
        ("attachment; filename*=utf-8'en'%E2%82%AC.csv", "€.csv"),
        ("attachment; filename*=ISO-8859-1''%A3.csv", "£.csv"),
        ("attachment; filename=\"plain.md\"; filename*=UTF-8''better.md", "better.md"),
        ("attachment; filename*=UTF-8''better.md; filename=\"plain.md\"", "better.md"),
        ("attachment; filename=\"plain.md\"; filename*=KOI8-R''%C1.md", "plain.md"),
        ("attachment; filename*=UTF-8''%FF.md", "\ufffd.md"),
        ('attachment; filename="größe.md"', "größe.md"),
        ('attachment; filename="../../etc/passwd"', "../../etc/passwd"),
        ("attachment; filename*=UTF-8''a%00b%0D%0Ac%1B.md", "abc.md"),
        ('attachment; filename="' + "x" * 300 + '"', "x" * 255),
        ('attachment; filename=""', None),
        ("attachment; filename*=UTF-8''%00", None),
        ("attachment", None),
        ("inline", None),
        ("", None),
        (None, None),
    ],
)
def test_a_file_name_is_read_as_text_for_people(disposition: str | None, name: str | None) -> None:
    assert read_filename(disposition) == name


@quick
@given(any_text | st.builds("attachment; {}={}".format, st.sampled_from(["filename", "filename*"]), any_text))
@example("filename*=utf-8''%ed%a0%80")
@example("filename*=utf-8''\ud800")
def test_reading_a_file_name_never_fails_and_never_gives_control_characters(disposition: str) -> None:
    name = read_filename(disposition)
    assert name is None or (name.isprintable() and 1 <= len(name) <= 255 and name.encode())


# Paths ----------------------------------------------------------------------------------------------------------------

awkward = st.text("./\\?#%;:&=+@{}[] ~\"'a2eé\n\x00\ud800", max_size=12)


def sent(template: str, **ids: str) -> httpx.URL:
    """The URL that would be asked for, as the client makes it."""
    return httpx.URL("https://api.example.com/v1/partner/user/").join(fill_path(template, **ids))


@quick
@given(awkward | any_text, awkward | any_text)
@example("..", "x")
@example("a/../../b", "%2e%2e")
@example("//evil.example.com/", "https://evil.example.com")
@example("\ud800", "x")
def test_an_id_never_leaves_its_segment(parent: str, identity: str) -> None:
    try:
        url = sent("meetings/{parent_id}/context/{id}", parent_id=parent, id=identity)
    except ApiError:
        assert any(not i.strip(".") or any("\ud800" <= c <= "\udfff" for c in i) for i in (parent, identity))
        return
    assert (url.scheme, url.host, url.query, url.fragment) == ("https", "api.example.com", b"", "")
    *before, filled, word, last = url.raw_path.decode().split("/")
    assert (before, word) == (["", "v1", "partner", "user", "meetings"], "context")
    assert (unquote(filled), unquote(last)) == (parent, identity)


@pytest.mark.parametrize("identity", ["", ".", "..", "...", "\ud800"])
def test_an_id_that_no_path_can_hold_is_refused_by_a_sentence(identity: str) -> None:
    with pytest.raises(ApiError, match="cannot be asked for"):
        fill_path("meetings/{id}", id=identity)


def test_a_usual_id_is_left_as_it_is() -> None:
    identity = "0b9c6f1e-3f1d-4c8e-9a52-1f0c5b0d7e11"
    assert fill_path("meetings/{id}", id=identity) == f"meetings/{identity}"


# Speed -----------------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=3), inside, max_size=3),
    max_leaves=8,
)
ODD = (
    b"18446744073709551616",
    b'{"a":[1,{"b":-9223372036854775809}]}',
    b"1e400",
    b"-1e400",
    b"[NaN]",
    b"Infinity",
    b'{"a":1,"a":2}',
    b"-0",
    b"-0.0",
    b'"\\ud800"',
    b'"\\ud83d\\ude00"',
    b'"\xff"',
    b"\xef\xbb\xbf[1]",
    b"1E5",
    b"0.1000000000000000055511151231257827",
    b" [ ] ",
    b"",
    b"[1,]",
    b"01",
    b"[1] 2",
    b"'a'",
    b'"\x01"',
    b"{}",
    b"<html>",
    b"[" * 2000 + b"]" * 2000,
    b"9" * 500,
    b"nul",
)


@given(VALUES.map(lambda value: json.dumps(value).encode()) | st.sampled_from(ODD) | st.binary(max_size=8))
@settings(max_examples=300, deadline=None)
def test_an_answer_is_read_as_json_reads_it(body: bytes) -> None:
    try:
        expected = json.loads(
            body.decode("utf-8-sig", "surrogateescape"),
            parse_int=lambda digits: int(digits[:400]) if len(digits) <= 400 else float(digits),
        )
    except (ValueError, RecursionError):
        with pytest.raises(BrokenAnswer):
            read_json(body)
        return
    assert repr(read_json(body)) == repr(expected)
