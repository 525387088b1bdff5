"""What can be run: a window of days, everything, the contents of documents."""

from collections.abc import Iterator

import dagster as dg

from contio_pipeline import streams
from contio_pipeline.health import PUBLISHED
from contio_pipeline.settings import load_settings
from contio_pipeline.streams import DOCUMENT_CONTENTS, Table
from contio_pipeline.warehouse import Window
from dagster_project.defs.assets import POOL
from dagster_project.partitions import days
from dagster_project.resource import Contio, Outcome, evaluation_of


@dg.definitions
def jobs() -> dg.Definitions:
    """All jobs."""
    window = dg.define_asset_job(
        "window",
        dg.AssetSelection.all(),
        partitions_def=days(load_settings()),
        description="A range of days of all streams, listed at once, then the contents of documents; published.",
    )
    documents = dg.define_asset_job(
        "documents",
        dg.AssetSelection.assets(DOCUMENT_CONTENTS.name, PUBLISHED),
        description="The contents of documents that are due; published.",
    )
    return dg.Definitions(jobs=[window, documents, full_sync()])


def full_sync() -> dg.JobDefinition:
    """Everything that the API lists, and what it lists no more.

    Ops, not assets: a range of all days would write an event for each day and asset. They report to the same assets, so
    that their pages show both; no partition is marked by it.
    """
    listed = load_settings().listed(streams.STREAMS)
    steps = [_refresh(table) for table in (*(stream.table for stream in listed), DOCUMENT_CONTENTS)]

    @dg.job(
        name="full_sync",
        description="Everything that the API lists, whatever its date, and what it lists no more; published. It marks no "
        "partition: `ops.windows` says what is complete.",
    )
    def job() -> None:
        done = None
        for step in [*steps, _publish()]:
            done = step(done) if done is not None else step()

    return job


def _refresh(table: Table) -> dg.OpDefinition:
    @dg.op(name=f"full_{table.name}", description=table.doc, ins=_AFTER, out=_NOTHING, pool=POOL)
    def op(context: dg.OpExecutionContext, contio: Contio) -> Iterator[_Event]:
        outcome = contio.refresh(context, table, Window())
        yield from _told(outcome)
        outcome.fail_if_broken()  # an op's checks block nothing by themselves

    return op


def _publish() -> dg.OpDefinition:
    @dg.op(name="full_publish", description="What readers get.", ins=_AFTER, out=_NOTHING, pool=POOL)
    def op(context: dg.OpExecutionContext, contio: Contio) -> Iterator[_Event]:
        outcome = contio.publish(context)
        yield from _told(outcome)
        outcome.fail_if_incomplete()

    return op


_AFTER, _NOTHING = {"after": dg.In(dg.Nothing)}, dg.Out(dg.Nothing)
_Event = dg.AssetMaterialization | dg.AssetCheckEvaluation


def _told(outcome: Outcome) -> Iterator[_Event]:
    """On the asset's page, what an asset would have returned."""
    yield dg.AssetMaterialization(outcome.asset, metadata=outcome.facts | outcome.details)
    yield from map(evaluation_of, outcome.checks)
