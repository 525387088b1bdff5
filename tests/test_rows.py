"""Rows: what a value becomes, what is kept beside it, and what is set aside with which reason."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contio_pipeline.rows import ARROW_TYPES, Batch, Broken, compact_json, decode
from contio_pipeline.streams import STREAMS, Column, stream_named

quick = settings(max_examples=100, deadline=None)

COLUMNS = (
    Column("id", "text", "Id."),
    Column("title", "text", "Title."),
    Column("done", "boolean", "Done."),
    Column("size", "integer", "Size."),
    Column("at", "timestamp", "When."),
    Column("due_date", "date", "Due."),
    Column("context", "json", "Anything."),
)
NAMES = [column.name for column in COLUMNS]


def row(**fields: Any) -> dict[str, Any]:
    """The one row that these fields become."""
    batch = decode(COLUMNS, [{"id": "a", **fields}])
    assert batch.broken == []
    [only] = batch.rows.to_pylist()
    return only


def broken(item: Any) -> Broken:
    """How this one item is set aside."""
    batch = decode(COLUMNS, [item])
    assert (batch.rows.num_rows, batch.ids) == (0, [])
    [only] = batch.broken
    return only


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


# Shape ----------------------------------------------------------------------------------------------------------------


def test_a_batch_has_the_columns_in_order_a_date_followed_by_its_text() -> None:
    for items in ([], [{"id": "a"}], ["broken"]):
        schema = decode(COLUMNS, items).rows.schema
        assert schema.names == [
            "id",
            "title",
            "done",
            "size",
            "at",
            "due_date",
            "due_date_raw",
            "context",
            "_extra",
            "_hash",
        ]
        assert schema.field("at").type == pa.timestamp("us", "UTC")
        assert schema.field("due_date").type == pa.date32()
        assert schema.field("size").type == pa.int64()
        assert schema.field("done").type == pa.bool_()
        text = {"id", "title", "due_date_raw", "context", "_extra", "_hash"}
        assert {schema.field(name).type for name in text} == {pa.string()}


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_a_batch_has_the_columns_that_the_stream_stores(stream: Any) -> None:
    schema = decode(stream.columns, []).rows.schema
    stored = [(column.name, ARROW_TYPES[column.kind]) for column in stream.payload_columns]
    assert [(field.name, field.type) for field in schema] == [item for item in stored if item[0] != "_parent_id"]


def test_a_whole_row() -> None:
    item = {
        "id": "a",
        "title": "Größe 🏔",
        "done": False,
        "size": 7,
        "at": "2026-03-01T10:00:00Z",
        "due_date": "2026-03-02",
        "context": {"b": [1, 2.5, None], "a": "ü"},
    }
    canonical = (
        '{"at":"2026-03-01T10:00:00Z","context":{"a":"ü","b":[1,2.5,null]},"done":false,"due_date":"2026-03-02",'
    )
    canonical += '"id":"a","size":7,"title":"Größe 🏔"}'
    [found] = decode(COLUMNS, [item]).rows.to_pylist()
    assert found == {
        "id": "a",
        "title": "Größe 🏔",
        "done": False,
        "size": 7,
        "at": utc(2026, 3, 1, 10),
        "due_date": date(2026, 3, 2),
        "due_date_raw": "2026-03-02",
        "context": '{"b":[1,2.5,null],"a":"ü"}',
        "_extra": None,
        "_hash": hashlib.sha256(canonical.encode()).hexdigest(),
    }


def test_a_field_that_is_missing_or_null_is_null() -> None:
    values = [None] * (len(NAMES) - 1)
    for item in ({"id": "a"}, {"id": "a", **dict(zip(NAMES[1:], values, strict=True))}):
        [found] = decode(COLUMNS, [item]).rows.to_pylist()
        assert [found[name] for name in NAMES[1:]] == values
        assert (found["due_date_raw"], found["_extra"]) == (None, None)


def test_rows_and_their_ids_stay_in_order_around_those_that_are_set_aside() -> None:
    batch = decode(COLUMNS, [{"id": "b"}, 7, {"id": "a", "title": 1}, {"id": "c"}, {"id": "b"}])
    assert batch.ids == ["b", "c", "b"]
    assert batch.rows.column("id").to_pylist() == batch.ids
    assert [one.reason for one in batch.broken] == [
        "a row is a number, not an object",
        "title is a number, not a text",
    ]


# Times ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01T10:20:30Z", utc(2026, 3, 1, 10, 20, 30)),
        ("2026-03-01t10:20:30z", utc(2026, 3, 1, 10, 20, 30)),
        ("2026-03-01 10:20:30Z", utc(2026, 3, 1, 10, 20, 30)),
        ("2026-03-01T10:20:30+00:00", utc(2026, 3, 1, 10, 20, 30)),
        ("2026-03-01T10:20:30-00:00", utc(2026, 3, 1, 10, 20, 30)),
        ("2026-03-01T10:20:30+05:30", utc(2026, 3, 1, 4, 50, 30)),
        ("2026-03-01T00:20:30+14:00", utc(2026, 2, 28, 10, 20, 30)),
        ("2026-12-31T23:20:30-08:00", utc(2027, 1, 1, 7, 20, 30)),
        ("2026-03-01T10:20:30.5Z", utc(2026, 3, 1, 10, 20, 30, 500_000)),
        ("2026-03-01T10:20:30.123456Z", utc(2026, 3, 1, 10, 20, 30, 123_456)),
        ("2026-03-01T10:20:30.123456789Z", utc(2026, 3, 1, 10, 20, 30, 123_456)),
        ("2026-03-01T10:20:30.999999999+01:00", utc(2026, 3, 1, 9, 20, 30, 999_999)),
        ("0001-01-01T00:00:00Z", utc(1, 1, 1)),
        ("9999-12-31T23:59:59.999999Z", utc(9999, 12, 31, 23, 59, 59, 999_999)),
        ("1969-12-31T23:59:59.999999Z", utc(1969, 12, 31, 23, 59, 59, 999_999)),
    ],
)
def test_a_time_becomes_an_instant_in_utc_to_the_microsecond(text: str, moment: datetime) -> None:
    found = row(at=text)
    assert (found["at"], found["_extra"]) == (moment, None)


@quick
@given(
    st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001 - the zone comes below
    st.integers(-14 * 60, 14 * 60),
    st.integers(0, 12),
)
def test_any_offset_and_any_number_of_digits_name_the_same_instant(moment: datetime, minutes: int, digits: int) -> None:
    fraction = f"{moment.microsecond:06}000000"[:digits]
    offset = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
    text = f"{moment:%Y-%m-%dT%H:%M:%S}{'.' if digits else ''}{fraction}{offset}"
    kept = moment.replace(microsecond=int(f"{fraction:0<6}"[:6]))
    assert row(at=text)["at"] == kept.replace(tzinfo=UTC) - timedelta(minutes=minutes)


@pytest.mark.parametrize(
    "text", ["2026-03-01", "2026-03-01T10:20:30", "2026-03-01T10:20:30.123456789", "2026-03-01 10:20:30", "0001-01-01"]
)
def test_a_time_that_names_no_instant_is_kept_as_received_and_not_guessed(text: str) -> None:
    found = row(at=text, unknown=1)
    assert found["at"] is None
    assert json.loads(found["_extra"]) == {"at": text, "unknown": 1}


@pytest.mark.parametrize(
    "text",
    [
        "yesterday",
        "",
        "2026-13-01",
        "2026-02-30T10:00:00Z",
        "2026-03-01T25:00:00Z",
        "2026-03-01T10:00:60Z",
        "2026-03-01T10:00Z",
        "2026-03-01T10:00:00 Z",
        "2026-03-01T10:00:00+0100",
        "2026-03-01T10:00:00+24:00",
        "2026-03-01T10:00:00.Z",
        "20260301T100000Z",
        "1772359200",
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "２０２６-03-01T10:00:00Z",  # noqa: RUF001 - digits that only look right
        "2026-03-01T10:00:00Z\n",
    ],
)
def test_a_time_that_is_none_is_set_aside(text: str) -> None:
    assert broken({"id": "a", "at": text}).reason == f"at is not a time (RFC 3339): {text!r}"


def test_a_long_nonsense_is_quoted_short() -> None:
    assert len(broken({"id": "a", "at": "x" * 10_000}).reason) < 100


# Dates ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2026-03-01", date(2026, 3, 1)),
        ("2026-03-01T00:00:00Z", date(2026, 3, 1)),
        ("2026-03-01T23:30:00-08:00", date(2026, 3, 1)),
        ("2026-03-01T00:30:00+13:00", date(2026, 3, 1)),
        ("2026-03-01T10:00:00", date(2026, 3, 1)),
        ("2026-03-01T10:00:00.123456789z", date(2026, 3, 1)),
        ("0001-01-01T00:00:00Z", date(1, 1, 1)),
    ],
)
def test_a_due_date_is_the_day_as_written_beside_its_text_as_received(text: str, day: date) -> None:
    found = row(due_date=text)
    assert (found["due_date"], found["due_date_raw"], found["_extra"]) == (day, text, None)


@pytest.mark.parametrize(
    "text", ["tomorrow", "", "2026-02-30", "2026-3-1", "1.3.2026", "2026-02-30T00:00:00Z", "2026-W10"]
)
def test_a_due_date_that_is_no_day_is_set_aside(text: str) -> None:
    assert broken({"id": "a", "due_date": text}).reason == f"due_date is not a day (YYYY-MM-DD or RFC 3339): {text!r}"


# What is unknown ------------------------------------------------------------------------------------------------------


def test_unknown_fields_are_kept_as_received_nested_ones_too() -> None:
    unknown = {"new": {"deep": [{"x": 1.50, "ü": None}]}, "_hash": "theirs", "due_date_raw": "theirs", "": False}
    found = row(**unknown, title="t")
    assert found["_extra"] == '{"new":{"deep":[{"x":1.5,"ü":null}]},"_hash":"theirs","due_date_raw":"theirs","":false}'
    assert found["title"] == "t"
    assert found["due_date_raw"] is None
    assert len(found["_hash"]) == 64


def test_unknown_fields_inside_a_json_column_stay_inside_it() -> None:
    attendees = [{"email": "ana@example.com", "new_field": {"x": [1]}}]
    batch = decode(stream_named("calendar_events").columns, [{"id": "a", "attendees": attendees}])
    [found] = batch.rows.to_pylist()
    assert json.loads(found["attendees"]) == attendees
    assert found["_extra"] is None


@pytest.mark.parametrize(
    ("value", "stored"),
    [({}, "{}"), ([], "[]"), ("text", '"text"'), (0, "0"), (False, "false"), ({"b": 1, "a": 2}, '{"b":1,"a":2}')],
)
def test_a_json_column_takes_any_json_value(value: Any, stored: str) -> None:
    assert row(context=value)["context"] == stored


def test_json_is_stored_without_spaces_and_as_itself() -> None:
    assert compact_json({"b": ["ü", 1]}) == '{"b":["ü",1]}'
    for value in ("\ud800", float("inf")):
        with pytest.raises(ValueError, match=r"surrogates|JSON"):
            compact_json(value)


# Broken promises ------------------------------------------------------------------------------------------------------

KINDS = [({}, "an object"), ([], "a list"), ("x", "a text"), (True, "a boolean"), (7, "a number"), (7.5, "a number")]
WANTED = {
    "title": ("a text", str),
    "done": ("a boolean", bool),
    "size": ("an integer of 64 bits", int),
    "at": ("a text", str),
    "due_date": ("a text", str),
}
WRONG = [
    (name, value, f"{name} is {what}, not {wanted}")
    for name, (wanted, fits) in WANTED.items()
    for value, what in KINDS
    if type(value) is not fits
]


@pytest.mark.parametrize(("name", "value", "reason"), WRONG)
def test_a_value_of_the_wrong_type_says_which_field_is_what(name: str, value: Any, reason: str) -> None:
    item = {"id": "a", name: value}
    assert broken(item) == Broken("a", has_id=True, reason=reason, raw=json.dumps(item))


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**400, 1.0, 1e300])
def test_a_number_that_64_bits_cannot_hold_is_set_aside(value: float) -> None:
    assert broken({"id": "a", "size": value}).reason == "size is a number, not an integer of 64 bits"


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 0, -1])
def test_the_largest_integers_are_rows(value: int) -> None:
    assert row(size=value)["size"] == value


@pytest.mark.parametrize(
    ("item", "what"),
    [(None, "null"), ([], "a list"), ("x", "a text"), (True, "a boolean"), (7, "a number"), (0.5, "a number")],
)
def test_a_row_must_be_an_object(item: Any, what: str) -> None:
    found = broken(item)
    raw = json.dumps(item)
    assert found.reason == f"a row is {what}, not an object"
    assert (found.key, found.has_id, found.raw) == (hashlib.sha256(raw.encode()).hexdigest(), False, raw)


@pytest.mark.parametrize(
    "identity", [None, "", 7, 0, True, ["a"], {"id": "a"}, "a\nb", "a\x00", "\t", "\x1b[2J", "\ud800", "\u200b"]
)
def test_an_id_that_nobody_can_use_is_none(identity: Any) -> None:
    item = {"id": identity, "title": "t"}
    found = broken(item)
    assert found.reason == "the row has no usable id"
    assert not found.has_id
    assert found.key == hashlib.sha256(json.dumps(item).encode()).hexdigest()
    assert broken({"title": "t"}).reason == "the row has no usable id"


@pytest.mark.parametrize(
    "identity", ["a", "0b9c6f1e-3f1d-4c8e-9a52-1f0c5b0d7e11", "7", "a b", "..", "größe", "'; --", "x" * 5000]
)
def test_any_text_that_can_be_printed_is_an_id(identity: str) -> None:
    assert decode(COLUMNS, [{"id": identity}]).ids == [identity]
    assert broken({"id": identity, "title": 1}).key == identity


HALF = "\ud800"


@pytest.mark.parametrize(
    "fields",
    [
        {"title": f"x{HALF}"},
        {"title": "\udc00\ud800"},
        {"unknown": HALF},
        {"unknown": {"deep": [HALF]}},
        {"unknown": {HALF: 1}},
        {"context": [HALF]},
        {HALF: 1},
    ],
)
def test_half_a_surrogate_pair_is_set_aside_wherever_it_is(fields: dict[str, Any]) -> None:
    found = broken({"id": "a", **fields})
    assert found.reason == "a text holds half of a surrogate pair, which no encoding can store"
    assert found.has_id
    assert found.raw.isascii()
    assert json.loads(found.raw) == {"id": "a", **fields}


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert row(title=json.loads('"\\ud83c\\udfd4"'))["title"] == "🏔"


@pytest.mark.parametrize("text", ['{"x": 1e999}', '{"context": [-1e999]}', '{"context": {"deep": 1e999}}'])
def test_a_number_beyond_all_floats_is_set_aside(text: str) -> None:
    found = broken({"id": "a", **json.loads(text)})
    assert found.reason.startswith("a number cannot be stored (")
    assert (found.key, found.has_id) == ("a", True)


@pytest.mark.parametrize("name", ["context", "unknown"])
def test_a_row_that_is_nested_too_deeply_is_set_aside(name: str) -> None:
    deep: list[Any] = []
    for _ in range(200_000):  # beyond what any Python takes
        deep = [deep]
    batch = decode(COLUMNS, [{"id": "a", name: deep}, {"id": "b"}, [deep]])
    assert batch.ids == ["b"]
    assert [(one.has_id, one.reason) for one in batch.broken] == [
        (True, "the row is nested too deeply"),
        (False, "a row is a list, not an object"),
    ]
    assert batch.broken[0].key == "a"


def test_a_row_breaks_one_promise_and_the_rest_of_the_page_goes_on() -> None:
    items = [{"id": f"row {n}", "title": 1 if n % 10 == 3 else "fine"} for n in range(100)]
    batch = decode(COLUMNS, items)
    assert len(batch.ids) == batch.rows.num_rows == 90
    assert {one.key for one in batch.broken} == {f"row {n}" for n in range(3, 100, 10)}


# Properties -----------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=()), max_size=5)
numbers = st.integers() | st.floats() | st.just(10**400)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda value: st.lists(value, max_size=3) | st.dictionaries(texts, value, max_size=3),
    max_leaves=5,
)
times = st.from_regex(r"\A\d{4}-[01]\d-[0-3]\d([Tt ][0-2]\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)?)?\Z")
objects = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=5) | json_values,
        "title": st.text() | json_values,
        "done": st.booleans() | json_values,
        "size": st.integers() | json_values,
        "at": times | json_values,
        "due_date": times | json_values,
        "context": json_values,
        "unknown": json_values,
    },
)


@quick
@given(st.lists(json_values | objects, max_size=4))
@example([{"id": "a", "at": "9999-12-31T23:59:59-23:59"}, {"id": "a", "at": "0001-01-01T00:00:00+23:59"}])
def test_whatever_comes_every_item_ends_as_a_row_or_set_aside_and_ids_are_kept(items: list[Any]) -> None:
    batch: Batch = decode(COLUMNS, items)
    assert batch.rows.num_rows == len(batch.ids)
    assert batch.rows.num_rows + len(batch.broken) == len(items)
    assert batch.rows.column("id").to_pylist() == batch.ids
    kept = [*batch.ids, *(one.key for one in batch.broken if one.has_id)]
    given_ids = [item["id"] for item in items if isinstance(item, dict) and isinstance(item.get("id"), str)]
    assert sorted(kept) == sorted(identity for identity in given_ids if identity and identity.isprintable())
    for one in batch.broken:
        assert one.reason.isprintable()
        assert one.raw.isascii()
    batch.rows.validate(full=True)


@quick
@given(objects)
def test_nothing_of_a_row_is_lost(item: dict[str, Any]) -> None:
    item = {**item, "id": "a"}
    batch = decode(COLUMNS, [item])
    if batch.broken:
        return
    [found] = batch.rows.to_pylist()
    extra = json.loads(found["_extra"]) if found["_extra"] else {}
    for name, value in item.items():
        if name in extra:
            stored = extra[name]
        elif name == "context" and found["context"] is not None:
            stored = json.loads(found["context"])
        elif name == "at" and found["at"] is not None:
            continue  # see test_any_offset_and_any_number_of_digits_name_the_same_instant
        else:
            stored = found["due_date_raw" if name == "due_date" else name]
        assert stored == value
        assert type(stored) is type(value)


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same: types matter, the order of keys does not."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


def shuffled(value: Any) -> Any:
    """The same value with its keys the other way round, at every depth."""
    if isinstance(value, dict):
        return {name: shuffled(inner) for name, inner in reversed(value.items())}
    return [shuffled(inner) for inner in value] if isinstance(value, list) else value


storable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([-1.0, 0.0, -0.0, 1.0])
    | st.text("ab1", max_size=2),
    lambda value: st.lists(value, max_size=2) | st.dictionaries(st.text("ab", max_size=2), value, max_size=2),
    max_leaves=4,
)


@quick
@given(storable, storable)
@example({"a": 1, "b": 2}, {"b": 2, "a": 1})
@example(1, True)
@example(1, 1.0)
@example(0, False)
@example("1", 1)
@example(None, "null")
@example([], {})
@example(["a,b"], ["a", "b"])
def test_hashes_are_equal_exactly_when_the_values_are(one: Any, other: Any) -> None:
    hashes = [row(unknown=value)["_hash"] for value in (one, other, shuffled(one))]
    assert (hashes[0] == hashes[1]) == same(one, other)
    assert hashes[0] == hashes[2]


def test_the_hash_covers_every_field_known_or_not_and_where_it_stands() -> None:
    variants = [{}, {"title": "x"}, {"context": "x"}, {"unknown": "x"}, {"title": None}, {"at": "2026-03-01"}]
    variants += [{"at": "2026-03-01T00:00:00Z"}, {"at": "2026-03-01T01:00:00+01:00"}]
    assert len({row(**fields)["_hash"] for fields in variants}) == len(variants)


# Speed -----------------------------------------------------------------------------------------------------------------

INSTANTS = (
    "2026-03-01T10:00:00Z",
    "2026-03-01T10:00:00.123456789Z",
    "2026-03-01T10:00:00.5Z",
    "2026-03-01T24:00:00Z",
    "0000-01-01T00:00:00Z",
    "2026-03-01T10:00:60Z",
    "2026-02-30T10:00:00Z",
    "2026-03-01t10:00:00z",
    "2026-03-01T10:00:00+02:00",
    "2026-03-01T10:00:00",
    "2026-03-01",
    "2026-03-01T10:00Z",
    "٢٠٢٦-03-01T10:00:00Z",
    "x",
    "",
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=3), inside, max_size=3),
    max_leaves=5,
)
ITEMS = st.fixed_dictionaries(
    {"id": st.text(min_size=1, max_size=3) | JSON},
    optional={
        "title": st.text(max_size=5) | st.just("\ud800") | JSON,
        "done": st.booleans() | JSON,
        "size": st.integers() | JSON,
        "at": st.sampled_from(INSTANTS) | JSON,
        "due_date": st.sampled_from(INSTANTS) | JSON,
        "context": JSON,
        "new": JSON,
    },
)


@settings(max_examples=300, deadline=None)
@given(st.lists(ITEMS, max_size=3))
def test_a_page_is_decoded_to_the_same_by_column_as_by_row(items: list[Any]) -> None:
    by_column = decode(COLUMNS, items)
    by_row = decode(COLUMNS, [*items, "not a row"])  # with which columns are not tried
    assert by_row.broken.pop().reason == "a row is a text, not an object"
    assert repr(by_column.rows.to_pylist()) == repr(by_row.rows.to_pylist())
    assert (by_column.ids, by_column.broken, by_column.rows.schema) == (by_row.ids, by_row.broken, by_row.rows.schema)


@quick
@given(JSON)
def test_a_row_has_the_hash_of_its_json_with_sorted_keys(value: Any) -> None:
    item = {"id": "a", "new": value}
    batch = decode(COLUMNS, [item])
    try:
        text = json.dumps(item, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError:
        assert len(batch.broken) == 1
        return
    [found] = batch.rows.to_pylist()
    assert json.loads(found["_extra"] or "{}") == ({"new": value} if "new" in item else {})
    if "e" not in text.replace("new", "").replace("true", "").replace("false", ""):  # orjson writes exponents shorter
        assert found["_hash"] == hashlib.sha256(text.encode()).hexdigest()
