"""Measure stacks, and remember what was measured.

The one design fact: a result belongs to exactly one stack (base, template, dtype, adapters) and one suite's content,
and is kept under both digests and the versions that measured it. Production is therefore measured once, the night it
was a candidate, and a suite that is new tonight is measured on both sides.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from incremental_llm.adapters.stack import Stack, adapter_paths
from incremental_llm.artifacts import is_complete, staged_folder, verify_folder, write_atomic, write_json
from incremental_llm.chat import Conversation, json_digest
from incremental_llm.errors import IntegrityError
from incremental_llm.evaluation.results import EvaluationReport
from incremental_llm.evaluation.suites import Suite

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int, float | None], None]


class Measurement:
    """Evaluations of stacks over one base, cached below `folder`; a model is loaded only when something is missing."""

    def __init__(self, folder: Path, base_folder: Path, objects: Path, progress: Progress) -> None:
        self.folder = folder
        self._base_folder = base_folder
        self._objects = objects
        self._progress = progress
        self._loaded: tuple[str, Any, Any] | None = None

    def report(self, stack: Stack, suites: Sequence[Suite], what: str) -> EvaluationReport:
        """The report of `stack` on `suites`; `what` names it in progress lines."""
        from incremental_llm.evaluation.evaluate import evaluate

        parts = []
        for suite in suites:
            kept = self._path(stack, suite)
            if (known := _read_kept(kept, stack, suite)) is not None:
                parts.append(known)
                continue
            model, tokenizer = self.model(stack, what)
            self._progress(f"measuring {what} on {suite.name}", 0, len(suite.items), None)
            part = evaluate(
                model,
                tokenizer,
                stack,
                [suite],
                progress=lambda done, total, name: self._progress(f"measuring {what} on {name}", done, total, None),
            )
            write_atomic(kept, part.to_json())
            parts.append(part)
        return EvaluationReport(
            stack_digest=stack.digest,
            suites={name: result for part in parts for name, result in part.suites.items()},
            seconds=sum(part.seconds for part in parts),
            tokens=sum(part.tokens for part in parts),
        )

    def answers(self, stack: Stack, prompts: Sequence[Conversation], max_new_tokens: int, what: str) -> list[str]:
        """Greedy answers of `stack` to prompts that are no suite's."""
        from incremental_llm.evaluation.generate import greedy_answers

        model, tokenizer = self.model(stack, what)
        doing = f"{what} answers everyday prompts"
        return greedy_answers(
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            progress=lambda done, total: self._progress(doing, done, total, None),
        )

    def ended_answers(
        self, stack: Stack, prompts: Sequence[Conversation], max_new_tokens: int, what: str, doing: str
    ) -> list[str | None]:
        """Greedy answers; None for one that has not ended by `max_new_tokens`, or could not be given."""
        from incremental_llm.evaluation.generate import generate

        answers = generate(
            *self.model(stack, what),
            prompts,
            max_new_tokens=max_new_tokens,
            progress=lambda done, total: self._progress(f"{what} {doing}", done, total, None),
        )
        return [None if a.problem or a.tokens >= max_new_tokens or not a.text else a.text for a in answers]

    def mean_logps(
        self, stack: Stack, replies: Sequence[tuple[Conversation, str]], what: str, doing: str
    ) -> list[float | None]:
        """Mean log-likelihood of each reply's tokens in nats, at most 0; None where it could not be measured."""
        from incremental_llm.evaluation.generate import completion_logps

        found = completion_logps(
            *self.model(stack, what),
            replies,
            progress=lambda done, total: self._progress(f"{what} {doing}", done, total, None),
        )
        return [None if one.problem else one.logp / one.tokens for one in found]

    def turns(self, stack: Stack, before: Conversation, count: int, what: str, **sampling: Any) -> list[str | None]:
        """Users' turns as `stack` expects them behind `before`, by `sample.sampled_turns`; None has not ended."""
        from incremental_llm.evaluation.sample import sampled_turns

        turns: list[str | None] = sampled_turns(
            *self.model(stack, what),
            before,
            count,
            **sampling,
            progress=lambda done, total: self._progress(f"{what} writes questions", done, total, None),
        )
        return turns

    def remembered(self, stack: Stack, name: str, key: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, as JSON; once it was made for this stack and `key`, what is kept of it on the disk."""
        kept = self.folder / stack.digest[:16] / f"{name}-{key[:16]}-{json_digest(_instrument())[:8]}"
        if not is_complete(kept):
            made = make()
            with staged_folder(kept) as folder:
                write_json(folder / "answers.json", made)
        verify_folder(kept)
        return json.loads((kept / "answers.json").read_text(encoding="utf-8"))

    def model(self, stack: Stack, what: str) -> tuple[Any, Any]:
        """The stack as it is served, with its tokenizer; the last one is kept in memory."""
        from incremental_llm.adapters.load import DTYPES, load_stack, load_tokenizer

        if self._loaded is None or self._loaded[0] != stack.digest:
            self.release()
            self._progress(f"loading {what}", 0, 1, None)
            folders = adapter_paths(stack, self._objects)
            dtype = DTYPES[stack.dtype]
            model = load_stack(self._base_folder, folders, dtype=dtype, quantization=stack.quantization)
            self._loaded = (stack.digest, model, load_tokenizer(self._base_folder))
        return self._loaded[1], self._loaded[2]

    def release(self) -> None:
        """Free the model: training loads its own."""
        self._loaded = None

    def _path(self, stack: Stack, suite: Suite) -> Path:
        key = json_digest([stack.digest, suite.name, suite.version, suite.digest, stack.quantization, _instrument()])
        return self.folder / stack.digest[:16] / f"{suite.name}-{key[:16]}.json"


def _instrument() -> list[str]:
    """What a result depends on beside stack and suite: after an upgrade, production is measured anew too."""
    import torch

    packages = ("incremental_llm", "torch", "transformers")
    return [*map(version, packages), "cuda" if torch.cuda.is_available() else "cpu"]


def _read_kept(path: Path, stack: Stack, suite: Suite) -> EvaluationReport | None:
    """A kept report, if there is one and it is of this stack and suite; anything else is measured again."""
    if not path.is_file():
        return None
    try:
        report = EvaluationReport.from_json(path.read_text(encoding="utf-8"))
    except (IntegrityError, ValueError) as error:
        log.warning("%s cannot be read (%s): measuring again", path, error)
        return None
    found = report.suites.get(suite.name)
    if report.stack_digest == stack.digest and found is not None and found.digest == suite.digest:
        return report
    log.warning("%s is of another stack or suite than its name says: measuring again", path)
    return None
