"""One increment: a fresh LoRA adapter on the folded stack, trained phase by phase.

    previous policy  ->  reference log-probs, anchor states  ->  phase, phase, ...  ->  adapter folder

The function reads from top to bottom. Every phase leaves a complete folder behind, so the same call with the same
arguments continues after the last complete phase, or inside a phase from its last complete checkpoint.
"""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from incremental_llm.adapters.chat_tokens import completion_ids, prompt_ids
from incremental_llm.adapters.load import DTYPES, load_stack, load_tokenizer, native_dtype
from incremental_llm.artifacts import is_complete, staged_folder, verify_folder, write_json
from incremental_llm.chat import Conversation, json_digest
from incremental_llm.dataset.examples import Example
from incremental_llm.errors import IntegrityError, NothingToTrainError, TrainingError
from incremental_llm.training import invariants
from incremental_llm.training.adapter import adapter_in_autocast_dtype, autocast_of, new_adapter, save_adapter
from incremental_llm.training.anchor import Anchor
from incremental_llm.training.batching import Row, TokenExample, tokenize
from incremental_llm.training.checkpoint import remove_checkpoints
from incremental_llm.training.distributed import agreed
from incremental_llm.training.null_space import start_in_null_space
from incremental_llm.training.phase import PhaseReport, plan_phase, run_phase
from incremental_llm.training.scoring import attach_labelled_head
from incremental_llm.training.settings import TrainingSettings

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int, float | None], None]
"""Called with (what is being done, done, total, loss or None)."""


@dataclass(frozen=True)
class IncrementResult:
    """A trained adapter and how it came to be."""

    adapter: Path
    phases: tuple[PhaseReport, ...]
    seconds: float
    tokens: int
    not_trained: tuple[str, ...] = ()  # ids of examples
    notes: tuple[str, ...] = field(default=())


def train_increment(
    *,
    base_folder: Path,
    adapter_folders: Sequence[Path],
    examples: Sequence[Example],
    anchors: Sequence[tuple[Conversation, str]],
    settings: TrainingSettings,
    out: Path,
    progress: Progress = lambda what, done, total, loss: None,
) -> IncrementResult:
    """Train one adapter on top of the frozen stack and return its folder (a plain PEFT adapter).

    Args:
        base_folder: the base model; adapter_folders: the frozen stack, oldest first.
        examples: the mixture of new and replayed examples, of any kind.
        anchors: everyday conversations with the answers of the anchor's teacher.
        out: the run's own folder; what a killed run left there is continued.

    Raises:
        NothingToTrainError: no phase has enough examples.
        TrainingError: an invariant broke (see invariants.py); nothing of the run is published.
    """
    started = time.monotonic()
    settings = settings.at_dtype(native_dtype())
    frozen_before = [verify_folder(folder) for folder in adapter_folders]
    _check_same_run(out, frozen_before, examples, anchors, settings)
    done = out / "adapter"
    if agreed(is_complete(done)):
        verify_folder(done)
        return read_result(done)

    tokenizer = load_tokenizer(base_folder)
    kinds, too_long = tokenize_by_kind(tokenizer, examples, settings.max_length)
    phases = _phases_with_examples(kinds, settings)
    anchor = _anchor(tokenizer, anchors, settings)
    teacher_is_base = settings.anchor.teacher == "base" and bool(adapter_folders)
    if anchor is not None and teacher_is_base:
        progress("remembering the base's everyday answers", 0, 1, None)
        _remember_base(anchor, base_folder, settings)
    progress("loading the previous policy", 0, 1, None)
    model = _policy(base_folder, adapter_folders, settings)
    autocast = autocast_of(model, settings)
    if anchor is not None and not teacher_is_base:
        progress("remembering the previous policy's everyday answers", 0, 1, None)
        anchor.remember_teacher(model, autocast)
    plans = [
        plan_phase(p, kinds, model, autocast, settings, partial(progress, f"reference for {p.objective}"))
        for p in phases
    ]
    probe = _probe_rows(kinds)
    reference_B = invariants.probe_logps(model, probe, autocast)

    peft_model = new_adapter(model, settings, below=len(adapter_folders))
    if settings.lora.null_space is not None and anchor is not None:
        progress("turning the adapter away from everyday inputs", 0, 1, None)
        start_in_null_space(peft_model, anchor.rows, settings.lora.null_space, autocast)
    invariants.check_only_adapter_trains(peft_model)
    frozen = invariants.frozen_digest(peft_model)
    invariants.check_fresh_start(peft_model, *probe, autocast)

    reports: list[PhaseReport] = []
    with adapter_in_autocast_dtype(peft_model, settings):
        for number, plan in enumerate(plans):
            folder = out / f"phase{number}-{plan.settings.objective}"
            finished = folder / "done"
            if agreed(is_complete(finished)):
                reports.append(_take_up(peft_model, finished))
                continue
            with peft_model.disable_adapter():
                found_B = invariants.probe_logps(peft_model, probe, autocast)
            invariants.check_reference(plan.settings.objective, reference_B, found_B)
            report = run_phase(peft_model, tokenizer, plan, settings, anchor, folder, autocast, progress)
            reports.append(report)
            _publish(peft_model, finished, base_folder.name, "phase.json", asdict(report))
            remove_checkpoints(folder)

    invariants.check_frozen(frozen, invariants.frozen_digest(peft_model))
    invariants.check_only_adapter_trains(peft_model)
    for folder, digest in zip(adapter_folders, frozen_before, strict=True):
        invariants.check_frozen(digest, verify_folder(folder))
    skipped = [report.note for report in reports if report.note]
    reached = {name for plan, report in zip(plans, reports, strict=True) if report.steps for name in plan.reached}
    if not any(report.steps for report in reports):
        raise NothingToTrainError("every phase was skipped: " + "; ".join(skipped))
    result = IncrementResult(
        adapter=done,
        phases=tuple(reports),
        seconds=time.monotonic() - started,
        tokens=sum(report.tokens for report in reports),
        not_trained=tuple(e.id for e in examples if e.id not in reached),
        notes=(*_left_out(examples, too_long, reached, settings), *_skipped(kinds, settings), *skipped),
    )
    _publish(peft_model, done, base_folder.name, "training.json", asdict(result) | {"adapter": None})
    return result


