"""What a recipe or an override can get wrong is one ConfigError, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from incremental_llm.config import load_config
from incremental_llm.errors import ConfigError

RECIPE = Path(__file__).parents[1] / "recipes" / "nightly_smollm2_cpu.yaml"


def test_an_override_reaches_into_a_list() -> None:
    assert load_config(RECIPE, ["training.phases.2.epochs=3"]).training.phases[2].epochs == 3


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.phases.9.epochs=3", "'9' is no position in a list of 3"),
        ("training.phases.sft.epochs=3", "'sft' is no position in a list of 3"),
        ("training.phases.2.learning_rate=.inf", "finite number"),
        ("compile.rephrase_window_seconds=.nan", "finite number"),
        ("replay.ratio=.nan", "finite number"),
        ("gate.margin=.nan", "finite number"),
        ("gate.seed=-1", "greater than or equal to 0"),
        ("training.seed=-1", "greater than or equal to 0"),
        ("training.seed=4294967296", "less than 4294967296"),
        ("training.phases=[]", "at least 1 item"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(RECIPE, [override])
