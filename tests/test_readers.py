"""How others read what is published: a recipe for each library, copies elsewhere, and all at once while it is published anew."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import sqlalchemy
from conftest import Place
from test_publish import READERS, ROOT
from test_warehouse import ORIGIN, commit

from contio_pipeline import open_current
from contio_pipeline.generations import Current, current
from contio_pipeline.marts import MARTS
from contio_pipeline.publish import publish
from contio_pipeline.streams import stream_named
from contio_pipeline.warehouse import Warehouse

# Recipes: what the documents quote ------------------------------------------------------------------------------------


def with_pandas(data: Path) -> tuple[pd.Series[int], pd.Series[float]]:
    """How many rows of meetings are live in each month, and how many hours of meetings each week holds."""
    folder = (data / "current").resolve()
    meetings = pd.read_parquet(folder / "parquet/raw/meetings")
    weeks = pd.read_parquet(folder / "parquet/mart/person_week")
    live = meetings[meetings["_deleted_at"].isna()]
    return live.groupby("month", observed=True).size(), weeks.groupby("week_start")["minutes"].sum() / 60


def with_polars(data: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """How many rows of action items are live in each month, and how many hours of meetings each week holds."""
    folder = (data / "current").resolve()
    items = pl.scan_parquet(folder / "parquet/raw/action_items/**/*.parquet", hive_partitioning=True)
    weeks = pl.read_parquet(folder / "parquet/mart/person_week/part.parquet")
    return (
        items.filter(pl.col("_deleted_at").is_null()).group_by("month").len().sort("month").collect(),
        weeks.group_by("week_start").agg(pl.col("minutes").sum() / 60).sort("week_start"),
    )


def with_pyarrow(data: Path) -> tuple[pa.Table, int]:
    """What happened to meetings, by month, and how many versions of them have no start."""
    folder = (data / "current").resolve()
    history = ds.dataset(folder / "parquet/raw/meetings_history", partitioning="hive")
    undated = ds.field("month") == "undated"
    dated = history.to_table(columns=["month", "_operation"], filter=~undated)
    operations = dated.group_by(["month", "_operation"]).aggregate([([], "count_all")])
    return operations.sort_by([("month", "ascending"), ("_operation", "ascending")]), history.count_rows(filter=undated)


def with_sqlalchemy(data: Path) -> list[sqlalchemy.Row[Any]]:
    """How many meetings have notes and how many have none, and their action items: a view, as it is found in the file."""
    database = (data / "current").resolve() / "contio.duckdb"
    engine = sqlalchemy.create_engine(f"duckdb:///{database}?access_mode=read_only", poolclass=sqlalchemy.pool.NullPool)
    hygiene = sqlalchemy.Table("meeting_hygiene", sqlalchemy.MetaData(), schema="mart", autoload_with=engine)
    count, items = sqlalchemy.func.count(), sqlalchemy.func.sum(hygiene.c.action_items)
    question = sqlalchemy.select(hygiene.c.has_notes, count, items).group_by(hygiene.c.has_notes)
    with engine.connect() as connection:
        return list(connection.execute(question.order_by(hygiene.c.has_notes)).all())


# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(place: Place) -> Path:
    """What is published of a place where something changed and something went, after the first sync."""
    place.world.update("meetings", 3)
    place.world.delete("meetings", 2)
    place.world.delete("action_items", 2)
    place.sync()
    assert place.query("SELECT count(*) > 0 FROM raw.meetings WHERE _deleted_at IS NOT NULL") == [(True,)]
    return place.settings.data_dir


HOURS = "SELECT week_start, sum(minutes) / 60 FROM mart.person_week GROUP BY ALL ORDER BY ALL"
MONTH = "coalesce(strftime({} AT TIME ZONE 'UTC', '%Y-%m'), 'undated')"


@pytest.mark.synced
def test_pandas_reads_months_and_a_mart(place: Place, data: Path) -> None:
    months, hours = with_pandas(data)
    live = f"SELECT {MONTH.format('start_time')} AS month, count(*) FROM raw.meetings WHERE _deleted_at IS NULL"
    assert list(months.items()) == place.query(f"{live} GROUP BY ALL ORDER BY ALL")
    assert {"undated", "2026-10"} <= set(months.index)
    assert dict(hours) == pytest.approx(dict(place.query(HOURS)))
    meetings = pd.read_parquet(current(data).folder / "parquet/raw/meetings")
    assert str(meetings.dtypes["start_time"]) == "datetime64[us, UTC]"


@pytest.mark.synced
def test_polars_reads_months_and_a_mart(place: Place, data: Path) -> None:
    months, hours = with_polars(data)
    assert months.rows() == place.query(
        f"SELECT {MONTH.format('created_at')}, count(*) FROM raw.action_items WHERE _deleted_at IS NULL GROUP BY ALL ORDER BY ALL"
    )
    assert "undated" in set(months["month"])
    assert dict(hours.iter_rows()) == pytest.approx(dict(place.query(HOURS)))
    meetings = pl.read_parquet(current(data).folder / "parquet/mart/meetings/part.parquet")
    assert meetings.schema["start_time"] == pl.Datetime("us", "UTC")
    assert meetings.schema["seen_by"] == pl.List(pl.String)


@pytest.mark.synced
def test_pyarrow_reads_a_history_of_several_files_a_month(place: Place, data: Path) -> None:
    operations, undated = with_pyarrow(data)
    month = MONTH.format("start_time")
    assert [tuple(row.values()) for row in operations.to_pylist()] == place.query(f"""
        SELECT {month}, _operation, count(*) FROM raw.meetings_history WHERE start_time IS NOT NULL
        GROUP BY ALL ORDER BY ALL""")
    assert {"insert", "update", "delete"} == set(operations["_operation"].to_pylist())
    assert [(undated,)] == place.query("SELECT count(*) FROM raw.meetings_history WHERE start_time IS NULL")
    assert undated > 0
    folder = current(data).folder / "parquet/raw/meetings_history"
    assert any(len(list(month.iterdir())) > 1 for month in folder.glob("month=2*"))


@pytest.mark.synced
def test_pyarrow_finds_the_rows_of_every_table_of_raw_with_a_month_that_is_text(place: Place) -> None:
    generation = current(place.settings.data_dir)
    for folder in (generation.folder / "parquet/raw").iterdir():
        found = ds.dataset(folder, partitioning="hive")
        assert found.count_rows() == generation.manifest["rows"][f"raw.{folder.name}"], folder.name
        assert found.schema.field("month").type == pa.string(), folder.name


@pytest.mark.synced
def test_sqlalchemy_reflects_a_mart_and_asks_it(place: Place, data: Path) -> None:
    asked = [tuple(row) for row in with_sqlalchemy(data)]
    assert asked == place.query("""
        SELECT has_notes, count(*), sum(action_items) FROM mart.meeting_hygiene GROUP BY ALL ORDER BY ALL""")
    assert [has_notes for has_notes, _, _ in asked] == [False, True]


@pytest.mark.parametrize("version", ["1.4.54", "2.0.44"])
@pytest.mark.synced
def test_sqlalchemy_with_the_dialect_that_superset_has_reads_the_same(data: Path, version: str) -> None:
    program = """
        import sys, sqlalchemy, test_readers
        from pathlib import Path
        assert sqlalchemy.__version__ == sys.argv[2], sqlalchemy.__version__
        database = (Path(sys.argv[1]) / "current").resolve() / "contio.duckdb"
        engine = sqlalchemy.create_engine(f"duckdb:///{database}?access_mode=read_only", poolclass=sqlalchemy.pool.NullPool)
        assert type(engine.dialect).__module__ == "duckdb_engine"
        inspector = sqlalchemy.inspect(engine)
        print(sorted({*inspector.get_table_names(schema="mart"), *inspector.get_view_names(schema="mart")}))
        print([column["name"] for column in inspector.get_columns("meeting_hygiene", schema="mart")])
        print([tuple(row) for row in test_readers.with_sqlalchemy(Path(sys.argv[1]))])
        """
    library = ROOT / ".venv" / f"duckdb-engine-{version}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), data, version],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(library), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    hygiene = next(mart for mart in MARTS if mart.name == "meeting_hygiene")
    assert done.stdout.splitlines() == [
        repr(sorted(mart.name for mart in MARTS)),
        repr([field.name for field in hygiene.fields]),
        repr([tuple(row) for row in with_sqlalchemy(data)]),
    ]


@pytest.mark.synced
def test_sqlalchemy_sees_every_mart_as_it_is_declared_with_its_comments(place: Place) -> None:
    engine = sqlalchemy.create_engine(f"duckdb:///{current(place.settings.data_dir).database}?access_mode=read_only")
    inspector = sqlalchemy.inspect(engine)
    assert {"contio.raw", "contio.mart", "contio.ops"} <= set(inspector.get_schema_names())
    assert set(inspector.get_table_names(schema="mart")) == {mart.name for mart in MARTS if mart.stored}
    assert set(inspector.get_view_names(schema="mart")) == {mart.name for mart in MARTS if not mart.stored}
    for mart in MARTS:
        assert inspector.get_table_comment(mart.name, schema="mart")["text"] == mart.doc
        told = inspector.get_columns(mart.name, schema="mart")
        assert [(one["name"], one["comment"]) for one in told] == [(one.name, one.doc) for one in mart.fields], mart
        assert not [one["name"] for one in told if isinstance(one["type"], sqlalchemy.types.NullType)], mart
    meetings = {one["name"]: one["type"] for one in inspector.get_columns("meetings", schema="mart")}
    assert isinstance(meetings["start_time"], sqlalchemy.TIMESTAMP)
    assert meetings["start_time"].timezone
    assert isinstance(meetings["seen_by"], sqlalchemy.ARRAY)
    raw = {*inspector.get_table_names(schema="raw"), *inspector.get_view_names(schema="raw")}
    assert raw == {folder.name for folder in (current(place.settings.data_dir).folder / "parquet/raw").iterdir()}
    for name in raw:
        assert all(one["comment"] for one in inspector.get_columns(name, schema="raw")), name


@pytest.mark.parametrize("version", READERS)
@pytest.mark.synced
def test_every_duckdb_reads_the_same_of_raw_as_parquet_holds_and_answers_the_questions_that_people_ask(
    place: Place, data: Path, version: str
) -> None:
    script = """
        import duckdb, json, sys
        from pathlib import Path
        folder = Path(sys.argv[1])
        assert duckdb.__version__ == sys.argv[2], duckdb.__version__
        answers = []
        with duckdb.connect(folder / "contio.duckdb", read_only=True) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            for name in (path.name for path in (folder / "parquet/raw").iterdir()):
                table = "SELECT * FROM raw." + name
                file = "SELECT * EXCLUDE (month) FROM read_parquet($files, hive_partitioning = true)"
                for one, other in ((table, file), (file, table)):
                    sql = f"SELECT count(*) FROM ({one} EXCEPT ALL {other})"
                    files = str(folder / "parquet/raw" / name / "**/*.parquet")
                    assert connection.execute(sql, {"files": files}).fetchall() == [(0,)], (one, other)
            for question in json.load(sys.stdin):
                answers.append(len(connection.execute(question).fetchall()))
        print(json.dumps(answers))
        """
    questions = (ROOT / "docs/queries.sql").read_text(encoding="utf-8").split(";\n")[:-1]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(current(data).folder), version],
        env={**os.environ, "PYTHONPATH": str(ROOT / ".venv" / f"duckdb-{version}")},
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(questions) >= 20
    assert json.loads(done.stdout) == [len(place.query(question)) for question in questions]


@pytest.mark.parametrize("recipe", [with_pandas, with_polars, with_pyarrow, with_sqlalchemy])
def test_the_documents_quote_what_is_tested(recipe: Callable[..., Any]) -> None:
    quoted = (ROOT / "docs/bi.md").read_text(encoding="utf-8")
    _signature, _doc, *body = inspect.getsource(recipe).splitlines(keepends=True)
    assert f"```python\n{textwrap.dedent(''.join(body))}```" in quoted


# While it is published anew ------------------------------------------------------------------------------------------

PUBLISHES = 200
TOLD = {
    "raw.meetings": "title",
    "raw.action_items": "title",
    "raw.participants": "name",
    "mart.meetings": "title",
    "mart.action_items": "title",
    "mart.people": "name",
}
"""Table or mart -> the column in which each of its rows tells the number of the publication."""

Told = dict[str, set[str]]


def by_connection(connection: duckdb.DuckDBPyConnection) -> Told:
    return {
        table: {number for (number,) in connection.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall()}
        for table, column in TOLD.items()
    }


def by_duckdb(folder: Path) -> Told:
    with duckdb.connect(folder / "contio.duckdb", read_only=True) as connection:
        return by_connection(connection)


def by_pandas(folder: Path) -> Told:
    return {
        table: set(pd.read_parquet(folder.joinpath("parquet", *table.split(".")))[column])
        for table, column in TOLD.items()
    }


def by_sqlalchemy(folder: Path) -> Told:
    url = f"duckdb:///{folder / 'contio.duckdb'}?access_mode=read_only"
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        return {
            table: set(connection.scalars(sqlalchemy.text(f"SELECT DISTINCT {column} FROM {table}")))
            for table, column in TOLD.items()
        }


ANEW: dict[str, Callable[[Path], Told]] = {"duckdb": by_duckdb, "pandas": by_pandas, "sqlalchemy": by_sqlalchemy}
"""Readers that look where `current` leads before each reading."""


def by_server(published: Current) -> Told:
    """One that lives long: what its connection tells, and then the Parquet files, which may be of a later publication."""
    told, files = by_connection(published.connection), by_pandas(published.folder)
    assert agreed(told) <= agreed(files), (told, files)
    return told


def agreed(told: Told) -> int:
    """The number that all tables tell."""
    numbers = set().union(*told.values())
    assert len(numbers) == 1, f"a torn read: {told}"
    return int(numbers.pop())


def follow(kind: str, data: str, stop: str) -> None:
    """Read until the file `stop` is there and once more, in a process of its own, and print what was told."""
    os.nice(10)  # on a small machine, publishing goes first
    published = open_current(data)
    first = published.folder
    read = ANEW.get(kind)
    look = (lambda: read(Path(data, "current").resolve())) if read else partial(by_server, published)
    seen = [agreed(look())]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    ended = False
    while not ended:
        ended = Path(stop).exists()
        time.sleep(0.2)  # nobody refreshes faster, and four that do keep two cores from everything else
        seen.append(agreed(look()))
        assert seen[-2] <= seen[-1], f"back from {seen[-2]} to {seen[-1]}"
    again = agreed((read or by_duckdb)(first))
    json.dump(
        {"first": seen[0], "again": again, "last": seen[-1], "different": len(set(seen)), "loops": len(seen)},
        sys.stdout,
    )


def fill(warehouse: Warehouse) -> None:
    """Some rows of three streams, in two months, each of which tells a number."""
    commit(warehouse, [{"id": f"m{each}", "title": "0", "start_time": f"2026-0{each}-01T00:00:00Z"} for each in (1, 2)])
    items = [{"id": f"i{each}", "title": "0", "created_at": f"2026-0{each}-01T00:00:00Z"} for each in (1, 2)]
    commit(warehouse, items, stream=stream_named("action_items"))
    people = [{"id": f"p{each}", "name": "0", "email": f"{each}@example.com"} for each in (1, 2)]
    commit(warehouse, people, stream=stream_named("participants"), parent="m1")


def tell(warehouse: Warehouse, number: int) -> None:
    """Let every row tell this number, in one transaction, and publish that."""
    with warehouse.transaction() as connection:
        for table in ("raw.meetings", "raw.action_items", "raw.participants"):
            sql = f"UPDATE {table} SET {TOLD[table]} = $number, _hash = $number"
            connection.execute(sql, {"number": str(number)})
    _generation, new = publish(warehouse, datetime.now(UTC))
    assert new


@pytest.mark.slow
def test_four_kinds_of_readers_through_200_publishes(tmp_path: Path) -> None:
    data, stop = tmp_path / "data", tmp_path / "stop"
    with Warehouse(data, origin=ORIGIN) as warehouse:
        fill(warehouse)
        tell(warehouse, 1)
        first = current(data)
        program = "import sys, test_readers; test_readers.follow(*sys.argv[1:])"
        readers = {
            kind: subprocess.Popen(
                [sys.executable, "-c", program, kind, data, stop],
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for kind in (*ANEW, "server")
        }
        try:
            with duckdb.connect(first.database, read_only=True) as opened_at_the_start:
                for reader in readers.values():
                    assert reader.stdout
                    reader.stdout.readline()  # it has read the first one
                for number in range(2, PUBLISHES + 1):
                    if any(reader.poll() for reader in readers.values()):
                        break  # it failed, and says of what below
                    tell(warehouse, number)
                assert agreed(by_connection(opened_at_the_start)) == 1
        finally:
            stop.touch()
            results = {kind: reader.communicate(timeout=60) for kind, reader in readers.items()}
    failed = [f"{kind}: {err}" for kind, (_, err) in results.items() if readers[kind].returncode or err]
    assert not failed, "\n".join(failed)
    for kind, (out, _) in results.items():
        told = json.loads(out)
        assert (told["first"], told["again"], told["last"]) == (1, 1, PUBLISHES), kind
        assert told["different"] >= 5, kind
    assert len(list((data / "generations").iterdir())) == PUBLISHES


# Copies elsewhere -----------------------------------------------------------------------------------------------------


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All that is in the folder: path -> mode, and content of a file."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *folder.rglob("*"))
    }


COPY = """
    import duckdb, json, pyarrow.dataset, sys
    from pathlib import Path

    folder = Path(sys.argv[1])
    assert duckdb.__version__ == sys.argv[2], duckdb.__version__
    for path in (folder / "new", folder / "contio.duckdb.wal", folder / "parquet" / "mart" / "new"):
        try:
            path.touch()
        except PermissionError:
            continue
        raise AssertionError(f"{path} can be made: nothing would be proved")

    def differing(connection, catalog):
        found = {table: connection.execute(f"SELECT count(*) FROM {catalog}.{table}").fetchall()[0][0] for table in rows}
        return {table: number for table, number in found.items() if number != rows[table]}

    rows = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["rows"]
    with duckdb.connect(folder / "contio.duckdb", read_only=True) as connection:
        assert not differing(connection, "contio"), differing(connection, "contio")
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{folder / 'contio.duckdb'}' AS another_name (READ_ONLY)")
        assert not differing(connection, "another_name"), differing(connection, "another_name")
    for table in rows:
        schema, name = table.split(".")
        if schema != "ops":
            found = pyarrow.dataset.dataset(folder / "parquet" / schema / name, partitioning="hive")
            assert found.count_rows() == rows[table], table
    """


@pytest.mark.synced
def test_what_is_published_works_copied_elsewhere_and_read_only(data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(current(data).folder, tmp_path / "else where" / "of any name")
    shutil.rmtree(data)
    for path in (copy, *copy.rglob("*")):
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
    before = state(copy.parent)
    # Root may write what nobody may, unless it has given that up.
    humble = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    for version in (duckdb.__version__, *READERS):
        library = ROOT / ".venv" / f"duckdb-{version}"
        done = subprocess.run(
            [*humble, sys.executable, "-c", textwrap.dedent(COPY), copy, version],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(library), *sys.path])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{version}: {done.stderr}"
        assert state(copy.parent) == before, version


@pytest.mark.synced
def test_the_link_and_the_generations_alone_are_read_by_every_recipe_where_they_were_copied_to(
    data: Path, tmp_path: Path
) -> None:
    recipes = (with_pandas, with_polars, with_pyarrow, with_sqlalchemy)
    before = [repr(recipe(data)) for recipe in recipes]
    copy = tmp_path / "copy"
    copy.mkdir()
    subprocess.run(["cp", "-a", data / "current", data / "generations", copy], check=True)
    shutil.rmtree(data)
    assert (copy / "current").is_symlink()
    assert [repr(recipe(copy)) for recipe in recipes] == before
