"""Alerts: each problem is told once, to a real receiver, without a secret, until it is over."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest
from conftest import Place, Receiver

from contio_pipeline.alerts import Alerts
from contio_pipeline.errors import ConfigError
from contio_pipeline.health import Problem
from contio_pipeline.settings import Secret, load_settings


@pytest.fixture
def told(new_place: Callable[..., Place], receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Alerts:
    place = new_place(meetings=0, accounts=1)
    place.overrides["alert_url"] = receiver.url
    monkeypatch.setattr(Alerts._post.retry, "wait", lambda _state: 0.01)  # type: ignore[attr-defined]
    return Alerts(place.settings)


REFUSED = Problem("the refresh token of account 'bo' is no longer accepted: log in again", "bo")


def test_a_problem_is_told_once_whoever_sees_it_and_however_often(told: Alerts, receiver: Receiver) -> None:
    assert told.update({"meetings complete": [REFUSED]}) == 1
    assert told.update({"action_items complete": [REFUSED]}) == 0
    assert told.update({"meetings complete": [REFUSED], "run": []}) == 0
    assert receiver.texts == [f":warning: contio-pipeline\n• bo: {REFUSED.what}"]
    assert told.open_problems() == [REFUSED]


def test_it_is_over_when_nobody_sees_it_any_more_and_told_again_when_it_comes_back(
    told: Alerts, receiver: Receiver
) -> None:
    told.update({"meetings complete": [REFUSED], "events complete": [REFUSED]})
    told.update({"meetings complete": []})
    assert told.open_problems() == [REFUSED]
    told.update({"events complete": []}, whole=False)  # it looked at other accounts only
    assert told.open_problems() == [REFUSED]
    told.update({"events complete": []})
    assert told.open_problems() == []
    assert told.update({"meetings complete": [REFUSED]}) == 1
    assert len(receiver.texts) == 2


def test_a_trouble_that_another_one_hides_for_a_night_is_not_over(told: Alerts, receiver: Receiver) -> None:
    told.update({"meetings complete": [REFUSED]})
    told.update({"meetings complete": [Problem("POST token endpoint: 503", "bo")]})
    told.update({"meetings complete": [REFUSED]})
    assert len(receiver.texts) == 2
    told.update({"meetings complete": []})
    assert told.open_problems() == []


def test_what_varies_makes_no_new_problem(told: Alerts, receiver: Receiver) -> None:
    for night in range(3):
        text = f"GET profile: 503 (request_id req-{night}): the listing lacks {night} of 90 rows since 2026-11-0{night}"
        told.update({"meetings complete": [Problem(text, "ana")]})
    assert len(receiver.texts) == 1
    told.update({"meetings complete": [Problem("GET profile: 403 forbidden", "ana")]})
    assert len(receiver.texts) == 2


def test_accounts_in_the_same_trouble_are_one_message_and_others_have_their_own(
    told: Alerts, receiver: Receiver
) -> None:
    down = [Problem(f"no answer (request_id {number})", name) for number, name in enumerate(("ana", "bo", "cem"))]
    lacks = [
        Problem("the listing lacks 60 of 70 rows", "dana"),
        Problem("the meetings could not all be listed", "dana"),
    ]
    assert told.update({"meetings complete": [*down, *lacks]}) == 2
    assert receiver.texts[0] == ":warning: contio-pipeline\n• ana, bo, cem: no answer (request_id 0)"
    assert receiver.texts[1].count("• dana: ") == 2


def test_very_many_are_one_message_that_slack_takes(told: Alerts, receiver: Receiver) -> None:
    many = [
        Problem(f"the refresh token of account 'user{name}x' is refused", f"user{name}x") for name in "abcdefgh" * 30
    ]
    assert told.update({"meetings complete": many}) == 1
    assert len(receiver.texts[0]) <= 2500


def test_what_only_echoes_another_trouble_is_told_where_there_is_no_other(told: Alerts, receiver: Receiver) -> None:
    stale = [Problem("not complete since 2026-11-01", name, echo=True) for name in ("ana", "bo")]
    told.update({"meetings complete": [REFUSED], "meetings fresh": stale})
    assert len(receiver.texts) == 2
    assert "not complete since" in receiver.texts[1]
    assert "bo" not in receiver.texts[1]
    told.update({"meetings complete": []})  # bo's other trouble is over, and it is stale all the same
    assert "bo: not complete since" in receiver.texts[2]


def test_a_receiver_that_is_away_is_tried_again_and_the_next_time(told: Alerts, receiver: Receiver) -> None:
    receiver.statuses = [503, 429]
    assert told.update({"x": [REFUSED]}) == 1
    assert len(receiver.bodies) == 3
    other = Problem("no answer", "ana")
    receiver.statuses = [500] * 3
    assert told.update({"x": [REFUSED, other]}) == 0
    assert told.update({}) == 1  # anything makes it try again
    assert receiver.texts[-1].endswith("ana: no answer")


def test_a_receiver_that_refuses_or_is_not_there_fails_nobody(
    told: Alerts, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses = [404]
    assert not told.tell("hello")
    assert "refused with status 404: see CONTIO_ALERT_URL" in caplog.text
    receiver.stop()
    assert not told.tell("hello")
    assert "could not be sent (ConnectError)" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_no_secret_is_ever_sent(told: Alerts, receiver: Receiver) -> None:
    settings = told._settings
    assert settings.client_secret
    assert settings.alert_url
    for secret in (settings.client_secret.reveal(), settings.alert_url.reveal(), "cto_rt_v1_a-b_C"):
        told.tell(f"look: {secret}!")
        assert receiver.texts[-1] == "look: (secret)!"


def test_many_processes_at_once_tell_it_once(told: Alerts, receiver: Receiver) -> None:
    threads = [threading.Thread(target=told.update, args=({f"s{number}": [REFUSED]},)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(receiver.texts) == 1


def test_a_damaged_note_of_what_was_told_tells_it_again(told: Alerts) -> None:
    told.update({"x": [REFUSED]})
    path = told._settings.state_dir / "alerts.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["open"][0]["told"] is True
    path.write_text("{")
    assert told.update({"x": [REFUSED]}) == 1


def test_it_is_off_until_set_and_an_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Alerts(load_settings()).on
    assert Alerts(load_settings()).update({"x": [REFUSED]}) == 0
    for wrong in ("http://hooks.slack.com/x", "hooks.slack.com", "ftp://x/y"):
        monkeypatch.setenv("CONTIO_ALERT_URL", wrong)
        with pytest.raises(ConfigError, match="CONTIO_ALERT_URL must be the https address of a webhook") as refused:
            load_settings()
        assert wrong not in str(refused.value)
    monkeypatch.setenv("CONTIO_ALERT_URL", "https://hooks.slack.com/services/T0/B0/x")
    assert load_settings().alert_url == Secret("https://hooks.slack.com/services/T0/B0/x")
