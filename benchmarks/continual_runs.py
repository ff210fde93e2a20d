"""One run of a continual-learning benchmark: a method through an order of tasks, or a bound. Each continues if killed.

    kept/<run>.json             a finished run and what makes it what it is; read, and not run again
    out/increments/<digest>/    an increment and what was right after it, by all that makes it what it is

Runs that begin alike share their increments: methods that differ in replay alone have the same first one, orders that
begin with the same tasks share these. When all is run, `increments` may be removed: it holds the adapters. A finished
run of another plan, base or data is refused: its figures would be of something else.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from continual_plan import Method, Setting, settings_of
from continual_tasks import Task, outcomes

from incremental_llm.adapters.load import DTYPES, load_stack, native_dtype
from incremental_llm.artifacts import verify_folder, write_json
from incremental_llm.base_models import ResolvedBase
from incremental_llm.chat import Conversation, json_digest
from incremental_llm.dataset.examples import SftExample
from incremental_llm.errors import InputError
from incremental_llm.evaluation.generate import greedy_answers
from incremental_llm.replay import Facts, Mixture, ReplayBuffer, anchor_prompts, mix
from incremental_llm.training.increment import train_increment
from incremental_llm.training.settings import TrainingSettings

Say = Callable[[str], None]


class NotRun(LookupError):
    """A run that is not finished, where nothing is to be run."""


@dataclass(frozen=True)
class Bench:
    """What all runs of a command share."""

    base: ResolvedBase
    tokenizer: Any
    tasks: Mapping[str, Task]
    setting: Setting
    kept: Path
    out: Path
    say: Say = lambda line: None
    runs: bool = True  # whether what is not kept yet is run

    @property
    def dtype(self) -> str:
        """What models are measured in: what they are trained in."""
        return settings_of(self.setting, Method(), seed=0).at_dtype(native_dtype()).dtype

    def outcomes(self, adapters: Sequence[Path], tasks: Sequence[str], part: str = "test") -> dict[str, list[int]]:
        rows = self.setting.dev_rows if part == "dev" else self.setting.test_rows
        wanted = [self.tasks[name] for name in tasks]
        return outcomes(self.base.folder, adapters, self.dtype, self.tokenizer, wanted, part, rows)

    def rows(self, task: str, seed: int) -> list[SftExample]:
        return self.tasks[task].training_rows(self.setting.train_rows, seed)


def base_outcomes(bench: Bench) -> dict[str, list[int]]:
    """What the base model answers rightly, measured once."""
    identity = _identity(bench, list(bench.tasks), None, {})

    def run() -> dict[str, Any]:
        return {"right": bench.outcomes([], list(bench.tasks))}

    right: dict[str, list[int]] = _once(bench, "base", identity, run)["right"]
    return right


def sequence(bench: Bench, name: str, method: Method, order: Sequence[str], label: str, seed: int) -> dict[str, Any]:
    """A method through the tasks in their order, every task measured after every increment.

    Returns:
        {"versions": [one an increment: "task", "seconds", "cpu_seconds", "steps", "tokens", "replayed", "right"]}
    """
    settings = settings_of(bench.setting, method, seed=seed)
    replay = method.replay
    told = {"method": name, "order": list(order), "replay": replay.model_dump(mode="json", exclude_defaults=True)}

    def run() -> dict[str, Any]:
        buffer, stack, versions = ReplayBuffer().under(replay, seed, Facts({})), [], []
        for number, task in enumerate(order, 1):
            new = bench.rows(task, seed)
            mixture = mix(new, buffer, replay, seed, passes=settings.passes)
            said = f"{name}, order {label}, seed {seed}: {number} {task}"
            stack, version = _increment(bench, stack, mixture, settings, order, said)
            versions.append(version | {"task": task})
            bench.say(f"{said}, {_said(version)}")
            buffer = buffer.updated(new, number, seed, replay)
        return {"versions": versions}

    identity = _identity(bench, order, settings, told)
    return _once(bench, f"{name}/order{label}-seed{seed}", identity, run)


def single(bench: Bench, task: str, seed: int) -> dict[str, Any]:
    """A task alone: one increment of the base, measured on its own test rows."""
    settings = settings_of(bench.setting, Method(), seed=seed)

    def run() -> dict[str, Any]:
        said = f"single, seed {seed}: {task}"
        mixture = mix(bench.rows(task, seed), ReplayBuffer(), Method().replay, seed)  # as in a method's first night
        _, version = _increment(bench, [], mixture, settings, [task], said)
        bench.say(f"{said}, {_said(version)}")
        return version

    return _once(bench, f"single/{task}-seed{seed}", _identity(bench, [task], settings, {}), run)


def together(bench: Bench, candidate: int, seed: int) -> dict[str, Any]:
    """The multi-task bound with one of the setting's candidates: all tasks' rows as one increment; dev and test."""
    tasks = list(bench.tasks)
    settings = settings_of(bench.setting, Method(), seed=seed, **bench.setting.mtl[candidate])

    def run() -> dict[str, Any]:
        rows = [row for task in tasks for row in bench.rows(task, seed)]
        said = f"mtl, candidate {candidate}, seed {seed}"
        stack, version = _increment(bench, [], mix(rows, ReplayBuffer(), Method().replay, seed), settings, tasks, said)
        version["dev"] = bench.outcomes(stack, tasks, "dev")
        bench.say(f"{said}: {_said(version)}; dev {mean_share(version['dev']):.3f}")
        return version

    return _once(bench, f"mtl/candidate{candidate}-seed{seed}", _identity(bench, tasks, settings, {}), run)


def mean_share(right: Mapping[str, Sequence[int]]) -> float:
    """The mean over tasks of the share of right answers."""
    return sum(sum(answers) / len(answers) for answers in right.values()) / len(right)


def _increment(
    bench: Bench,
    stack: Sequence[Path],
    mixture: Mixture,
    settings: TrainingSettings,
    measured: Sequence[str],
    name: str,
) -> tuple[list[Path], dict[str, Any]]:
    """Train an increment and measure the stack on test; or take up what an earlier run has of the same one."""
    examples = [row.example for row in mixture.rows]
    replayed = sorted(row.example.id for row in mixture.rows if row.origin == "replay")
    made_of = {
        "base": bench.base.ref.digest,
        "stack": [verify_folder(adapter) for adapter in stack],
        "examples": [example.model_dump(mode="json") for example in examples],
        "replayed": replayed,
        **({"turns": mixture.turns} if mixture.turns else {}),
        "settings": settings.at_dtype(bench.dtype).model_dump(mode="json", exclude_defaults=True),
    }
    folder = bench.out / "increments" / json_digest(made_of)[:16]
    kept, cpu = folder / "version.json", time.process_time()
    result = train_increment(
        base_folder=bench.base.folder,
        adapter_folders=stack,
        examples=examples,
        anchors=_anchors(bench, stack, settings),
        settings=settings,
        out=folder,
        progress=_quarters(bench, name),
        replayed=replayed,
        turns=mixture.turns,
    )
    grown = [*stack[: len(stack) - result.replaces], result.adapter]
    version: dict[str, Any] = {
        "examples": len(examples),
        "replayed": len(replayed),
        "steps": sum(phase.steps for phase in result.phases),
        "tokens": result.tokens,
        "seconds": result.seconds,
        "cpu_seconds": time.process_time() - cpu,  # of this process: on a shared machine it says more
        "right": {},
    }
    if kept.is_file():
        version = json.loads(kept.read_text(encoding="utf-8"))
    if missing := [task for task in measured if task not in version["right"]]:
        version["right"] |= bench.outcomes(grown, missing)
        write_json(kept, version)
    for phase in folder.glob("phase*"):
        shutil.rmtree(phase)
    return grown, version | {"right": {task: version["right"][task] for task in measured}}


def _quarters(bench: Bench, name: str) -> Callable[[str, int, int, float | None], None]:
    """Says how far training is, four times a phase."""

    def progress(what: str, done: int, total: int, loss: float | None) -> None:
        if loss is not None and done % max(1, total // 4) == 0:
            bench.say(f"{name}: {what}, step {done} of {total}, loss {loss:.2f}")

    return progress


def _anchors(bench: Bench, stack: Sequence[Path], settings: TrainingSettings) -> list[tuple[Conversation, str]]:
    """Everyday prompts with the answers of the anchor's teacher; none where the anchor is off."""
    told = settings.anchor
    if told.weight == 0:
        return []
    prompts = anchor_prompts(Path(told.prompts) if told.prompts else None)
    teacher = [] if told.teacher == "base" else stack
    model = load_stack(bench.base.folder, teacher, dtype=DTYPES[bench.dtype])
    answers = greedy_answers(model, bench.tokenizer, prompts, max_new_tokens=told.max_new_tokens)
    return [(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer]


def _said(version: Mapping[str, Any]) -> str:
    scores = ", ".join(f"{task} {sum(r) / len(r):.2f}" for task, r in version["right"].items())
    return f"{version['steps']} steps in {version['seconds']:.0f} s ({version['cpu_seconds']:.0f} s of CPU): {scores}"


def _identity(bench: Bench, tasks: Sequence[str], settings: TrainingSettings | None, told: Mapping[str, Any]) -> Any:
    sizes = bench.setting.model_dump(include={"train_rows", "dev_rows", "test_rows", "input_tokens"})
    identity = {
        "base": bench.base.ref.digest,
        "dtype": bench.dtype,
        "data": {task: bench.tasks[task].digest for task in tasks},
        "sizes": sizes,
        "settings": settings.model_dump(mode="json", exclude_defaults=True) if settings else None,
        **told,
    }
    return json.loads(json.dumps(identity))


def _once(bench: Bench, name: str, identity: Any, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `run` gives, from its file if it was run before.

    Raises:
        InputError: the file is that of something else.
        NotRun: there is no such file, and nothing is to be run.
    """
    file = bench.kept / f"{name}.json"
    if not file.is_file():
        if not bench.runs:
            raise NotRun(name)
        write_json(file, {"of": identity, "run": run()})
    found = json.loads(file.read_text(encoding="utf-8"))
    before = found["of"]
    if changed := sorted(key for key in {*before, *identity} if before.get(key) != identity.get(key)):
        raise InputError(
            f"{file}: is a run with another {', '.join(changed)}. Remove it to run this one, or give another --results."
        )
    result: dict[str, Any] = found["run"]
    return result
