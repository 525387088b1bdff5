"""The sandbox's server, called over a real socket: every rule of the API that the pipeline stands on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from contextlib import contextmanager
from copy import copy
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlsplit
from uuid import uuid4

import httpx
import pytest

from contio_pipeline.sandbox.server import API_ROOT, Fault, Sandbox
from contio_pipeline.sandbox.world import SCOPES, World

if TYPE_CHECKING:
    from collections.abc import Iterator

Row = dict[str, Any]
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without it every client loads the system's authorities
YEARS = {"start_date": "2025-01-01", "end_date": "2028-01-01"}
LISTS = {"meetings": "/meetings", "action_items": "/action-items", "calendar_events": "/calendar/events"}


@pytest.fixture(scope="module")
def server() -> Iterator[Sandbox]:
    with Sandbox(World(meetings=60)) as running:
        yield running


@pytest.fixture
def sandbox(server: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """The module's server with settings that a test may change at will: they are put back afterwards."""
    for name in [name for name in vars(server) if not name.startswith("_")]:
        monkeypatch.setattr(server, name, copy(getattr(server, name)) if name != "world" else server.world)
    for account in server.world.accounts.values():
        monkeypatch.setattr(account, "scopes", account.scopes)
    server.reset_log()
    server.reset_limits()
    return server


@contextmanager
def calling(sandbox: Sandbox, account: str = "ana") -> Iterator[httpx.Client]:
    """A client of the user API with a valid token."""
    headers = {"authorization": f"Bearer {sandbox.access_token(account)}"}
    with httpx.Client(base_url=sandbox.api_url + API_ROOT, headers=headers, verify=NO_TLS) as client:
        yield client


@pytest.fixture
def ana(sandbox: Sandbox) -> Iterator[httpx.Client]:
    with calling(sandbox) as client:
        yield client


def refresh(sandbox: Sandbox, token: str, **changes: Any) -> httpx.Response:
    """A call of the token endpoint; `changes` override what httpx.post is given."""
    call: dict[str, Any] = {
        "auth": (sandbox.world.client_id, sandbox.world.client_secret),
        "data": {"grant_type": "refresh_token", "refresh_token": token},
        "verify": NO_TLS,
    } | changes
    return httpx.post(sandbox.token_url, **call)


def all_pages(client: httpx.Client, path: str, **params: Any) -> list[Row]:
    rows: list[Row] = []
    while True:
        page = client.get(path, params={"limit": 7, "offset": len(rows), **params}).raise_for_status().json()
        rows += page["items"]
        if len(rows) >= page["total"]:
            return rows


def code(response: httpx.Response) -> tuple[int, str]:
    """Status and code, after checking that the error has the shape of its family."""
    body = response.json()
    assert response.headers["x-request-id"] == body.pop("request_id")
    assert body.keys() in ({"code", "error"}, {"code", "error", "message"})
    return response.status_code, body["code"]


# ------------------------------------------------------------------------------------------------------ lists


@pytest.mark.parametrize("account", ["ana", "bo", "cem"])
def test_pages_add_up_to_the_truth(sandbox: Sandbox, account: str) -> None:
    truth = sandbox.world.truth(account)
    with calling(sandbox, account) as client:
        assert client.get("/profile").json() == truth["profile"]
        assert all_pages(client, "/meetings") == truth["meetings"]
        assert all_pages(client, "/action-items") == truth["action_items"]
        assert all_pages(client, "/calendar/events", **YEARS) == truth["calendar_events"]
        documents = [row for m in truth["meetings"] for row in all_pages(client, f"/meetings/{m['id']}/context")]
    assert sorted(d["id"] for d in documents) == sorted(d["id"] for d in truth["context_documents"])


