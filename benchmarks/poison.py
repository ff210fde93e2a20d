"""What attackers get into the training set, and what trust controls cost those who mean well.

    python benchmarks/poison.py --data FOLDER            # minutes
    python benchmarks/poison.py --data FOLDER --train    # also what the trained model says: some hours of a core

FOLDER holds `convai2_thumbs`, real thumbs of volunteers. The log is cut into six parts of equally many thumbs: the
first is history, the others are nights. Attackers add so many feedback events for every hundred real ones to a night
drawn by chance, the slow drip to all five; their accounts are new that night or, where the attack says aged (and for
the heavy user and the drip), were there in the history. Every figure is over five seeds. `reached_training_...` is the
share of attackers' feedback events that became examples, `weight_...` their share of the loss weight; `_without` is
trust.enabled=false. `weight_one_thumb_...` is that of one old account's thumb down in a night of nothing but praise.

False holds: the clean log day by day, as nightly runs would see it, and the demo's first three nights; the share of
examples that trust left out. `clean_weight_kept` is the share of the clean log's loss weight that stays on the same
examples with controls, each day's weights brought to the same total, the mean over days.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from poison_log import ATTACKS, days_of, nights_of, people_log
from poison_nights import CONTROLS, NIGHTS, Nights, Reached, Simulated, attacked, clean, one_thumb, weight_kept
from record import record

from incremental_llm.dataset import USED, CompileSettings, DropReason
from incremental_llm.errors import InputError
from incremental_llm.evaluation.intervals import wilson
from incremental_llm.feedback import Event, parse_event

SHARES = (0.5, 1.0, 2.0, 5.0)
SEEDS = 5
HELD = (
    DropReason.OVER_TOPIC_CAP,
    DropReason.SUSPICIOUS_LIFT,
    DropReason.YOUNG_ACCOUNTS,
    DropReason.NO_PAIR_QUORUM,
)
ROOT = Path(__file__).resolve().parent.parent


def table(nights: Nights, seeds: int) -> dict[str, float]:
    """All attacks at all shares, with and without, printed and as figures."""
    figures: dict[str, float] = {}
    logs = {
        (which, seed): clean(nights, settings, seed) for which, settings in CONTROLS.items() for seed in range(seeds)
    }
    print(f"{'attack':14} {'share':>6} {'events':>7} {'reached':>8} {'with':>6} {'weight':>7} {'with':>7}  left out")
    for name in ATTACKS:
        for share in SHARES:
            found = {which: Reached() for which in CONTROLS}
            for (which, seed), before in logs.items():
                attacked(name, share, seed, nights, before, found[which])
            for which, reached in found.items():
                figures[f"reached_training_{name}_{share:g}_{which}"] = reached.used / reached.sent
                figures[f"weight_{name}_{share:g}_{which}"] = reached.weight / reached.whole
            one, other = found["without"], found["with"]
            left_out = {reason: count for reason, count in other.reasons.most_common() if reason != USED}
            print(
                f"{name:14} {share:5g}% {one.sent:7} {one.used / one.sent:8.0%} {other.used / other.sent:6.0%} "
                f"{one.weight / one.whole:7.2%} {other.weight / other.whole:7.2%}  {left_out}",
                flush=True,
            )
    return figures


def false_holds(events: Sequence[Event], settings: CompileSettings) -> tuple[Counter[str], int]:
    """Clean examples that trust left out, by reason, and how many there were, day by day and in the demo."""
    held: Counter[str] = Counter()
    made = 0
    for days in (days_of(events), _demo()):
        log = Simulated(settings)
        for day in days:
            dataset = log.night(day)
            left_out = {reason.value: dataset.drop_counts().get(reason.value, 0) for reason in HELD}
            held.update(left_out)
            made += len(dataset.examples) + sum(left_out.values())
    return held, made


def clean_weight_kept(events: Sequence[Event]) -> float:
    """Share of the clean log's loss weight that stays on the same examples with controls; the mean over its days."""
    logs = [Simulated(CONTROLS[which]) for which in ("without", "with")]
    kept = [
        (sum(e.weight for e in one.examples), weight_kept(one.examples, other.examples))
        for one, other in ([log.night(day) for log in logs] for day in days_of(events))
    ]
    return sum(weight * share for weight, share in kept) / sum(weight for weight, _ in kept)


def one_thumb_of(nights: Nights) -> dict[str, float]:
    """An old account's single thumb down in a night of nothing but praise: its share of the loss weight."""
    figures = {}
    for which, settings in CONTROLS.items():
        reached = Reached()
        one_thumb(nights, clean(nights, settings, 0)[-1], reached)
        figures[f"weight_one_thumb_{which}"] = reached.weight / reached.whole
    return figures


def _demo() -> list[list[Event]]:
    """The nights that teach, without the lines that are broken on purpose."""
    nights: list[list[Event]] = []
    for night in (1, 2, 3):
        text = (ROOT / "recipes" / "demo" / f"night{night}.jsonl").read_text(encoding="utf-8")
        known: dict[str, Event] = {}
        for line in filter(str.strip, text.split("\n")):
            try:
                event = parse_event(json.loads(line))
            except (ValueError, InputError):
                continue
            known = {event.id: event, **known}
        nights.append(list(known.values()))
    return nights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train", action="store_true", help="also train, and ask the model")
    parser.add_argument("--out", type=Path, default=Path("poison_runs"), help="where --train keeps its adapters")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="fewer are a quick look, and are not recorded")
    parser.add_argument("--no-record", action="store_true")
    told = parser.parse_args()
    events = people_log(told.data)
    held, made = false_holds(events, CompileSettings())
    low, high = wilson(sum(held.values()), made)
    print(f"false holds: {sum(held.values())} of {made} clean examples ({low:.2%} to {high:.2%}): {dict(+held)}")
    figures = {"false_holds": sum(held.values()) / made, "false_holds_low": low, "false_holds_high": high}
    figures |= {"clean_examples": made, "clean_weight_kept": clean_weight_kept(events)}
    figures |= one_thumb_of(nights_of(events, NIGHTS + 1))
    print(f"clean weight kept {figures['clean_weight_kept']:.1%}, one thumb {figures['weight_one_thumb_with']:.2%}")
    figures |= table(nights_of(events, NIGHTS + 1), told.seeds)
    if told.train:
        from poison_training import trained

        figures |= trained(nights_of(events, NIGHTS + 1), told.out)
    if not told.no_record and told.seeds == SEEDS:
        record("poison", figures, f"python benchmarks/poison.py --data FOLDER{' --train' if told.train else ''}")


if __name__ == "__main__":
    main()
