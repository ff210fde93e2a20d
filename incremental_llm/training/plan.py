"""A phase laid out: its rows in training order, with everything that must be known before the first step.

`plan_phase` runs while the model still is the previous policy: it fixes the order, pairs up KTO's mismatched
completions, stores the reference log-probabilities, and says which replayed rows are held to what.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from incremental_llm.dataset.examples import Kind
from incremental_llm.training.batching import Row, TokenExample, training_order, with_dropout
from incremental_llm.training.regularizers.memory import ReplayMemory, not_held
from incremental_llm.training.scoring import completion_logps
from incremental_llm.training.settings import PhaseSettings, TrainingSettings

Score = Callable[[Sequence[Row]], list[float]]
Hold = Callable[[TokenExample], dict[str, Any]]


@dataclass(frozen=True)
class PhasePlan:
    """Rows in training order (columns of plain numbers), batch by batch; `reached` are the ids of their examples.

    `settled` are the ids of replayed pairs that production prefers clearly already.
    """

    settings: PhaseSettings
    rows: list[dict[str, Any]]
    examples: int
    tokens: int
    reached: frozenset[str]
    settled: frozenset[str] = field(default=frozenset())

    @property
    def steps(self) -> int:
        return len(self.rows) // self.settings.batch_size


def plan_phase(
    phase: PhaseSettings,
    kinds: Mapping[Kind, Sequence[TokenExample]],
    model: Any,
    autocast: Any,
    settings: TrainingSettings,
    progress: Callable[[int, int, float | None], None],
    replayed: Collection[str] = (),
    memory: ReplayMemory | None = None,
    turns: Sequence[Collection[str]] = (),
) -> PhasePlan:
    """Lay out a phase. `model` must still be the previous policy: its log-probabilities become the reference.

    `replayed` are ids of examples of earlier increments, `turns` those of them that come in one epoch and not in
    another; `memory` takes in those that are held to a teacher.
    """
    examples = kinds[phase.kind]
    number = [one is phase for one in settings.phases].index(True)  # two phases may be equal
    seed = settings.seed * 1000 + number
    places = [[i for i, example in enumerate(examples) if example.id in turn] for turn in map(frozenset, turns)]
    rotating = len({i for turn in places for i in turn})
    order = training_order(
        [example.length for example in examples],
        epochs=phase.passes(len(examples) - rotating + (len(places[0]) if places else 0)),
        batch_size=phase.batch_size,
        seed=seed,
        turns=places,
    )
    reached = frozenset(examples[i].id for batch in order for i in batch)
    score = partial(_scored, model=model, autocast=autocast)
    settled: frozenset[str] = frozenset()

    def held(example: TokenExample) -> dict[str, Any]:
        if memory is None or example.id not in replayed or not example.desirable:
            return not_held()
        return memory.hold(example, max(memory.kl_weight, phase.replayed_kl) if phase.kind == "pair" else None)

    progress(0, 1, None)
    if phase.objective == "sft":
        rows = _sft_rows(examples, order, held, dropout=phase.prompt_dropout, rng=random.Random(seed))
    elif phase.objective == "kto":
        rows = _kto_rows(examples, order, held, score)
    else:
        used = sorted({i for batch in order for i in batch})
        reference = _pair_reference(examples, used, score)
        settled = frozenset(
            examples[i].id
            for i in used
            if examples[i].id in replayed and margin(examples[i], *reference[i]) >= phase.settled_margin
        )
        rows = _dpo_rows(examples, order, held, reference, replayed, settled, phase.nll)
    progress(1, 1, None)
    tokens = sum(map(_trained_tokens, rows))
    return PhasePlan(phase, rows, len(examples), tokens, reached, settled)


def margin(pair: TokenExample, chosen: float, rejected: float) -> float:
    """By how many nats a token the policy prefers the chosen answer, from the answers' summed log-probabilities.

    Lengths are taken out, or a long rejected answer would always look settled (Meng et al. 2024, SimPO, eq. 3). The
    policy's own preference is meant, not its distance from a reference: that starts at 0 again every night.
    """
    return chosen / len(pair.rows[0].completion) - rejected / len(pair.rows[1].completion)


def _scored(rows: Sequence[Row], *, model: Any, autocast: Any) -> list[float]:
    logps: list[float] = completion_logps(model, rows, autocast)
    return logps


def _trained_tokens(row: Mapping[str, Any]) -> int:
    """Prompt and completion, for a pair twice."""
    completions = [row[name] for name in ("completion_ids", "chosen_ids", "rejected_ids") if row.get(name)]
    return sum(len(row["prompt_ids"]) + len(completion) for completion in completions)


def _sft_rows(
    examples: Sequence[TokenExample], order: list[list[int]], held: Hold, *, dropout: float, rng: random.Random
) -> list[dict[str, Any]]:
    rows = []
    for batch in order:
        labelled = sum(len(examples[i].rows[0].completion) for i in batch)
        for i in batch:
            row, holds = with_dropout(examples[i], dropout, rng), held(examples[i])
            if holds["held"] >= 0:
                row = examples[i].rows[0]  # its teacher has seen the whole question
            share = len(batch) / labelled
            own = {"weight": examples[i].weight, "share": share, "held_scale": share}
            rows.append(_tokens(row) | own | holds)
    return rows


def _pair_reference(
    examples: Sequence[TokenExample], used: Sequence[int], score: Score
) -> dict[int, tuple[float, float]]:
    """(chosen, rejected) log-probabilities of each pair `used`, under the previous policy."""
    logps = score([row for i in used for row in examples[i].rows])
    return {i: (logps[2 * k], logps[2 * k + 1]) for k, i in enumerate(used)}


def _dpo_rows(
    examples: Sequence[TokenExample],
    order: list[list[int]],
    held: Hold,
    reference: Mapping[int, tuple[float, float]],
    replayed: Collection[str],
    settled: Collection[str],
    nll: float,
) -> list[dict[str, Any]]:
    """A replayed pair has at least the plain NLL on its chosen answer; a settled one no rejected answer, and no DPO."""
    rows = []
    for i in (i for batch in order for i in batch):
        pair, done = examples[i], examples[i].id in settled
        imitated = max(nll, 1.0) if pair.id in replayed else nll
        rows.append(
            {
                "prompt_ids": list(pair.rows[0].prompt),
                "chosen_ids": list(pair.rows[0].completion),
                "rejected_ids": [] if done else list(pair.rows[1].completion),
                "weight": 0.0 if done else pair.weight,
                "nll_weight": pair.weight * imitated,
                "ref_chosen": reference[i][0],
                "ref_rejected": reference[i][1],
                "held_scale": 1 / len(pair.rows[0].completion),
                **held(pair),
            }
        )
    return rows


def _kto_rows(
    examples: Sequence[TokenExample], order: list[list[int]], held: Hold, score: Score
) -> list[dict[str, Any]]:
    """Completions are rotated by one within each whole batch for the KL baseline, whatever the number of processes.

    The downs are scaled so that together they weigh no more than the ups, each as often as it is visited (Ethayarajh et
    al. 2024, eq. 8).
    """
    flat = [(i, _another(batch, k)) for batch in order for k, i in enumerate(batch)]
    visits = [examples[i] for i, _ in flat]
    ups = sum(e.weight for e in visits if e.desirable)
    downs = sum(e.weight for e in visits if not e.desirable)
    down_scale = min(1.0, ups / downs) if downs else 1.0
    wanted = sorted({(i, i) for i, _ in flat} | set(flat))
    scored = score([Row(examples[i].rows[0].prompt, examples[j].rows[0].completion) for i, j in wanted])
    reference = dict(zip(wanted, scored, strict=True))
    return [
        _tokens(examples[i].rows[0])
        | {
            "kl_completion_ids": list(examples[j].rows[0].completion),
            "desirable": examples[i].desirable,
            "weight": examples[i].weight * (1.0 if examples[i].desirable else down_scale),
            "ref_logps": reference[i, i],
            "ref_kl_logps": reference[i, j],
            "held_scale": 1 / len(examples[i].rows[0].completion),
            **held(examples[i]),
        }
        for i, j in flat
    ]


def _another(batch: Sequence[int], place: int) -> int:
    """The nearest example before `place`, around the batch, that is another one; the same if there is no other."""
    before = (batch[place - back] for back in range(1, len(batch)))
    return next((i for i in before if i != batch[place]), batch[place])


def _tokens(row: Row) -> dict[str, Any]:
    return {"prompt_ids": list(row.prompt), "completion_ids": list(row.completion)}