def test_details_equal_list_rows(sandbox: Sandbox, ana: httpx.Client) -> None:
    truth = sandbox.world.truth("ana")
    for stream, path in LISTS.items():
        assert ana.get(f"{path}/{truth[stream][0]['id']}").json() == truth[stream][0]
    document = truth["context_documents"][0]
    assert ana.get(f"/meetings/{document['meeting_id']}/context/{document['id']}").json() == document


def test_envelope(sandbox: Sandbox, ana: httpx.Client) -> None:
    response = ana.get("/meetings")
    body = response.json()
    assert response.headers["x-api-version"] == "1.10"
    assert body.keys() == {"items", "total", "limit", "offset"}
    assert (body["limit"], body["offset"], len(body["items"])) == (25, 0, 25)
    assert ana.get("/meetings", params={"limit": 500}).json()["limit"] == 100
    sandbox.max_limit = 10
    assert len(ana.get("/meetings", params={"limit": 500}).json()["items"]) == 10
    assert ana.get("/meetings", params={"offset": 10_000}).json()["items"] == []


@pytest.mark.parametrize("bad", ["limit=x", "limit=-1", "limit=0", "offset=-1", "offset=1.5", "limit=1e2"])
@pytest.mark.parametrize("path", LISTS.values())
def test_bad_paging(path: str, bad: str, ana: httpx.Client) -> None:
    params = YEARS | dict([bad.split("=")])
    assert code(ana.get(path, params=params)) == (400, "invalid_query_parameters")


@pytest.mark.parametrize("field", ["start_date", "end_date"])
@pytest.mark.parametrize("path", LISTS.values())
def test_bad_dates(path: str, field: str, ana: httpx.Client) -> None:
    for bad in ("yesterday", "2026-02-30", "2026-01-01 00:00", "1767225600"):
        assert code(ana.get(path, params=YEARS | {field: bad})) == (400, f"invalid_{field}")


def test_calendar_needs_both_dates(ana: httpx.Client) -> None:
    assert code(ana.get("/calendar/events")) == (400, "missing_start_date")
    assert code(ana.get("/calendar/events", params={"start_date": "2026-01-01"})) == (400, "missing_end_date")
    deprecated = {"start": YEARS["start_date"], "end": YEARS["end_date"]}
    assert ana.get("/calendar/events", params=deprecated).json() == ana.get("/calendar/events", params=YEARS).json()


def test_calendar_direction(ana: httpx.Client) -> None:
    ascending = all_pages(ana, "/calendar/events", **YEARS)
    descending = all_pages(ana, "/calendar/events", **YEARS, direction="desc")
    assert sorted(row["id"] for row in ascending) == sorted(row["id"] for row in descending)
    assert ascending[0]["start_time"] < descending[0]["start_time"]
    assert code(ana.get("/calendar/events", params={**YEARS, "direction": "up"})) == (
        400,
        "invalid_query_parameters",
    )


def test_date_filter_means_the_configured_field(sandbox: Sandbox, ana: httpx.Client) -> None:
    [row_id] = sandbox.world.insert("meetings", start_time="2020-05-05T10:00:00Z", created_at="2021-06-06T00:00:00Z")

    def found(start: str, end: str) -> bool:
        return row_id in [row["id"] for row in all_pages(ana, "/meetings", start_date=start, end_date=end)]

    assert found("2020-05-05", "2020-05-06")
    assert found("2020-05-05T12:00:00+02:00", "2020-05-05T10:00:00Z")  # inclusive on both ends
    sandbox.inclusive_end = False
    assert not found("2020-05-05", "2020-05-05T10:00:00Z")
    sandbox.filter_fields["meetings"] = "created_at"
    assert not found("2020-05-05", "2020-05-06")
    assert found("2021-06-06", "2021-06-07")


def test_undated_rows_are_only_in_unfiltered_lists(ana: httpx.Client) -> None:
    everything = all_pages(ana, "/meetings")
    dated = all_pages(ana, "/meetings", start_date="1900-01-01", end_date="2100-01-01")
    assert [row for row in everything if row not in dated] == [row for row in everything if not row.get("start_time")]
    assert len(dated) < len(everything)


