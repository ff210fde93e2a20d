"""What a recipe or an override can get wrong is one ConfigError, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import make_url

from incremental_llm.config import RunConfig, load_config, parse_config
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
        ("replay.policy=newest", "replay.policy: expected one of 'balanced', 'reservoir', .*, found 'newest'"),
        ("replay={policy: window, balance: topics}", "replay: balance: topics needs policy: balanced, found .* window"),
        (
            "replay={policy: self_synthesised, balance: topics, answers: on_policy}",
            "needs policy: balanced, found policy: self_synthesised.*; answers: on_policy has no effect",
        ),
        ("replay.priority.by=age", "replay.priority.by: expected one of 'loss' or 'flips', found 'age'"),
        ("replay.synthesis.top_k=4", "unknown config key 'replay.synthesis.top_k', did you mean 'top_p'"),
        ("gate.seed=-1", "gate.seed: expected a number of at least 0, found -1"),
        ("training.seed=4294967296", "training.seed: expected a number below 4294967296, found 4294967296"),
        ("training.phases=[]", r"training.phases: expected a list of at least 1, found \[\]"),
        ("suites.old=general", r"suites.old: expected a list, such as \[a, b\], found 'general'"),
        ("training.lora.targets=[q_proj, 5]", "1 problem.*\n.*training.lora.targets: expected all-linear or a list of"),
        ("training.seed=1.5", "training.seed: expected a whole number, found 1.5"),
        ("training.seed=abc", "training.seed: expected a whole number, found 'abc'"),
        ("gate.margin=wide", "gate.margin: expected a number, found 'wide'"),
        ("gate.margin=0", "gate.margin: expected a number above 0, found 0"),
        ("gate.max_negative_flips=2", "gate.max_negative_flips: expected a number of at most 1, found 2"),
        ("compile.detect_rephrases=maybe", "compile.detect_rephrases: expected true or false, found 'maybe'"),
        ("base=7", "base: expected text, found 7"),
        ("base=2026-02-30", "override 'base=2026-02-30': not valid YAML"),
        ("gate.margins.0.x=1", "expected a list before '0' in the recipe, found none"),
        ("training.precision=fp8", "training.precision: expected one of 'auto', 'bf16' or 'fp32', found 'fp8'"),
        ("training.phases=[{objective: sft}]", "training.phases.0.learning_rate: expected a value, found none"),
        ("gate=", "gate: expected a section of keys and values, found nothing"),
        ("gate={margin: 0.1, margin: 0.5}", "expected each key once, found 'margin' again after line 1"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(RECIPE, [override])


def test_a_wrong_value_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"(?s)2 problem.*illm init.*explains every key") as error:
        load_config(RECIPE, ["training.seed=-1", "suites.old=general"])
    assert "Input should" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "gate: {margin: 0.05}\nbase: a\ngate:\n  seed: 1\n",
            "r.yaml:3: .*found 'gate' again after line 1; remove one",
        ),
        ("gate:\n  seed: 1\n  margin: 0.1\n  'seed': 2\n", "r.yaml:4: .*found 'seed' again after line 2"),
        ("training:\n  phases:\n  - {epochs: 1, epochs: 2}\n", "r.yaml:3: .*found 'epochs' again after line 3"),
        ("gate: [", "r.yaml:1: not valid YAML"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_config(recipe)


def test_a_key_of_a_merged_section_may_be_given_again(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "training:\n  phases:\n  - &first {objective: dpo, learning_rate: 0.1, epochs: 1}\n"
        "  - &second {<<: *first, epochs: 2}\n  - {<<: *second, epochs: 3}\n",
        encoding="utf-8",
    )
    assert [phase.epochs for phase in load_config(recipe).training.phases] == [1, 2, 3]


@pytest.mark.parametrize("name", ["plain", "which?", "shop#1", "100%25", "a b/ü@x:y"])
def test_the_feedback_database_is_in_the_workspace_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    config = RunConfig(workspace=tmp_path / name)
    found = make_url(config.database_url)
    assert (found.database, dict(found.query)) == (str(tmp_path / name / "feedback.db"), {})
    assert RunConfig(database="sqlite:////x/y.db").database_url == "sqlite:////x/y.db"


def test_logits_of_old_have_nothing_to_hold_in_answers_that_are_new_every_night() -> None:
    with pytest.raises(ConfigError, match="expected one of the two, found both"):
        parse_config({"training": {"dark": {"weight": 1}}, "replay": {"policy": "self_synthesised"}}, source="test")