def _policy(base_folder: Path, adapter_folders: Sequence[Path], settings: TrainingSettings) -> Any:
    """The stack as it is trained on: frozen, in the run's dtype, with a head that scores labelled positions only."""
    dtype, quantization = DTYPES[settings.dtype], settings.quantization
    model = load_stack(base_folder, adapter_folders, dtype=dtype, quantization=quantization, to_train=True)
    attach_labelled_head(model)
    return model


def _remember_base(anchor: Anchor, base_folder: Path, settings: TrainingSettings) -> None:
    base = _policy(base_folder, (), settings)
    anchor.remember_teacher(base, autocast_of(base, settings))
    del base
    gc.collect()  # its head's scorer is a cycle, which would keep a second model in memory for a while


def _take_up(model: Any, finished: Path) -> PhaseReport:
    """The report of a phase that an earlier run finished; the model's adapter becomes what that phase left."""
    verify_folder(finished)
    set_peft_model_state_dict(model, load_file(finished / "adapter_model.safetensors"))
    return PhaseReport(**json.loads((finished / "phase.json").read_text(encoding="utf-8")))


def _publish(model: Any, folder: Path, base_name: str, name: str, record: dict[str, Any]) -> None:
    """Write the adapter and its record as one complete folder, on the first process; the others wait for it."""
    if PartialState().is_main_process:
        with staged_folder(folder) as staged:
            save_adapter(model, staged, base_name)
            write_json(staged / name, record)
    PartialState().wait_for_everyone()


def read_result(adapter: Path) -> IncrementResult:
    """The result of a finished run, from the adapter's own folder."""
    stored = json.loads((adapter / "training.json").read_text(encoding="utf-8"))
    phases = tuple(PhaseReport(**phase) for phase in stored.pop("phases"))
    stored |= {"adapter": adapter, "not_trained": tuple(stored["not_trained"]), "notes": tuple(stored["notes"])}
    return IncrementResult(phases=phases, **stored)