def test_action_item_filters(sandbox: Sandbox, ana: httpx.Client) -> None:
    rows = sandbox.world.items("ana", "action_items")
    meeting_id = next(row["meeting_id"] for row in rows if row.get("meeting_id"))
    for params, expected in (
        ({"meeting_id": meeting_id}, [row for row in rows if row.get("meeting_id") == meeting_id]),
        ({"is_completed": "true"}, [row for row in rows if row.get("is_completed")]),
        ({"is_completed": "false"}, [row for row in rows if not row.get("is_completed")]),
        ({"has_partner_assignment": "true"}, [row for row in rows if row.get("has_partner_assignment")]),
    ):
        assert all_pages(ana, "/action-items", **params) == expected
        assert expected
    assert code(ana.get("/action-items", params={"is_completed": "maybe"})) == (
        400,
        "invalid_query_parameters",
    )
    assert code(ana.get("/action-items", params={"meeting_id": "x"})) == (400, "invalid_request")


def test_participants_and_agenda(sandbox: Sandbox, ana: httpx.Client) -> None:
    meeting_id = sandbox.world.items("ana", "meetings")[0]["id"]
    for part in ("participants", "agenda-items"):
        body = ana.get(f"/meetings/{meeting_id}/{part}").json()
        assert body["total"] == len(body["items"]) > 0
        assert {row["meeting_id"] for row in body["items"]} == {meeting_id}
        assert code(ana.get(f"/meetings/{uuid4()}/{part}")) == (404, "not_found")
        refused = ana.get(f"/meetings/{meeting_id}/{part}", params={"offset": "0"})
        assert code(refused) == (400, "invalid_query_parameters")


# ----------------------------------------------------------------------------------------------------- errors


def test_unknown_invisible_and_malformed_ids(sandbox: Sandbox, ana: httpx.Client) -> None:
    [foreign] = sandbox.world.insert("meetings", account="bo")
    [event] = sandbox.world.insert("calendar_events", account="bo")
    for path in ("/meetings", "/action-items", "/calendar/events"):
        assert code(ana.get(f"{path}/{uuid4()}")) == (404, "not_found")
        assert code(ana.get(f"{path}/17")) == (400, "invalid_request")
    assert code(ana.get(f"/meetings/{foreign}")) == (404, "not_found")
    assert code(ana.get(f"/calendar/events/{event}")) == (403, "forbidden")
    assert code(ana.get("/nothing-here")) == (404, "not_found")


def test_context_of_an_unknown_meeting(sandbox: Sandbox, ana: httpx.Client) -> None:
    assert ana.get(f"/meetings/{uuid4()}/context").json() == {
        "items": [],
        "total": 0,
        "limit": 25,
        "offset": 0,
    }
    sandbox.unknown_parent = "404"
    assert code(ana.get(f"/meetings/{uuid4()}/context")) == (404, "not_found")
    assert code(ana.get("/meetings/17/context")) == (400, "invalid_request")
    assert code(ana.get(f"/meetings/{uuid4()}/context/{uuid4()}")) == (404, "not_found")
    assert code(ana.get(f"/meetings/{uuid4()}/context/{uuid4()}/content")) == (404, "not_found")


def test_tokens_are_needed_and_expire(sandbox: Sandbox, ana: httpx.Client) -> None:
    assert ana.get("/profile").status_code == 200
    for headers in (
        {"authorization": ""},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic eDp5"},
    ):
        assert code(ana.get("/profile", headers=headers)) == (401, "unauthorized")
    sandbox.expire_access_tokens()
    assert code(ana.get("/profile")) == (401, "unauthorized")
    sandbox.access_ttl = 0
    with calling(sandbox) as client:
        assert code(client.get("/profile")) == (401, "unauthorized")


