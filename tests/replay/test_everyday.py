"""The everyday prompts hold general ability; a suite that asked the same would measure them, not it."""

from __future__ import annotations

from pathlib import Path

from incremental_llm.dataset.dedup import normalised
from incremental_llm.evaluation import load_suites
from incremental_llm.replay import anchor_prompts

SUITES = Path(__file__).parents[2] / "eval_suites"


def test_no_everyday_prompt_is_a_question_of_a_suite() -> None:
    asked = {
        normalised(item.messages[-1].content)
        for suite in load_suites(SUITES, sorted(path.name for path in SUITES.iterdir() if path.is_dir()))
        for item in suite.items
    }
    prompts = [normalised(prompt[-1].content) for prompt in anchor_prompts(None)]
    assert not asked & set(prompts)
    assert len(set(prompts)) == len(prompts)
    assert 50 <= len(prompts) <= 100
