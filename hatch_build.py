"""What building or installing the package makes: the libraries that draw the dashboard's charts, as one script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import vl_convert
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Charts(BuildHookInterface):
    """Writes `contio_pipeline/dashboard/charts.js`: its licences, and Vega."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - what hatchling hands over
        """Called before the wheel is put together, an editable one too."""
        folder = Path(self.root, "contio_pipeline", "dashboard")
        notice = (folder / "notice.txt").read_text(encoding="utf-8")
        charts = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
        (folder / "charts.js").write_text(f"/*\n{notice}*/\n{charts}", encoding="utf-8")