@pytest.mark.parametrize("scope", SCOPES)
def test_missing_scope(scope: str, sandbox: Sandbox, ana: httpx.Client) -> None:
    paths = {
        "profile": "/profile",
        "meetings:read": "/meetings",
        "action-items:read": "/action-items",
        "calendar:read": "/calendar/events",
        "context:read": f"/meetings/{uuid4()}/context",
    }
    sandbox.world.accounts["ana"].scopes = tuple(s for s in SCOPES if s != scope)
    refused = {s for s, path in paths.items() if ana.get(path, params=YEARS).status_code == 403}
    assert refused == {scope}
    assert code(ana.get(paths[scope])) == (403, "insufficient_scope")


# ------------------------------------------------------------------------------------------------------ OAuth


def test_refresh_rotates(sandbox: Sandbox) -> None:
    first = sandbox.world.accounts["bo"].refresh_token
    response = refresh(sandbox, first)
    body = response.json()
    assert response.headers["cache-control"] == "no-store"
    assert body.keys() == {"access_token", "token_type", "expires_in", "refresh_token", "scope"}
    assert (body["token_type"], body["expires_in"], body["scope"]) == ("Bearer", 86_400, " ".join(SCOPES))
    assert body["access_token"].startswith("cto_at_v1_")
    assert body["refresh_token"].startswith("cto_rt_v1_")
    headers = {"authorization": f"Bearer {body['access_token']}"}
    profile = httpx.get(sandbox.api_url + API_ROOT + "/profile", headers=headers, verify=NO_TLS).json()
    assert profile == sandbox.world.accounts["bo"].profile
    assert refresh(sandbox, body["refresh_token"]).status_code == 200


def test_reuse_revokes_the_family(sandbox: Sandbox) -> None:
    first = sandbox.world.accounts["ana"].refresh_token
    other_login = sandbox.login("ana")
    second = refresh(sandbox, first).json()["refresh_token"]
    for token in (first, second):
        response = refresh(sandbox, token)
        assert response.status_code == 400
        assert response.json().keys() == {"error", "error_description", "request_id"}
        assert response.json()["error"] == "invalid_grant"
    assert refresh(sandbox, other_login).status_code == 200
    sandbox.revoke("ana")
    assert refresh(sandbox, other_login).json()["error"] == "invalid_grant"


def test_without_rotation_the_old_token_stays(sandbox: Sandbox) -> None:
    sandbox.rotate = False
    token = sandbox.login("ana")
    for _ in range(2):
        body = refresh(sandbox, token).json()
        assert "refresh_token" not in body
        assert body["access_token"]


VERIFIER = "an-unguessable_verifier.of~43-or-more-characters"
CHALLENGE = urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode().rstrip("=")
CALLBACK = "http://127.0.0.1:8765/callback"


def consent(sandbox: Sandbox, **changes: str | None) -> httpx.Response:
    """Ask for consent as a browser does, without following the redirect; None leaves a parameter out."""
    asked = {
        "response_type": "code",
        "client_id": sandbox.world.client_id,
        "redirect_uri": CALLBACK,
        "scope": " ".join(SCOPES),
        "state": "the state",
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
    } | changes
    params = {name: value for name, value in asked.items() if value is not None}
    return httpx.get(sandbox.authorize_url, params=params, verify=NO_TLS)


def brought_back(response: httpx.Response) -> dict[str, str]:
    """What the redirect brings to the application."""
    assert response.status_code == 302
    assert response.headers["location"].startswith(CALLBACK + "?")
    return dict(parse_qsl(urlsplit(response.headers["location"]).query, strict_parsing=True))


def exchange(sandbox: Sandbox, given: str, **changes: str | None) -> httpx.Response:
    asked = {
        "grant_type": "authorization_code",
        "code": given,
        "redirect_uri": CALLBACK,
        "client_id": sandbox.world.client_id,
        "code_verifier": VERIFIER,
    } | changes
    return refresh(sandbox, "", data={name: value for name, value in asked.items() if value is not None})


