"""An asset per stream, one for the contents of documents, one for what readers get."""

from collections.abc import Iterator
from typing import Any, cast

import dagster as dg

from contio_pipeline import streams
from contio_pipeline.health import PUBLISHED
from contio_pipeline.settings import Settings, load_settings
from contio_pipeline.streams import DOCUMENT_CONTENTS, Stream, Table
from contio_pipeline.warehouse import Window
from dagster_project.partitions import days, window_of
from dagster_project.resource import Contio, checks_of, column_schema

POOL = "contio_warehouse"
"""One step writes the warehouse at a time, of all runs: `dagster.yaml` limits pools to one."""


@dg.definitions
def assets() -> dg.Definitions:
    """All assets."""
    settings = load_settings()
    declared = settings.listed(streams.STREAMS)
    tables = [stream_asset(stream, settings) for stream in declared]
    return dg.Definitions(assets=[*tables, contents_asset(settings, declared), published_asset(settings, declared)])


def stream_asset(stream: Stream, settings: Settings) -> dg.AssetsDefinition:
    """The table of one stream; a range of days is listed at once, in one run."""
    partitions = days(settings)

    @dg.asset(
        name=stream.name,
        deps=[stream.parent] if stream.parent else [],
        partitions_def=partitions,
        **_shown(
            stream.table,
            settings,
            "\n\nA day, or a range of days, lists "
            + (
                f"the {stream.name} of those `{stream.parent}` that lie in it or changed in the same run."
                if stream.parent
                else f"what the API returns for it; the date is taken to be `{stream.date_field}`, which is checked."
            ),
        ),
    )
    def asset(context: dg.AssetExecutionContext, contio: Contio) -> dg.MaterializeResult:
        if not (context.has_partition_key or context.has_partition_key_range):
            raise dg.Failure("choose days: a window needs a range of partitions (everything is the job full_sync)")
        days_asked = context.partition_key_range
        outcome = contio.refresh(context, stream.table, window_of(days_asked, partitions))
        for day in context.partition_keys:
            context.add_asset_metadata({"dagster/partition_row_count": outcome.days.get(day, 0)}, partition_key=day)
        context.add_asset_metadata(outcome.details, partition_key=days_asked.end)
        return dg.MaterializeResult(metadata=outcome.facts, check_results=outcome.checks)

    return asset


def contents_asset(settings: Settings, declared: tuple[Stream, ...]) -> dg.AssetsDefinition:
    """The contents of documents: what is due follows from their state, not from days."""

    @dg.asset(
        name=DOCUMENT_CONTENTS.name,
        deps=[stream.name for stream in declared if stream.content_path],
        **_shown(
            DOCUMENT_CONTENTS,
            settings,
            "\n\nDownloads what Contio has finished processing and what is not stored yet.",
        ),
    )
    def asset(context: dg.AssetExecutionContext, contio: Contio) -> dg.MaterializeResult:
        outcome = contio.refresh(context, DOCUMENT_CONTENTS, Window())
        return dg.MaterializeResult(metadata=outcome.facts | outcome.details, check_results=outcome.checks)

    return asset


def published_asset(settings: Settings, declared: tuple[Stream, ...]) -> dg.AssetsDefinition:
    """What readers get."""

    @dg.asset(
        name=PUBLISHED,
        deps=[*(stream.name for stream in declared), DOCUMENT_CONTENTS.name],
        description="The generation that `data/current` leads to, to be read at any moment: a DuckDB file and Parquet for SQL "
        "and BI tools, a dashboard for people.\n\n"
        "It is made in any case. The step fails afterwards when the run could not make everything equal to the API.",
        dagster_type=cast("dg.DagsterType", dg.Nothing),  # so that no IO manager is called
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=_GROUP,
        kinds={"duckdb", "parquet"},
        owners=[settings.owner],
        tags=_TAGS,
        check_specs=_specs(PUBLISHED),
        pool=POOL,
    )
    def asset(context: dg.AssetExecutionContext, contio: Contio) -> Iterator[dg.MaterializeResult]:
        outcome = contio.publish(context)
        yield dg.MaterializeResult(metadata=outcome.facts, check_results=outcome.checks)
        outcome.fail_if_incomplete()

    return asset


_GROUP = "contio"
_TAGS = {"source": "contio"}


def _shown(table: Table, settings: Settings, more: str) -> dict[str, Any]:
    """How the UI shows a table's asset."""
    return {
        "description": f"{table.doc}{more}",
        "backfill_policy": dg.BackfillPolicy.single_run(),
        "group_name": _GROUP,
        "kinds": {"duckdb", "parquet"},
        "owners": [settings.owner],
        "tags": _TAGS,
        "metadata": {"dagster/table_name": table.full_name, "dagster/column_schema": column_schema(table)},
        "check_specs": _specs(table.name),
        "pool": POOL,
    }


def _specs(of: str) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(check.name, asset=of, description=check.doc, blocking=check.level == "blocks")
        for check in checks_of(of, streams.STREAMS)
    ]
