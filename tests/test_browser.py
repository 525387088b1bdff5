"""The UI in a real browser: what a person sees of the assets, and the pictures of the docs.

`SCREENSHOTS=docs/images` writes them there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import Up
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parent.parent
NAMES = ("meetings", "action_items", "calendar_events", "context_documents", "document_contents", "published")


def picture(page: Page, name: str, tmp_path: Path) -> None:
    """Write what the page looks like now."""
    page.screenshot(path=ROOT / os.environ.get("SCREENSHOTS", tmp_path) / f"{name}.png")


def test_the_graph_the_plots_and_the_check_of_an_asset(up: Up, new_page: Callable[..., Page], tmp_path: Path) -> None:
    page = new_page(up.url, viewport={"width": 1680, "height": 950})
    days = {"dagster/asset_partition_range_start": "2026-10-18", "dagster/asset_partition_range_end": "2026-11-02"}
    for number, (job, tags) in enumerate((("full_sync", {}), ("window", days), ("window", days)), start=1):
        up.launch(job, tags)
        up.wait(number, "SUCCESS")
        up.place.world.advance(timedelta(days=1))
        up.place.world.insert("meetings", 3)
        up.place.world.update("meetings", 2)

    page.goto(f"{up.url}/asset-groups~")
    for name in NAMES:
        expect(page.get_by_text(name, exact=True).last).to_be_visible()
    page.wait_for_timeout(1000)  # the graph glides into place
    picture(page, "assets", tmp_path)

    page.goto(f"{up.url}/assets/meetings?view=overview")
    expect(page.get_by_text("A meeting that the account can see.")).to_be_visible()
    expect(page.get_by_text("Scheduled start.")).to_be_visible()
    plots = page.get_by_role("button", name="Plots")
    plots.click()
    for name in ("rows", "inserted", "updated", "requests", "429s", "seconds", "bytes"):
        expect(page.get_by_text(name, exact=True).first).to_be_attached()
    expect(page.locator("canvas").nth(10)).to_be_attached()
    page.wait_for_timeout(1000)  # the plots draw themselves
    plots.evaluate("button => button.scrollIntoView()")
    picture(page, "plots", tmp_path)

    page.goto(f"{up.url}/assets/meetings?view=partitions")
    expect(page.get_by_text("Materialized (16)")).to_be_visible()
    page.wait_for_timeout(500)
    picture(page, "partitions", tmp_path)
    page.goto(f"{up.url}/assets/meetings?view=checks")
    for name in ("complete", "fresh", "keys_unique", "references_hold"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()

    up.place.sandbox.revoke("bo")
    up.place.sandbox.expire_access_tokens()
    up.launch("full_sync", {})
    up.wait(4, "SUCCESS", "FAILURE")
    page.goto(f"{up.url}/assets/meetings?view=checks&checkDetail=complete")
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
    expect(page.get_by_text("the refresh token of account 'bo' is no longer accepted").first).to_be_visible()
    page.wait_for_timeout(500)
    picture(page, "check", tmp_path)