def _check_same_run(
    out: Path, stack: list[str], examples: Sequence[Example], anchors: Any, settings: TrainingSettings
) -> None:
    """Refuse to continue a folder that another increment began."""
    identity = {
        "stack": stack,
        "examples": json_digest([example.model_dump(mode="json") for example in examples]),
        "anchors": json_digest([[[m.model_dump() for m in c], a] for c, a in anchors]),
        "settings": settings.model_dump(mode="json"),
    }
    marker = out / "identity.json"
    if not PartialState().is_main_process:
        return
    if marker.is_file():
        found = json.loads(marker.read_text(encoding="utf-8"))
        changed = sorted(key for key in identity if identity[key] != found.get(key))
        if changed:
            raise IntegrityError(
                f"{out}: holds a run with another {', '.join(changed)}. Remove the folder to start over, or give back "
                "what it was started with to continue it."
            )
        return
    write_json(marker, identity)


def tokenize_by_kind(
    tokenizer: Any, examples: Sequence[Example], max_length: int
) -> tuple[dict[str, list[TokenExample]], list[str]]:
    kinds: dict[str, list[TokenExample]] = {"sft": [], "pair": [], "unpaired": []}
    too_long = []
    for example in examples:
        tokens = tokenize(tokenizer, example)
        if tokens.length > max_length:
            too_long.append(example.id)
        else:
            kinds[example.kind].append(tokens)
    if too_long:
        log.warning(
            "%d of %d examples are longer than %d tokens and left out", len(too_long), len(examples), max_length
        )
    return kinds, too_long


def _phases_with_examples(kinds: dict[str, list[TokenExample]], settings: TrainingSettings) -> list[Any]:
    enough = [p for p in settings.phases if len(kinds[p.kind]) >= p.minimum]
    if not enough:
        counts = ", ".join(f"{len(rows)} {kind}" for kind, rows in kinds.items())
        raise NothingToTrainError(f"nothing to train: {counts}. Collect more feedback, or lower `minimum` of a phase.")
    return enough


def _left_out(
    examples: Sequence[Example], too_long: Sequence[str], reached: Collection[str], settings: TrainingSettings
) -> list[str]:
    """The examples that no step saw, in words."""
    late = len(examples) - len(too_long) - sum(e.id in reached for e in examples)
    counts = (
        (len(too_long), f"are longer than training.max_length ({settings.max_length} tokens)"),
        (late, "were reached by no step: phases of less than an epoch, ended by max_steps, or skipped"),
    )
    return [f"{count} of {len(examples)} examples {why}" for count, why in counts if count]


def _skipped(kinds: dict[str, list[TokenExample]], settings: TrainingSettings) -> list[str]:
    """The phases that had too few examples, in words; none at all is no news."""
    return [
        f"{phase.objective}: skipped, {len(kinds[phase.kind])} examples, {phase.minimum} needed"
        for phase in settings.phases
        if 0 < len(kinds[phase.kind]) < phase.minimum
    ]


def _anchor(tokenizer: Any, anchors: Sequence[tuple[Conversation, str]], settings: TrainingSettings) -> Anchor | None:
    if settings.anchor.weight == 0:
        return None
    if not anchors:
        raise TrainingError(
            "anchor.weight is above 0 but there are no anchor conversations: set it to 0, or give prompts."
        )
    rows = [Row(tuple(prompt_ids(tokenizer, c)), tuple(completion_ids(tokenizer, c, answer))) for c, answer in anchors]
    told = settings.anchor
    return Anchor(rows, weight=told.weight, rows_per_step=told.rows_per_step, seed=settings.seed)


def _probe_rows(kinds: dict[str, list[TokenExample]]) -> list[Row]:
    """Two completions to score at the start of every phase: a real pair if there is one."""
    if kinds["pair"]:
        return list(kinds["pair"][0].rows)
    rows = [example.rows[0] for kind in kinds.values() for example in kind]
    return [rows[0], rows[-1]]
