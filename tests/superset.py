"""`make superset`: what is published, read by a real Superset through its API, also while it is published anew.

    python tests/superset.py [--publications 10]

It syncs a sandbox, starts Superset (`.venv/superset`) on loopback, makes a connection, a dataset of each mart and a chart, and
compares what they answer with the published file. Exit code 1 when anything differs, is stale or fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import httpx

from contio_pipeline.auth import Tokens, TokenStore
from contio_pipeline.generations import current
from contio_pipeline.marts import MARTS
from contio_pipeline.sandbox.server import Sandbox
from contio_pipeline.sandbox.world import World
from contio_pipeline.settings import Settings, load_settings
from contio_pipeline.sync import sync

ROOT = Path(__file__).parent.parent
BIN = ROOT / ".venv" / "superset" / "bin"
CONFIG = """
SECRET_KEY = os.environ["SUPERSET_SECRET_KEY"]
SQLALCHEMY_DATABASE_URI = f"sqlite:///{os.environ['SUPERSET_HOME']}/superset.db"
"""


def recipe() -> tuple[str, str]:
    """What docs/bi.md says: the configuration, and the address with the path left out."""
    text = (ROOT / "docs" / "bi.md").read_text(encoding="utf-8").partition("### Superset\n")[2]
    [config] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[:1]
    [address] = re.findall(r"duckdb:///\S+", text)[:1]
    return config, address.replace("/srv/contio/data", "{data}")


@contextmanager
def superset(folder: Path, config: str) -> Iterator[httpx.Client]:
    """A server of its own, and a client that is logged in."""
    (folder / "superset_config.py").write_text(config + CONFIG, encoding="utf-8")
    password = secrets.token_hex(8)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "SUPERSET_HOME": str(folder),
        "SUPERSET_CONFIG_PATH": str(folder / "superset_config.py"),
        "SUPERSET_SECRET_KEY": secrets.token_hex(32),
        "FLASK_APP": "superset",
        "TZ": "UTC",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    admin = [
        "--username",
        "admin",
        "--firstname",
        "A",
        "--lastname",
        "A",
        "--email",
        "a@example.com",
        "--password",
        password,
    ]
    log = folder / "log"
    with log.open("w") as told:
        for command in (["db", "upgrade"], ["fab", "create-admin", *admin], ["init"]):
            subprocess.run([BIN / "superset", *command], env=environment, stdout=told, stderr=told, check=True)
        serve = [
            BIN / "gunicorn",
            "-w",
            "2",
            "-k",
            "gthread",
            "--threads",
            "4",
            "-b",
            f"127.0.0.1:{port}",
            "superset.app:create_app()",
        ]
        server = subprocess.Popen(serve, env=environment, stdout=told, stderr=told)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as client:
            while not _answers(client):
                assert server.poll() is None, log.read_text()[-2000:]
                time.sleep(0.5)
            who = {"username": "admin", "password": password, "provider": "db"}
            client.headers["Authorization"] = (
                f"Bearer {call(client, 'POST', 'security/login', json=who)['access_token']}"
            )
            client.headers["X-CSRFToken"] = call(client, "GET", "security/csrf_token/")["result"]
            client.headers["Referer"] = str(client.base_url)
            yield client
    finally:
        server.terminate()
        server.wait(60)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").is_success
    except httpx.TransportError:
        return False


def call(client: httpx.Client, method: str, path: str, **options: Any) -> Any:
    """What the API answers."""
    response = client.request(method, f"/api/v1/{path}", **options)
    assert response.is_success, f"{method} {path}: {response.status_code} {response.text[:500]}"
    return response.json()


def data(client: httpx.Client, dataset: int, columns: list[str], metric: str) -> list[dict[str, Any]]:
    """What a chart of a dataset would show."""
    one = {"expressionType": "SQL", "sqlExpression": metric, "label": "value"}
    asked = {
        "datasource": {"id": dataset, "type": "table"},
        "force": True,
        "queries": [{"columns": columns, "metrics": [one], "row_limit": 100_000}],
    }
    return list(call(client, "POST", "chart/data", json=asked)["result"][0]["data"])


def look(client: httpx.Client, data_dir: Path, address: str) -> tuple[dict[str, int], list[str]]:
    """Make connection, datasets and a chart; returns mart -> dataset, and what is not as it should be."""
    wrong = []
    own = {"database_name": "Contio", "sqlalchemy_uri": address.replace("{data}", str(data_dir))}
    database = call(client, "POST", "database/", json=own)["id"]
    datasets = {}
    with duckdb.connect(current(data_dir).database, read_only=True) as file:
        for mart in MARTS:
            made = call(
                client, "POST", "dataset/", json={"database": database, "schema": "mart", "table_name": mart.name}
            )
            datasets[mart.name] = made["id"]
            found = data(client, made["id"], [], "COUNT(*)")[0]["value"]
            columns = call(client, "GET", f"dataset/{made['id']}")["result"]["columns"]
            told = {one["column_name"]: one["description"] for one in columns}
            if (found,) != file.execute(f"SELECT count(*) FROM {mart.full_name}").fetchone():
                wrong.append(f"{mart.full_name}: {found} rows")
            if told != {one.name: one.doc for one in mart.fields}:
                wrong.append(f"{mart.full_name}: other columns or comments")
        weeks = data(client, datasets["person_week"], ["week_start"], "SUM(minutes)")
        held = file.execute("SELECT epoch_ms(week_start), sum(minutes) FROM mart.person_week GROUP BY 1").fetchall()
        if sorted((one["week_start"], one["value"]) for one in weeks) != sorted(held):
            wrong.append("mart.person_week: other minutes by week")
    chart = {"slice_name": "Hours a week", "viz_type": "echarts_timeseries_line", "datasource_type": "table"}
    hours = {"expressionType": "SQL", "sqlExpression": "SUM(minutes)/60", "label": "hours"}
    params = {
        "viz_type": chart["viz_type"],
        "x_axis": "week_start",
        "time_grain_sqla": "P1W",
        "metrics": [hours],
        "groupby": [],
    }
    call(
        client, "POST", "chart/", json=chart | {"datasource_id": datasets["person_week"], "params": json.dumps(params)}
    )
    for sql in ("SELECT * FROM read_text('/etc/hostname')", "SET enable_external_access = true"):
        asked = {"database_id": database, "sql": sql, "runAsync": False, "client_id": secrets.token_hex(5)}
        if client.post("/api/v1/sqllab/execute/", json=asked).is_success:
            wrong.append(f"SQL Lab may {sql}")
    return datasets, wrong


def follow(
    client: httpx.Client, settings: Settings, world: World, dataset: int, publications: int
) -> tuple[int, list[str]]:
    """Ask in four threads while it is published anew; returns how often was asked, and what was stale or failed."""
    published: list[tuple[float, int]] = []
    seen: list[tuple[float, int]] = []
    wrong: list[str] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                begun = time.monotonic()
                seen.append((begun, data(client, dataset, [], "COUNT(*)")[0]["value"]))
        except (AssertionError, httpx.HTTPError) as error:
            wrong.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(publications):
        world.insert("meetings")
        sync(settings)
        with duckdb.connect(current(settings.data_dir).database, read_only=True) as file:
            [(rows,)] = file.execute("SELECT count(*) FROM mart.meetings").fetchall()
        published.append((time.monotonic(), rows))
    done.set()
    for thread in threads:
        thread.join()
    wrong += [
        f"{rows} meetings where {least} were published before it was asked"
        for begun, rows in seen
        if rows < (least := max((rows for at, rows in published if at <= begun), default=0))
    ]
    return len(seen), wrong


def main() -> int:
    """Run it and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--publications", type=int, default=10, help="how often it is published while Superset is asked"
    )
    asked = parser.parse_args()
    config, address = recipe()
    world = World(meetings=100, accounts=2, seed=1)
    sandbox = Sandbox(world, rate_limit=1_000_000, oauth_limit=1_000_000).start()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            settings = load_settings(
                api_url=sandbox.api_url, token_url=sandbox.token_url, authorize_url=sandbox.authorize_url,
                client_id=world.client_id, client_secret=world.client_secret, rate_limit=1_000_000,
                data_dir=folder / "data", state_dir=folder / "state", calendar_start="2025-06-01", calendar_end="2027-06-01",
            )  # fmt: skip
            store = TokenStore(settings.state_dir)
            for name, account in world.accounts.items():
                store.write(name, Tokens(sandbox.login(name), scope=" ".join(account.scopes)))
            assert sync(settings).complete
            (folder / "superset").mkdir()
            begun = datetime.now(UTC)
            with superset(folder / "superset", config) as client:
                datasets, wrong = look(client, settings.data_dir, address)
                asked_times, stale = follow(client, settings, world, datasets["meetings"], asked.publications)
    finally:
        sandbox.stop()
    seconds = (datetime.now(UTC) - begun).total_seconds()
    print(
        f"{len(datasets)} datasets, 1 chart, {asked_times} questions during {asked.publications} publications, {seconds:.0f} s"
    )
    for problem in [*wrong, *stale]:
        print(f"WRONG: {problem}")
    return 1 if wrong or stale else 0


if __name__ == "__main__":
    sys.exit(main())
