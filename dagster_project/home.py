"""Where Dagster keeps its runs, schedules and events.

What lives here: the folder and the settings file in it. What never does: anything that needs Dagster itself.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from contio_pipeline.errors import ConfigError, StorageError
from contio_pipeline.folders import private_folder

_HERE = Path(__file__).parent
ROOT = _HERE if (_HERE / "dagster.yaml").exists() else _HERE.parent
"""The folder of `dagster.yaml` and `workspace.yaml`: the package's own in a wheel, the project's in a checkout."""


def dagster_home(data_dir: Path) -> Path:
    """DAGSTER_HOME if it is set, else `<data folder>/dagster`, with the project's `dagster.yaml` copied into it.

    It is put into the environment, for Dagster to find.

    Raises:
        ConfigError: DAGSTER_HOME is not a folder, or the data folder cannot be written.
    """
    if chosen := os.environ.get("DAGSTER_HOME"):
        if not Path(chosen).is_absolute() or not Path(chosen).is_dir():
            raise ConfigError(f"DAGSTER_HOME must be the absolute path of a folder that is there, not {chosen}")
        return Path(chosen)
    try:
        folder = private_folder(data_dir / "dagster")
        shutil.copyfile(ROOT / "dagster.yaml", folder / "dagster.yaml")
    except (OSError, StorageError) as error:
        raise ConfigError(f"the data folder {data_dir} cannot be written ({error}): set CONTIO_DATA_DIR") from None
    os.environ["DAGSTER_HOME"] = str(folder)
    return folder
