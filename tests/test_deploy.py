"""What is under deploy/ is what the program takes: units that systemd accepts, options and settings that exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from contio_pipeline.settings import Settings

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("systemd/*.service"))
SERVICES = {"daemon", "webserver"}


def options_work(options: list[str]) -> None:
    command = [sys.executable, "-m", *options, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_setting_that_is_named_exists() -> None:
    pages = [*DEPLOY.rglob("*.*"), DEPLOY / "Dockerfile", ROOT / "docs/production.md", ROOT / "docs/dagster.md"]
    named = {name for page in pages for name in re.findall(r"CONTIO_[A-Z_]+[A-Z]", page.read_text(encoding="utf-8"))}
    assert named <= {f"CONTIO_{name.upper()}" for name in Settings.names()} | {"CONTIO_ENV_FILE"}
    assert len(named) > 5


@pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_the_units(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text(encoding="utf-8")
    [started] = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    program, module, *options = shlex.split(started)
    assert (program, module) == ("/opt/contio-pipeline/.venv/bin/python", "-m")
    options_work(options)
    here = tmp_path / unit.name
    here.write_text(text.replace("/opt/contio-pipeline/.venv/bin/python", sys.executable), encoding="utf-8")
    analyze = shutil.which("systemd-analyze")
    assert analyze, "there is no systemd-analyze; on Debian: apt-get install systemd"
    done = subprocess.run([analyze, "verify", "--man=no", here], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_units_and_the_containers_run_both_on_the_same_folders() -> None:
    folders = {
        tuple(re.findall(r"^Environment=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)) for unit in UNITS
    }
    assert len(folders) == 1
    assert {unit.name for unit in UNITS} == {f"contio-{name}.service" for name in SERVICES}
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    assert compose["services"].keys() == SERVICES
    for name, service in compose["services"].items():
        assert service["volumes"] == ["data:/data", "state:/state"]
        assert service["command"][:3] == ["dagster_project", "--only", name]
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        options_work(service["command"])
    assert all(port.startswith("127.0.0.1:") for port in compose["services"]["webserver"]["ports"])
    assert compose["volumes"].keys() == {"data", "state"}