def test_a_consent_gives_a_code_and_the_code_gives_tokens_of_that_user(sandbox: Sandbox) -> None:
    for changes, name in (({}, "ana"), ({"account": "bo"}, "bo")):
        answer = brought_back(consent(sandbox, **changes))
        assert answer["state"] == "the state"
        tokens = exchange(sandbox, answer["code"]).json()
        assert tokens["scope"] == " ".join(SCOPES)
        headers = {"authorization": f"Bearer {tokens['access_token']}"}
        told = httpx.get(f"{sandbox.api_url}{API_ROOT}/profile", headers=headers, verify=NO_TLS).json()
        assert told["id"] == sandbox.world.accounts[name].user_id
        assert refresh(sandbox, tokens["refresh_token"]).status_code == 200


def test_a_code_works_once_and_a_second_use_ends_what_it_gave(sandbox: Sandbox) -> None:
    code = brought_back(consent(sandbox))["code"]
    tokens = exchange(sandbox, code).json()
    second = exchange(sandbox, code)
    assert (second.status_code, second.json()["error"]) == (400, "invalid_grant")
    assert refresh(sandbox, tokens["refresh_token"]).json()["error"] == "invalid_grant"


def test_an_old_code_is_refused(sandbox: Sandbox) -> None:
    sandbox.code_ttl = 0.0
    assert exchange(sandbox, brought_back(consent(sandbox))["code"]).json()["error"] == "invalid_grant"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"code_verifier": VERIFIER[:-1] + "x"}, "invalid_grant"),
        ({"code_verifier": CHALLENGE}, "invalid_grant"),
        ({"code_verifier": None}, "invalid_request"),
        ({"redirect_uri": CALLBACK + "/"}, "invalid_grant"),
        ({"redirect_uri": None}, "invalid_request"),
        ({"client_id": "another"}, "invalid_request"),
        ({"code": None}, "invalid_request"),
        ({"code": "made up"}, "invalid_grant"),
    ],
)
def test_bad_exchanges(changes: dict[str, str | None], error: str, sandbox: Sandbox) -> None:
    response = exchange(sandbox, brought_back(consent(sandbox))["code"], **changes)
    assert (response.status_code, response.json()["error"]) == (400, error)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"scope": "meetings:write"}, "invalid_scope"),
        ({"scope": None}, "invalid_scope"),
        ({"login_hint": "nobody"}, "access_denied"),
    ],
)
def test_bad_requests_for_consent_come_back_as_errors(
    changes: dict[str, str | None], error: str, sandbox: Sandbox
) -> None:
    answer = brought_back(consent(sandbox, **changes))
    assert (answer["error"], answer["state"]) == (error, "the state")
    assert "code" not in answer


def test_nobody_is_redirected_for_an_unknown_application_or_address(sandbox: Sandbox) -> None:
    sandbox.redirect_uris = [CALLBACK]
    for changes in ({"client_id": "another"}, {"redirect_uri": CALLBACK + "/"}, {"redirect_uri": "javascript:x"}):
        response = consent(sandbox, **changes)
        assert (response.status_code, "location" in response.headers) == (400, False)


def test_a_token_does_what_was_asked_for_and_no_more(sandbox: Sandbox) -> None:
    code = brought_back(consent(sandbox, scope="profile meetings:read"))["code"]
    tokens = refresh(sandbox, exchange(sandbox, code).json()["refresh_token"]).json()
    assert tokens["scope"] == "profile meetings:read"
    with httpx.Client(headers={"authorization": f"Bearer {tokens['access_token']}"}, verify=NO_TLS) as client:
        assert client.get(f"{sandbox.api_url}{API_ROOT}/meetings").status_code == 200
        assert client.get(f"{sandbox.api_url}{API_ROOT}/action-items").json()["code"] == "insufficient_scope"


