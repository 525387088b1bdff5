"""The short form of `make torture`: see there."""

from __future__ import annotations

import random
from pathlib import Path

from torture import LIMIT, Torture, budget_holds


def test_kills_at_random_instants_lose_nothing(tmp_path: Path) -> None:
    assert Torture(tmp_path, kills=6, random=random.Random(1)).run()


def test_all_of_a_limit_is_used_and_one_lower_than_believed_is_learned_by_few_refusals() -> None:
    assert budget_holds(LIMIT, windows=3)
    assert budget_holds(LIMIT // 2, windows=3)
