"""Every recipe is complete, and all have the same shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from incremental_llm.config import load_config
from incremental_llm.evaluation import load_suites

ROOT = Path(__file__).resolve().parents[2]
RECIPES = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if not path.name.startswith("accelerate_")]
SECTIONS = ["workspace", "base", "suites", "compile", "replay", "training", "gate"]
by_name = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)


def test_the_recipes_are_there() -> None:
    names = {path.name for path in RECIPES}
    assert names >= {"nightly_smollm2_cpu.yaml", "nightly_gpu.yaml", "nightly_qlora.yaml", "retrain_smollm2_cpu.yaml"}


@by_name
def test_a_recipe_parses_and_names_suites_that_exist(recipe: Path) -> None:
    config = load_config(recipe)
    assert config.suites.old, "a recipe without an old suite can promote nothing"
    load_suites(ROOT / config.suites.folder, config.suites.names)
    config.gate.check_names(config.suites.names)


@by_name
def test_a_recipe_has_the_sections_of_all_others_in_their_order(recipe: Path) -> None:
    found = list(yaml.safe_load(recipe.read_text(encoding="utf-8")))
    assert [section for section in found if section != "process"] == SECTIONS


@by_name
def test_preferences_come_first_and_imitation_last(recipe: Path) -> None:
    objectives = [phase.objective for phase in load_config(recipe).training.phases]
    assert objectives[-1] == "sft"


@by_name
def test_a_recipe_says_what_it_is_in_its_first_line(recipe: Path) -> None:
    said = {"increment": "# One nightly increment", "retrain": "# Full retraining"}
    assert recipe.read_text(encoding="utf-8").startswith(said[load_config(recipe).process])


def test_a_retraining_has_the_nightly_recipe_without_the_bound_on_its_steps() -> None:
    nightly, retrain = (load_config(ROOT / f"recipes/{name}_smollm2_cpu.yaml") for name in ("nightly", "retrain"))
    assert (nightly.process, retrain.process) == ("increment", "retrain")
    *preferences, sft = nightly.training.phases
    unbounded = (*preferences, sft.model_copy(update={"max_steps": None}))
    assert retrain.training == nightly.training.model_copy(update={"phases": unbounded})
    assert (retrain.replay, retrain.gate) == (nightly.replay, nightly.gate)


def test_only_the_qlora_recipe_quantises() -> None:
    quantised = {path.name for path in RECIPES if load_config(path).training.quantization != "none"}
    assert quantised == {"nightly_qlora.yaml"}