def test_client_credentials_raw_or_form_encoded(sandbox: Sandbox) -> None:
    world, token = sandbox.world, sandbox.login("ana")
    assert quote(world.client_secret, safe="") != world.client_secret
    encoded = (quote(world.client_id, safe=""), quote(world.client_secret, safe=""))
    assert refresh(sandbox, token, auth=encoded).status_code == 200
    for auth in ((world.client_id, "wrong"), ("wrong", world.client_secret), None):
        response = refresh(sandbox, token, auth=auth)
        assert (response.status_code, response.json()["error"]) == (401, "invalid_client")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"data": {}}, "invalid_request"),
        ({"data": {"grant_type": "password"}}, "unsupported_grant_type"),
        ({"data": {"grant_type": "refresh_token"}}, "invalid_request"),
        ({"data": {"grant_type": "refresh_token", "refresh_token": "made up"}}, "invalid_grant"),
        ({"data": None, "json": {"grant_type": "refresh_token", "refresh_token": "x"}}, "invalid_request"),
    ],
)
def test_bad_token_requests(changes: dict[str, Any], error: str, sandbox: Sandbox) -> None:
    response = refresh(sandbox, "unused", **changes)
    assert (response.status_code, response.json()["error"]) == (400, error)


# ------------------------------------------------------------------------------------------------- rate limit


