from __future__ import annotations

import json
from pathlib import Path

import yaml

from incremental_llm.cli.init import recipe_text
from incremental_llm.config import RunConfig, load_config
from incremental_llm.errors import BaseModelError


def test_the_recipe_reads_back_as_the_same_config(tmp_path) -> None:
    for overrides in ([], ["training.seed=7", "base=./model", "suites.new=[a, b]", "database=sqlite:////tmp/x.db"]):
        config = load_config(None, overrides)
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(recipe_text(config), encoding="utf-8")
        assert load_config(recipe) == config


def test_the_recipe_explains_every_key() -> None:
    text = recipe_text(RunConfig())
    assert set(yaml.safe_load(text)) == set(RunConfig.model_fields)
    keys = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    first_phase = text.index("objective: dpo")
    for line in keys:
        value_line = not line.rstrip().endswith(":")
        later_phase = text.index(line) > first_phase and line.startswith("      ")
        assert "#" in line or not value_line or later_phase or "- objective" in line, line
    assert "one of auto, bf16, fp32" in text
    assert "at least 1" in text


def test_init_writes_a_recipe_and_makes_the_workspace(illm, workspace) -> None:
    done = illm("init")
    assert done.exit_code == 0
    assert load_config(Path("incremental.yaml")) == RunConfig()
    assert workspace.calls == [("create", "smollm2-135m")]
    assert "fetching the base model" in done.stderr
    assert "next: illm feedback import FILE.jsonl" in done.stderr
    assert workspace.closed == 1


def test_init_elsewhere_says_to_go_there(illm, workspace, tmp_path) -> None:
    done = illm("init", "shop", "--set", "training.seed=3")
    assert done.exit_code == 0
    assert "next: cd shop" in done.stderr
    assert (tmp_path / "shop" / "illm").is_dir()
    assert load_config(tmp_path / "shop" / "incremental.yaml").training.seed == 3
    assert Path.cwd() == tmp_path


def test_init_again_uses_the_recipe_that_is_there(illm, workspace) -> None:
    Path("incremental.yaml").write_text("training: {seed: 5}\n", encoding="utf-8")
    done = illm("init", "--json")
    assert json.loads(done.stdout) == {"recipe": "incremental.yaml", "workspace": "illm", "production": 1}
    assert workspace.config.training.seed == 5
    assert Path("incremental.yaml").read_text(encoding="utf-8") == "training: {seed: 5}\n"
    assert illm("init", "--set", "training.seed=5").exit_code == 0
    refused = illm("init", "--set", "training.seed=6")
    assert refused.exit_code == 2
    assert "Nothing was changed: edit the recipe, or remove it" in refused.stderr


def test_a_refused_init_leaves_nothing_behind(illm, workspace) -> None:
    done = illm("init", "new/shop", "--config", "missing.yaml")
    assert done.exit_code == 2
    assert "recipe missing.yaml" in done.stderr
    assert not Path("new").exists()
    workspace.fail = BaseModelError("no such base")
    create = workspace.create
    workspace.create = lambda config, *, say: workspace.remember("create", config.base)  # refused before it makes any
    assert illm("init", "new/shop").exit_code == 2
    assert not Path("new").exists()
    workspace.create, workspace.fail = create, None
    assert illm("init", "new/shop").exit_code == 0
    assert Path("new/shop/incremental.yaml").is_file()


def test_init_into_a_file_is_refused(illm, workspace) -> None:
    Path("shop").write_text("", encoding="utf-8")
    done = illm("init", "shop")
    assert done.exit_code == 2 and "shop: expected a folder, or a name that is free, found a file" in done.stderr


def test_init_resumes_after_a_failure(illm, workspace) -> None:
    workspace.fail = ConnectionError("no network")
    assert illm("init").exit_code == 1
    workspace.fail = None
    assert illm("init").exit_code == 0
