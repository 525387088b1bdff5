"""The probe finds what the sandbox hides, whichever way it is, in a bounded number of requests."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import LISTED, Place

from contio_pipeline.client import Client
from contio_pipeline.errors import AccountError, Throttled
from contio_pipeline.probe import Answers, is_known, probe
from contio_pipeline.sandbox.faults import named
from contio_pipeline.sandbox.server import API_VERSION

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)  # the sandbox's world stands still there
NewPlace = Callable[..., Place]


def ask(place: Place, account: str = "ana") -> Answers:
    with Client(place.settings) as client:
        client.profile(account, "profile")
        before = client.traffic.requests
        answers = probe(client, account, NOW, LISTED)
        assert client.traffic.requests - before <= 27
    return answers


def test_what_the_sandbox_does_by_itself_is_found(new_place: NewPlace) -> None:
    assert ask(new_place(meetings=120, accounts=1)) == {
        "meetings.limit_500": "clamped to 100",
        "meetings.order": "start_time descending",
        "meetings.list_lacks": "nothing",
        "meetings.date_filter": "start_time",
        "meetings.start_included": "yes",
        "meetings.end_included": "yes",
        "action_items.limit_500": "clamped to 100",
        "action_items.order": "created_at descending",
        "action_items.list_lacks": "nothing",
        "action_items.date_filter": "created_at",
        "action_items.start_included": "yes",
        "action_items.end_included": "yes",
        "calendar_events.longest_range": "5 years or more",
        "calendar_events.list_lacks": "nothing",
        "context_documents.unknown_parent": "an empty list",
        "api_version": API_VERSION,
    }


@pytest.mark.parametrize(
    ("stream", "field"),
    [
        ("meetings", "end_time"),
        ("meetings", "created_at"),
        ("meetings", "updated_at"),
        ("action_items", "updated_at"),
        ("action_items", "due_date"),
        ("action_items", "completed_at"),
    ],
)
def test_the_field_that_dates_filter_on_is_found(new_place: NewPlace, stream: str, field: str) -> None:
    place = new_place(meetings=30, accounts=1)
    place.sandbox.filter_fields[stream] = field
    answers = ask(place)
    assert answers[f"{stream}.date_filter"] == field
    assert answers[f"{stream}.order"] == f"{field} descending"
    others = {"meetings": "start_time", "action_items": "created_at"} | {stream: field}
    assert {name: answers[f"{name}.date_filter"] for name in others} == others


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({"inclusive_end": False}, {"meetings.end_included": "no", "action_items.end_included": "no"}),
        ({"max_limit": 5}, {"meetings.limit_500": "clamped to 5", "meetings.date_filter": "start_time"}),
        ({"max_limit": 1000}, {"action_items.limit_500": "honoured"}),
        ({"unknown_parent": "404"}, {"context_documents.unknown_parent": "404"}),
    ],
)
def test_a_switch_of_the_sandbox_is_found(
    new_place: NewPlace, switches: dict[str, Any], expected: dict[str, str]
) -> None:
    place = new_place(meetings=80, accounts=1)
    for name, value in switches.items():
        setattr(place.sandbox, name, value)
    assert ask(place).items() >= expected.items()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("calendar-refused", {"calendar_events.longest_range": "less than a year: refused"}),
        ("calendar-clamped", {"calendar_events.longest_range": "less than a year: cut off without a word"}),
        ("limit-refused", {"meetings.limit_500": "refused", "meetings.date_filter": "start_time"}),
        ("list-thin", {"meetings.list_lacks": "summary_notes", "calendar_events.list_lacks": "description"}),
        ("order-by-change", {"meetings.order": "updated_at descending"}),
        ("order-random", {"meetings.order": "none seen"}),
    ],
)
def test_a_fault_of_the_sandbox_is_found(new_place: NewPlace, fault: str, expected: dict[str, str]) -> None:
    place = new_place(meetings=20, accounts=1)
    for row_id in sorted(row["id"] for row in place.world.items("ana", "meetings")):
        place.world.update("meetings", ids=[row_id])  # `order-by-change` sorts texts: let all be in UTC
    place.sandbox.faults.append(named(fault))
    assert ask(place).items() >= expected.items()


def test_a_filter_that_filters_nothing_is_found(new_place: NewPlace) -> None:
    place = new_place(meetings=10, accounts=1)
    fault = named("order-random")  # lends its paths
    fault.query = lambda query: {name: value for name, value in query.items() if not name.endswith("_date")}
    fault.path = r"/user/meetings$"
    place.sandbox.faults.append(fault)
    answers = ask(place)
    assert answers["meetings.date_filter"] == "nothing"
    assert not is_known(answers["meetings.end_included"])


def test_an_account_without_rows_leaves_it_unknown_and_says_why(new_place: NewPlace) -> None:
    answers = ask(new_place(meetings=0, accounts=1))
    told = {name: answer for name, answer in answers.items() if is_known(answer)}
    assert told.keys() == {"calendar_events.longest_range", "context_documents.unknown_parent", "api_version"}
    assert answers["meetings.date_filter"] == "unknown: the account has no row with several times"


def test_a_stream_that_may_not_be_read_leaves_the_others_alone(new_place: NewPlace) -> None:
    place = new_place(meetings=20, accounts=1)
    place.world.accounts["ana"].scopes = ("profile", "action-items:read")
    answers = ask(place)
    assert "insufficient_scope" in answers["meetings.order"]
    assert answers["action_items.date_filter"] == "created_at"


def test_an_account_that_cannot_be_used_and_an_api_that_is_full_end_it(new_place: NewPlace) -> None:
    place = new_place(meetings=5)
    with Client(place.settings) as client:
        place.sandbox.faults.append(named("429-day"))
        with pytest.raises(Throttled):
            probe(client, "ana", NOW)
    place.sandbox.faults.clear()
    place.overrides["state_dir"] = place.folder / "other"  # the budget there is not held
    place.add_accounts(signed_in=True)
    place.sandbox.revoke("bo")
    with Client(place.settings) as client, pytest.raises(AccountError):
        probe(client, "bo", NOW)