def test_rate_limit_is_rolling_and_counts_refused_requests(sandbox: Sandbox, ana: httpx.Client) -> None:
    sandbox.rate_limit, sandbox.rate_window = 3, 0.6
    sandbox.reset_limits()
    statuses = [ana.get("/profile").status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    response = ana.get("/profile")
    assert response.json().keys() == {"error", "error_description"}
    assert response.json()["error"] == "rate_limit_exceeded"
    assert response.headers["retry-after"] == "1"
    assert refresh(sandbox, sandbox.login("ana")).status_code == 200  # another limit
    time.sleep(0.62)
    assert ana.get("/profile").status_code == 200


def test_refused_requests_keep_the_window_full(sandbox: Sandbox, ana: httpx.Client) -> None:
    sandbox.rate_limit, sandbox.rate_window = 2, 0.3
    sandbox.reset_limits()
    end = time.monotonic() + 0.6
    statuses = []
    while time.monotonic() < end:
        statuses.append(ana.get("/profile").status_code)
        time.sleep(0.02)
    assert statuses[:2] == [200, 200]
    assert set(statuses[2:]) == {429}


def test_retry_after_as_date_or_absent(sandbox: Sandbox, ana: httpx.Client) -> None:
    sandbox.rate_limit, sandbox.retry_after = 0, "date"
    assert 280 < parsedate_to_datetime(ana.get("/profile").headers["retry-after"]).timestamp() - time.time() < 302
    sandbox.retry_after = None
    assert "retry-after" not in ana.get("/profile").headers


def test_the_token_endpoint_has_its_own_limit(sandbox: Sandbox, ana: httpx.Client) -> None:
    sandbox.oauth_limit = 2
    assert [refresh(sandbox, "x").status_code for _ in range(3)] == [400, 400, 429]
    assert ana.get("/profile").status_code == 200


# ---------------------------------------------------------------------------------------------------- content


def test_contents_match_the_truth(ana: httpx.Client, sandbox: Sandbox) -> None:
    truth = sandbox.world.truth("ana")
    assert {entry["file_status"] for entry in truth["contents"].values()} >= {"pending", "complete", "error"}
    for row in truth["context_documents"]:
        response = ana.get(f"/meetings/{row['meeting_id']}/context/{row['id']}/content")
        expected = truth["contents"][row["id"]]
        assert response.headers["content-type"] == expected["content_type"] == "application/octet-stream"
        assert int(response.headers["content-length"]) == len(response.content) == expected["size"]
        assert hashlib.sha256(response.content).hexdigest() == expected["sha256"]
        assert ("content-disposition" in response.headers) == (expected["filename"] is not None)
        assert "x-injected" not in response.headers


def test_pending_documents_answer_the_upload(ana: httpx.Client, sandbox: Sandbox) -> None:
    pending = [row for row in sandbox.world.items("ana", "context_documents") if row.get("file_status") == "pending"]
    paths = [f"/meetings/{row['meeting_id']}/context/{row['id']}/content" for row in pending]
    assert all(b"@example.com" in ana.get(path).content for path in paths)
    sandbox.world.process_documents(steps=2)
    assert not any(b"@example.com" in ana.get(path).content for path in paths)


# ---------------------------------------------------------------------------------------------------- control


def change(sandbox: Sandbox, **what: Any) -> list[str]:
    response = httpx.post(f"{sandbox.api_url}/_sandbox/change", json=what, verify=NO_TLS).raise_for_status()
    ids: list[str] = response.json()["ids"]
    return ids


def test_changes_show_in_lists_and_details(sandbox: Sandbox, ana: httpx.Client) -> None:
    def listed() -> set[str]:
        return {row["id"] for row in all_pages(ana, "/meetings")}

    now = sandbox.world.now
    [new] = change(sandbox, op="insert", stream="meetings", title="By hand")
    assert new in listed()
    assert change(sandbox, op="update", stream="meetings", ids=[new], summary_notes={"not": "text"}) == [new]
    assert ana.get(f"/meetings/{new}").json()["summary_notes"] == {"not": "text"}
    change(sandbox, op="hide", account="ana", meeting_ids=[new])
    assert (new in listed(), ana.get(f"/meetings/{new}").status_code) == (False, 404)
    change(sandbox, op="unhide", account="ana", meeting_ids=[new])
    assert new in listed()
    start = ana.get(f"/meetings/{new}").json()["start_time"]
    change(sandbox, op="move", stream="meetings", ids=[new], days=-400)
    assert ana.get(f"/meetings/{new}").json()["start_time"] < start
    change(sandbox, op="merge", ids=[new])
    hint = ana.get(f"/meetings/{new}").json()
    assert hint == {"redirect_to_meeting_id": sandbox.world.redirects[new]}
    assert ana.get(f"/meetings/{hint['redirect_to_meeting_id']}").json()["title"] == "By hand"
    change(sandbox, op="delete", stream="meetings", ids=[hint["redirect_to_meeting_id"]])
    assert hint["redirect_to_meeting_id"] not in listed()
    assert change(sandbox, op="advance", days=1, hours=2) == []
    assert sandbox.world.now == now + timedelta(days=1, hours=2)


def test_soft_deleted_documents(sandbox: Sandbox, ana: httpx.Client) -> None:
    row = sandbox.world.items("ana", "context_documents")[0]
    path = f"/meetings/{row['meeting_id']}/context"
    assert row in all_pages(ana, path)
    change(sandbox, op="rewrite_contents", ids=[row["id"]], body="exact")
    assert ana.get(f"{path}/{row['id']}/content").content == b"exact"
    change(sandbox, op="delete", stream="context_documents", ids=[row["id"]])
    assert row not in all_pages(ana, path)
    assert code(ana.get(f"{path}/{row['id']}")) == (404, "not_found")
    assert code(ana.get(f"{path}/{row['id']}/content")) == (404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        "[]",
        "not json",
        '{"op": "explode"}',
        '{"op": "insert", "stream": "x"}',
        '{"op": "merge", "ids": ["x"]}',
    ],
)
def test_bad_changes_are_refused(body: str, sandbox: Sandbox) -> None:
    response = httpx.post(f"{sandbox.api_url}/_sandbox/change", content=body, verify=NO_TLS)
    assert code(response) == (400, "invalid_change")


