"""Backups: whole, consistent, without a secret; restored exactly; refused when anything of one is damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest import Place
from test_cli import call
from test_forget import digests, rows_of
from truth import check

from contio_pipeline.auth import TokenStore
from contio_pipeline.backup import backup, restore
from contio_pipeline.errors import ConfigError, StorageError, WarehouseBusy
from contio_pipeline.settings import load_settings
from contio_pipeline.streams import META
from contio_pipeline.warehouse import Warehouse

NewPlace = Callable[..., Place]
NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def place(new_place: NewPlace) -> Place:
    return new_place(meetings=5, accounts=2, synced=True)


def held(data: Path) -> dict[str, list[str]]:
    """All rows of the warehouse, but for the facts of `ops.meta`."""
    rows = rows_of(data / "warehouse.duckdb")
    return {name: found for name, found in rows.items() if name != META.full_name}


def stored(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("documents/??/??/*")}


def test_a_backup_is_restored_elsewhere_exactly_and_synced_on_from_there(place: Place, tmp_path: Path) -> None:
    done = call("backup", str(tmp_path / "kept"), env=place.environment)
    assert done.returncode == 0, done.stderr
    assert "MB written in" in done.stderr
    [made] = (tmp_path / "kept").iterdir()
    assert f"Backup: {made}" in done.stdout
    assert made.name.startswith("contio-backup-2")
    for path in [made, *made.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    before, documents = held(place.settings.data_dir), stored(place.settings.data_dir)
    assert stored(made) == documents != set()

    place.overrides = {"data_dir": tmp_path / "elsewhere" / "data", "state_dir": tmp_path / "elsewhere" / "state"}
    done = call("restore", str(made), env=place.environment)
    assert done.returncode == 0, done.stderr
    assert "Tokens are never in a backup" in done.stdout
    assert str(made / "settings.env") in done.stdout
    assert held(place.settings.data_dir) == before
    assert stored(place.settings.data_dir) == documents
    check(place.world, place.settings)
    place.add_accounts(signed_in=True)
    place.sandbox.reset_log()
    report = place.sync()
    assert (report.complete, report.total("inserted"), report.total("updated")) == (True, 0, 0)
    assert place.asked("/content") == []


def test_no_backup_holds_a_secret_and_its_settings_are_those_that_were_set(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = place.settings.state_dir.rename(place.folder / "it's \\ #1")
    place.overrides = {"owner": "team:ops", "weekly_cron": "15 2 * * 0", "state_dir": state}
    for name, value in place.environment.items():
        if name.startswith("CONTIO_") and name != "CONTIO_FIRST_DAY":
            monkeypatch.setenv(name, value)
    made = backup(load_settings(), tmp_path / "kept", NOW).folder
    secrets = [place.world.client_secret]
    for name in place.world.accounts:
        tokens = TokenStore(place.settings.state_dir).read(name)
        secrets += [tokens.refresh_token, tokens.access_token]
    for path in made.rglob("*"):
        if path.is_file():
            assert not [secret for secret in secrets if secret.encode() in path.read_bytes()], path
    written = (made / "settings.env").read_text()
    assert "SECRET" not in written
    assert "FIRST_DAY" not in written
    before = load_settings().as_environment()
    for name in list(os.environ):
        if name.startswith("CONTIO_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CONTIO_ENV_FILE", str(made / "settings.env"))
    assert load_settings().as_environment() == {name: value for name, value in before.items() if "SECRET" not in name}


def test_documents_are_shared_with_the_backup_before_and_copied_when_that_one_is_damaged(
    place: Place, tmp_path: Path
) -> None:
    first = backup(place.settings, tmp_path, NOW)
    place.world.insert("context_documents")
    place.sync()
    one = next(first.folder.glob("documents/??/??/*"))
    one.write_bytes(one.read_bytes() + b"x")
    second = backup(place.settings, tmp_path, NOW + timedelta(days=1))
    assert (first.linked, second.linked) == (0, first.documents - 1)
    assert second.documents == first.documents + 1
    for path in second.folder.glob("documents/??/??/*"):
        same = first.folder / path.relative_to(second.folder)
        assert (same.exists() and same.samefile(path)) == (path.name in stored(first.folder) - {one.name})
    place.overrides = {"data_dir": tmp_path / "new"}
    restore(place.settings, second.folder, replace=False, now=NOW)
    check(place.world, place.settings)


def test_a_document_that_is_missing_or_damaged_is_told_and_the_rest_is_backed_up(place: Place, tmp_path: Path) -> None:
    missing, damaged, *_rest = sorted((place.settings.data_dir / "documents").glob("??/??/*"))
    missing.unlink()
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    done = call("backup", str(tmp_path / "kept"), env=place.environment)
    assert (done.returncode, "sync --verify-documents" in done.stderr) == (1, True)
    [made] = (tmp_path / "kept").iterdir()
    assert stored(made) == stored(place.settings.data_dir) - {damaged.name}
    place.overrides = {"data_dir": tmp_path / "new"}
    restored = restore(place.settings, made, replace=False, now=NOW)
    assert restored.missing == 2
    assert place.sync().complete
    check(place.world, place.settings)


def test_restoring_over_a_warehouse_needs_replace_and_moves_it_aside(place: Place, tmp_path: Path) -> None:
    data = place.settings.data_dir
    made, old = backup(place.settings, tmp_path, NOW).folder, held(data)
    place.world.insert("meetings", title="later")
    place.sync()
    (data / "warehouse.duckdb.wal").write_bytes(b"of a process that was killed")
    before, newer = digests(data), rows_of(data / "current/contio.duckdb")
    refused = call("restore", str(made), env=place.environment)
    assert (refused.returncode, "--replace" in refused.stderr) == (2, True)
    assert digests(data) == before
    done = call("restore", str(made), "--replace", env=place.environment)
    assert done.returncode == 0, done.stderr
    [aside] = data.glob("warehouse-before-restore-*.duckdb")
    assert str(aside) in done.stdout
    assert aside.with_name(f"{aside.name}.wal").read_bytes() == b"of a process that was killed"
    aside.with_name(f"{aside.name}.wal").unlink()
    assert rows_of(aside) == newer
    assert held(data) == old
    assert place.query("SELECT count(*) FROM raw.meetings WHERE title = 'later'") == [(0,)]
    assert place.sync().complete
    check(place.world, place.settings)


def test_a_damaged_backup_is_refused_before_anything_is_touched(place: Place, tmp_path: Path) -> None:
    good = backup(place.settings, tmp_path / "kept", NOW).folder
    manifest = json.loads((good / "manifest.json").read_text())
    before = digests(place.settings.data_dir)
    for what in ("warehouse.duckdb", "manifest.json", "settings.env", "document", "partial", "escape", "newer"):
        made = tmp_path / f"with {what}"
        shutil.copytree(good, made)
        match what:
            case "document":
                path = next(made.glob("documents/??/??/*"))
                path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
            case "partial":
                (made / "manifest.json").unlink()
            case "escape":
                files = manifest["files"] | {"documents/../../escaped": [0, "0"]}
                (made / "manifest.json").write_text(json.dumps(manifest | {"files": files}))
            case "newer":
                (made / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
            case _:
                (made / what).write_bytes((made / what).read_bytes()[:-7])
        with pytest.raises(ConfigError, match="nothing was touched"):
            restore(place.settings, made, replace=True, now=NOW)
        assert digests(place.settings.data_dir) == before, what
    place.overrides = {"data_dir": tmp_path / "new"}
    with pytest.raises(ConfigError, match="nothing was touched"):
        restore(place.settings, tmp_path / "with document", replace=False, now=NOW)
    assert not (tmp_path / "new").exists()


KILLED = """
    import os, signal, sys
    from datetime import UTC, datetime
    from pathlib import Path
    from pkgutil import resolve_name
    from unittest.mock import patch
    from contio_pipeline.backup import backup, restore
    from contio_pipeline.settings import load_settings
    name, _, nth = sys.argv[1].partition("#")
    original, calls = resolve_name(name), []
    def die(*arguments, **more):
        calls.append(name)
        if len(calls) == int(nth or 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **more)
    with patch(name, die):
        if sys.argv[2] == "backup":
            backup(load_settings(), Path(sys.argv[3]), datetime.now(UTC))
        else:
            restore(load_settings(), Path(sys.argv[3]), replace=True, now=datetime.now(UTC))
    """


def kill(place: Place, step: str, *arguments: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), step, *arguments]
    assert subprocess.run(command, env=place.environment, check=False).returncode == -signal.SIGKILL, step


def test_a_killed_backup_is_none_and_the_next_one_removes_it(place: Place, tmp_path: Path) -> None:
    for step in ("contio_pipeline.backup.path_of", "contio_pipeline.backup.Path.rename"):
        kill(place, step, "backup", str(tmp_path / "kept"))
        [left] = (tmp_path / "kept").iterdir()
        assert left.name.startswith(".partial-")
    assert held(place.settings.data_dir)["raw.meetings"]
    made = backup(place.settings, tmp_path / "kept", NOW)
    assert list((tmp_path / "kept").iterdir()) == [made.folder]


def test_a_killed_restore_is_completed_by_the_same_command(place: Place, tmp_path: Path) -> None:
    data = place.settings.data_dir
    made, old = backup(place.settings, tmp_path, NOW).folder, held(data)
    place.world.insert("meetings", title="later")
    place.sync(streams=["meetings"])
    shutil.rmtree(data / "documents")
    for step in (
        "contio_pipeline.documents.Incoming.keep",
        "contio_pipeline.backup.replace_file",
        "contio_pipeline.workfile.Path.replace#2",  # the present one is aside, the other not in its place
        "contio_pipeline.backup.publish",
    ):
        kill(place, step, "restore", str(made))
    restore(place.settings, made, replace=True, now=NOW)
    assert held(data) == old
    assert not (data / "warehouse.duckdb.tmp").exists()
    assert stored(data) == stored(made)
    check(place.world, place.settings, streams=["action_items"])


def test_a_restore_that_could_not_publish_says_how_to_go_on(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = backup(place.settings, tmp_path / "kept", NOW).folder
    place.overrides = {"data_dir": tmp_path / "new"}
    with monkeypatch.context() as patched:
        patched.setattr("contio_pipeline.publish.shutil.copyfile", Mock(side_effect=OSError("No space left on device")))
        with pytest.raises(
            StorageError, match=r"restored, but not published yet.*No space left.*contio-pipeline publish"
        ):
            restore(place.settings, made, replace=False, now=NOW)
    subprocess.run([sys.executable, "-m", "contio_pipeline", "publish"], env=place.environment, check=True)
    check(place.world, place.settings)


def test_a_folder_of_backups_and_one_that_is_not_there_are_told(place: Place, tmp_path: Path) -> None:
    made = backup(place.settings, tmp_path / "kept", NOW).folder
    with pytest.raises(ConfigError, match=f"holds 1 backups: give one of them, such as {made}"):
        restore(place.settings, tmp_path / "kept", replace=True, now=NOW)
    with pytest.raises(ConfigError, match="there is no folder"):
        restore(place.settings, tmp_path / "nowhere", replace=True, now=NOW)


def test_where_backups_cannot_be_is_said_and_two_at_once_are_told_apart(place: Place, tmp_path: Path) -> None:
    for folder in (place.settings.data_dir / "kept", place.settings.state_dir):
        with pytest.raises(ConfigError, match="lies inside"):
            backup(place.settings, folder, NOW)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be made"):
        backup(place.settings, tmp_path / "file", NOW)
    with Warehouse(place.settings.data_dir, origin=None), pytest.raises(WarehouseBusy):
        backup(place.settings, tmp_path / "kept", NOW)
    place.overrides = {"data_dir": tmp_path / "new"}
    with pytest.raises(ConfigError, match="contio-pipeline sync"):
        backup(place.settings, tmp_path / "kept", NOW)
    assert not (tmp_path / "new").exists()
