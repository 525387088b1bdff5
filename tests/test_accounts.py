"""Accounts by the hundred: lines are checked as a whole, tokens are never used twice, and what is listed is what is so."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import commands
import pytest
from conftest import Place

from contio_pipeline.accounts import Entry, Keeper, listed, read_entries
from contio_pipeline.auth import Tokens, TokenStore
from contio_pipeline.errors import ConfigError
from contio_pipeline.login import Login
from contio_pipeline.sandbox.server import Fault


@pytest.fixture
def place(new_place: Callable[..., Place]) -> Place:
    """A small place without accounts."""
    place = new_place(meetings=5, accounts=4)
    for name in store_of(place).names():
        store_of(place).remove(name)
    return place


def store_of(place: Place) -> TokenStore:
    return TokenStore(place.settings.state_dir)


def command(place: Place, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    done = commands.command("accounts", *arguments, env=place.environment, input=given)
    assert "Traceback" not in done.stdout + done.stderr
    assert "cto_" not in done.stdout + done.stderr.replace("cto_rt_…", "")
    return done


def lines_for(place: Place, *names: str) -> str:
    return "".join(f"{name},{place.sandbox.login(name)}\n" for name in names)


def refreshes(place: Place) -> int:
    return len(place.asked("/oauth2/token"))


# Lines ----------------------------------------------------------------------------------------------------------------


def test_lines_of_csv_and_json_may_be_mixed() -> None:
    lines = [
        "name,refresh_token\n",
        "ana,cto_rt_v1_a\r\n",
        "\n",
        ' "bo", cto_rt_v1_b \n',
        '{"name": "eve@example.com", "refresh_token": "cto_rt_v1_e", "note": 1}\n',
    ]
    assert read_entries(lines) == [
        Entry("ana", "cto_rt_v1_a", 2),
        Entry("bo", "cto_rt_v1_b", 4),
        Entry("eve@example.com", "cto_rt_v1_e", 5),
    ]
    assert "cto_rt" not in repr(read_entries(lines))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bo", "not 1 fields"),
        ("bo,cto_rt_v1_b,more", "not 3 fields"),
        ("bo,", "no refresh token"),
        ("bo,cto_rt v1", "no refresh token"),
        ("bo,cto_rt_é", "no refresh token"),
        ("bo,cto_at_v1_b", "access token"),
        ("../bo,cto_rt_v1_b", "cannot name an account"),
        (",cto_rt_v1_b", "cannot name an account"),
        ("cto_rt_v1_b,bo", "a token stands where the account's name should"),
        ('"bo,cto_rt_v1_b', "not valid CSV"),
        ('{"name": "bo", "refresh_token": "cto_rt_v1_b"', "not valid JSON"),
        ('{"name": "bo", "token": "cto_rt_v1_b"}', '"refresh_token"'),
        ('{"name": 7, "refresh_token": "cto_rt_v1_b"}', "both texts"),
        ("ana,cto_rt_v1_b", "ana stands in line 1 already"),
        ("ANA,cto_rt_v1_b", "ANA stands in line 1 already"),
        ("bo,cto_rt_v1_a", "the token of line 1 again"),
    ],
)
def test_a_line_that_is_wrong_is_named_without_its_token(line: str, said: str) -> None:
    with pytest.raises(ConfigError) as failed:
        read_entries(["ana,cto_rt_v1_a\n", line, "dan,cto_rt_v1_d"])
    assert str(failed.value).startswith("nothing was changed: line 2: ")
    assert said in str(failed.value)
    assert "cto_rt_v1_" not in str(failed.value).replace("cto_rt_v1_…", "")


def test_all_wrong_lines_are_named_but_not_hundreds() -> None:
    with pytest.raises(ConfigError, match=r"line 1: .*; line 20: .*; and 280 more$"):
        read_entries(["wrong"] * 300)
    with pytest.raises(ConfigError, match="held no accounts"):
        read_entries(["\n"])


# Import ---------------------------------------------------------------------------------------------------------------


def test_many_are_imported_tried_and_can_be_synced_and_again_changes_nothing(place: Place) -> None:
    given = lines_for(place, "ana", "bo", "cem")
    done = command(place, "import", given=given)
    assert done.returncode == 0, done.stderr
    assert "Imported 3 accounts: 3 work" in done.stdout
    store = store_of(place)
    before = {name: store.read(name) for name in store.names()}
    assert {name: tokens.profile_id for name, tokens in before.items()} == {
        name: place.world.accounts[name].user_id for name in ("ana", "bo", "cem")
    }
    for options in ((), ("--replace",)):
        count = refreshes(place)
        again = command(place, "import", *options, given=given)
        assert again.returncode == 0, again.stderr
        assert "3 were given before and are in use" in again.stderr
        assert refreshes(place) == count
    assert {name: store.read(name) for name in store.names()} == before
    assert place.sync(streams=["meetings"]).complete


def test_when_a_line_is_wrong_nothing_is_changed(place: Place) -> None:
    done = command(place, "import", given=lines_for(place, "ana") + "bo\n")
    assert done.returncode == 2
    assert "line 2" in done.stderr
    assert store_of(place).names() == []
    assert refreshes(place) == 0


def test_a_refused_token_is_not_kept_and_the_others_are(place: Place) -> None:
    given = lines_for(place, "ana") + "bo,cto_rt_v1_wrong\n" + lines_for(place, "cem")
    done = command(place, "import", given=given)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("Refused: bo (line 2)")]
    assert "no longer accepted" in line
    assert "contio-pipeline accounts add bo" in line
    assert "Imported 2 accounts: 2 work, 0 could not be tried, 1 were refused" in done.stdout
    assert store_of(place).names() == ["ana", "cem"]


def test_an_import_that_was_stopped_goes_on_with_the_same_lines(place: Place) -> None:
    entries = read_entries(lines_for(place, "ana", "bo", "cem").splitlines())
    keeper = Keeper(place.settings)
    fresh, _ = keeper.take(entries, replace=False)
    trials = keeper.trials(fresh)
    assert next(trials).state == "added"
    trials.close()  # stopped: one is tried, two are stored
    again = Keeper(place.settings)
    fresh, done = again.take(entries, replace=False)
    assert ([entry.name for entry in fresh], [entry.name for entry in done]) == (["bo", "cem"], ["ana"])
    assert [outcome.state for outcome in again.trials(fresh)] == ["added", "added"]
    assert place.sync(streams=["meetings"]).complete


def test_an_untried_token_that_is_refused_at_last_is_removed(place: Place) -> None:
    entries = [Entry("bo", "cto_rt_v1_wrong")]
    Keeper(place.settings).take(entries, replace=False)
    again = Keeper(place.settings)
    fresh, _ = again.take(entries, replace=False)
    assert [outcome.state for outcome in again.trials(fresh)] == ["refused"]
    assert store_of(place).names() == []


def test_accounts_that_are_there_are_named_and_replaced_only_when_asked_to(place: Place) -> None:
    assert command(place, "import", given=lines_for(place, "ana")).returncode == 0
    before = store_of(place).read("ana")
    given = lines_for(place, "bo", "ana")
    refused = command(place, "import", given=given)
    assert refused.returncode == 2
    assert "line 2: ana is there already" in refused.stderr
    assert "--replace" in refused.stderr
    assert store_of(place).names() == ["ana"]
    assert store_of(place).read("ana") == before
    done = command(place, "import", "--replace", given=given)
    assert done.returncode == 0, done.stderr
    after = store_of(place).read("ana")
    assert after.refresh_token != before.refresh_token
    assert after.profile_id == before.profile_id


def test_another_users_token_leaves_the_account_as_it_was(place: Place) -> None:
    assert command(place, "import", given=lines_for(place, "ana")).returncode == 0
    before = store_of(place).read("ana")
    given = f"ana,{place.sandbox.login('bo')}\n"
    for said in ("another Contio user", "no longer accepted"):  # it was used up by the first trial
        done = command(place, "import", "--replace", given=given)
        assert done.returncode == 1
        assert said in done.stderr
        assert store_of(place).read("ana") == before


def test_credentials_that_are_refused_throw_no_token_away(place: Place) -> None:
    given = lines_for(place, "ana", "bo")
    place.overrides["client_secret"] = "wrong"
    done = command(place, "import", given=given)
    assert done.returncode == 1
    assert "CONTIO_CLIENT_SECRET" in done.stderr
    assert refreshes(place) == 1
    assert store_of(place).names() == ["ana", "bo"]
    del place.overrides["client_secret"]
    assert command(place, "import", given=given).returncode == 0
    assert place.sync(streams=["meetings"]).complete


def test_a_stop_before_the_trial_of_a_new_token_does_not_lose_it(place: Place) -> None:
    assert command(place, "import", given=lines_for(place, "ana")).returncode == 0
    given = lines_for(place, "ana")
    assert command(place, "import", "--replace", "--no-try", given=given).returncode == 0
    again = command(place, "import", given=given)
    assert again.returncode == 0, again.stderr
    assert "1 tokens stored, 0 were given before" in again.stderr
    assert store_of(place).read("ana").profile_id == place.world.accounts["ana"].user_id


def test_without_a_trial_nothing_is_sent_and_the_next_sync_tries(place: Place) -> None:
    assert command(place, "import", "--no-try", given=lines_for(place, "ana", "bo")).returncode == 0
    assert place.sandbox.requests == []
    assert place.sync(streams=["meetings"]).complete


# Add ------------------------------------------------------------------------------------------------------------------


def add(place: Place, name: str, token: str) -> subprocess.CompletedProcess[str]:
    return command(place, "add", name, "--refresh-token-stdin", given=token + "\n")


def test_one_token_is_never_taken_for_two_accounts(place: Place) -> None:
    token = place.sandbox.login("ana")
    assert add(place, "sales", token).returncode == 0
    store_of(place).write("static", Tokens("cto_rt_v1_static"))
    for name, given, owner in (("ana", token, "sales"), ("other", "cto_rt_v1_static", "static")):
        count = refreshes(place)
        done = add(place, name, given)
        assert done.returncode == 2
        assert f"this token is {owner}'s already" in done.stderr
        assert f"login --account {name}" in done.stderr
        assert refreshes(place) == count
    assert store_of(place).names() == ["sales", "static"]


def test_adding_the_same_token_again_does_not_end_the_account(place: Place) -> None:
    token = place.sandbox.login("ana")
    assert add(place, "sales", token).returncode == 0
    before = store_of(place).read("sales")
    again = add(place, "sales", token)
    assert again.returncode == 0
    assert "given before" in again.stdout
    assert store_of(place).read("sales") == before
    place.sandbox.expire_access_tokens()
    assert place.sync(streams=["meetings"]).complete
    place.sandbox.revoke("ana")
    ended = add(place, "sales", token)
    assert ended.returncode == 1
    assert "no longer accepted" in ended.stderr


def test_a_removed_accounts_token_may_be_tried_again(place: Place) -> None:
    token = place.sandbox.login("ana")
    place.sandbox.rotate = False
    assert add(place, "sales", token).returncode == 0
    store_of(place).remove("sales")
    assert add(place, "marketing", token).returncode == 0


def test_what_is_remembered_of_tokens_is_not_the_tokens(place: Place) -> None:
    token = place.sandbox.login("ana")
    assert add(place, "sales", token).returncode == 0
    file = place.settings.state_dir / "given-tokens"
    assert token not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    with file.open("a") as torn:
        torn.write("\n3f2a")
    assert add(place, "sales", token).returncode == 0


def test_a_missing_scope_is_told_with_what_is_lost(place: Place) -> None:
    place.world.accounts["ana"].scopes = ("profile", "meetings:read", "action-items:read", "calendar:read")
    done = add(place, "sales", place.sandbox.login("ana"))
    assert done.returncode == 0
    [line] = [line for line in done.stderr.splitlines() if line.startswith("Warning: ")]
    for word in ("lacks context:read", "context_documents", "login --account sales"):
        assert word in line


# List -----------------------------------------------------------------------------------------------------------------


def test_a_name_that_differs_in_case_only_is_refused(place: Place) -> None:
    assert command(place, "add", "Ana", "--refresh-token-stdin", given=place.sandbox.login("ana")).returncode == 0
    for arguments, given in (
        (("add", "ANA", "--refresh-token-stdin"), place.sandbox.login("ana")),
        (("import",), f"aNa,{place.sandbox.login('ana')}"),
    ):
        done = command(place, *arguments, given=given)
        assert done.returncode == 2
        assert "there is an account Ana already" in done.stderr
    with pytest.raises(ConfigError, match="differs from it in case only"):
        Login(place.settings, "ana")
    assert store_of(place).names() == ["Ana"]


def test_the_list_shows_whose_accounts_are_and_how_they_are_doing(place: Place) -> None:
    place.world.accounts["bo"].scopes = ("profile", "meetings:read")
    assert command(place, "import", given=lines_for(place, "ana", "bo")).returncode == 0
    store_of(place).write("new", Tokens("cto_rt_v1_new"))
    (place.settings.state_dir / "accounts" / "worn.json").write_text("{")
    place.sync(accounts=["ana"], streams=["meetings"])
    place.sandbox.faults = [Fault("action-items", status=403, body='{"code": "forbidden", "error": "x"}')]
    place.sync(accounts=["ana"], streams=["action_items"])
    ana, bo, new, worn = listed(place.settings)
    profile = place.world.accounts["ana"].profile
    assert ana.user == f"{profile['display_name']} <{profile['email']}>"
    assert ana.user_id == place.world.accounts["ana"].user_id
    assert ana.scopes
    assert ana.missing_scopes == ()
    assert (ana.complete, ana.complete_as_of) == (False, None)
    assert ana.synced_at
    assert ana.synced_at > datetime.now(UTC) - timedelta(minutes=5)
    assert ana.days_left(datetime.now(UTC)) == 29
    assert ana.days_left(datetime.now(UTC) + timedelta(days=40)) == 0
    assert (bo.missing_scopes, bo.synced_at) == (("action-items:read", "calendar:read", "context:read"), None)
    assert (new.scopes, new.days_left(datetime.now(UTC)), new.damaged) == (None, None, False)
    assert worn.damaged
    done = command(place, "list")
    for word in ("lacks action-items:read", "not tried yet", "damaged: contio-pipeline login --account worn", "NO"):
        assert word in done.stdout

    place.sandbox.revoke("bo")
    place.sandbox.expire_access_tokens()
    assert not place.sync(accounts=["bo"], streams=["meetings"]).complete
    bo = listed(place.settings)[1]
    assert bo.refused_at
    assert bo.days_left(datetime.now(UTC)) is None
    assert "refused since" in command(place, "list").stdout

    place.sync(accounts=["ana"], streams=["meetings", "action_items"])
    told: list[dict[str, Any]] = json.loads(command(place, "list", "--json").stdout)
    assert [one["account"] for one in told] == ["ana", "bo", "new", "worn"]
    assert told[0]["complete"] is True
    assert told[0]["complete_as_of"] > ana.synced_at.isoformat()
    assert told[0]["days_left"] == 29


def test_the_list_needs_no_published_data_and_says_how_to_begin(place: Place) -> None:
    assert "contio-pipeline login" in command(place, "list").stdout
    store_of(place).write("new", Tokens("cto_rt_v1_new"))
    assert "new" in command(place, "list").stdout
    place.sync(streams=["meetings"])
    (place.settings.data_dir / "current" / "manifest.json").unlink()
    damaged = command(place, "list")
    assert damaged.returncode == 0
    assert "new" in damaged.stdout