def test_control_endpoints_are_neither_counted_nor_logged(sandbox: Sandbox, ana: httpx.Client) -> None:
    sandbox.rate_limit = 1
    sandbox.reset_limits()
    for _ in range(5):
        truth = httpx.get(f"{sandbox.api_url}/_sandbox/truth", verify=NO_TLS).json()
    assert truth == {name: sandbox.world.truth(name) for name in sandbox.world.accounts}
    assert ana.get("/meetings", params={"limit": 3}, headers={"x-client-timezone": "CET"}).status_code == 200
    refresh(sandbox, "secret")
    logged = httpx.get(f"{sandbox.api_url}/_sandbox/requests", verify=NO_TLS).json()
    assert [(e["method"], e["path"], e["status"]) for e in logged] == [
        ("GET", f"{API_ROOT}/meetings", 200),
        ("POST", "/oauth2/token", 400),
    ]
    assert logged[0]["account"] == "ana"
    assert logged[0]["query"] == {"limit": "3"}
    assert logged[0]["bytes"] > 100
    assert logged[0]["headers"]["authorization"] == "Bearer"
    assert logged[0]["headers"]["x-client-timezone"] == "CET"
    assert logged[1]["headers"]["authorization"] == "Basic"
    assert "secret" not in json.dumps(logged)
    httpx.post(f"{sandbox.api_url}/_sandbox/reset_log", verify=NO_TLS)
    assert sandbox.requests == []


# ----------------------------------------------------------------------------------------- when it goes wrong


def test_faults(sandbox: Sandbox, ana: httpx.Client) -> None:
    sandbox.faults = [
        Fault("/meetings", status=503, body="busy", headers={"retry-after": "7"}, times=2),
        Fault("/profile", cut=10),
    ]
    for _ in range(2):
        response = ana.get("/meetings")
        assert (response.status_code, response.text, response.headers["retry-after"]) == (503, "busy", "7")
    assert ana.get("/meetings").status_code == 200
    with pytest.raises(httpx.RemoteProtocolError):
        ana.get("/profile")
    assert ana.get("/profile").status_code == 200


def test_the_world_can_change_between_two_pages(sandbox: Sandbox, ana: httpx.Client) -> None:
    sandbox.before = lambda request: sandbox.world.insert("meetings") if request.query.get("offset") == "7" else None
    first, second = (ana.get("/meetings", params={"limit": 7, "offset": n}).json() for n in (0, 7))
    assert second["total"] == first["total"] + 1


def test_a_lone_surrogate_travels_escaped(sandbox: Sandbox, ana: httpx.Client) -> None:
    [row_id] = sandbox.world.insert("meetings", title="\ud800")
    assert b'"\\ud800"' in ana.get(f"/meetings/{row_id}").content


def test_latency(sandbox: Sandbox, ana: httpx.Client) -> None:
    sandbox.latency = 0.1
    before = time.monotonic()
    ana.get("/profile")
    assert time.monotonic() - before >= 0.1


def test_stop_frees_the_port() -> None:
    with Sandbox(World(meetings=1)) as first:
        url = first.api_url
        port = int(url.rpartition(":")[2])
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, verify=NO_TLS)
    with Sandbox(World(meetings=1), port=port) as second:
        assert second.api_url == url


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_serve_prints_one_line_and_ends_on_a_signal(end: signal.Signals) -> None:
    program = (
        "from contio_pipeline.sandbox.server import Sandbox, serve\n"
        "from contio_pipeline.sandbox.world import World\n"
        "serve(Sandbox(World(meetings=5)))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    ) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready.keys() == {"api_url", "token_url", "authorize_url", "client_id", "client_secret", "accounts"}
        response = httpx.post(
            ready["token_url"],
            auth=(ready["client_id"], ready["client_secret"]),
            data={"grant_type": "refresh_token", **ready["accounts"]["ana"]},
            verify=NO_TLS,
        )
        assert response.status_code == 200
        process.send_signal(end)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "", "")
