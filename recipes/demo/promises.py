"""What the demo has to show, held against what it showed: a pure function of its results.json.

    for promise in promises(results, taught, superseded): print(promise.line)

A figure that was not measured, such as that of a version that a refused night did not make, breaks its promise.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

BEFORE, AFTER = 0.30, 0.75  # score of a night's suites: at most before it, at least after it
KEPT = 0.90  # share of the score right after its own night that an earlier suite has at the end
GENERAL = -0.05  # above this is the lower end of the 95 % interval of `general` against the base


@dataclass(frozen=True)
class Promise:
    """One promise with what was found; `kept` is False where that was not measured."""

    text: str
    found: str
    kept: bool

    @property
    def line(self) -> str:
        return f"{'kept  ' if self.kept else 'BROKEN'}  {self.text}: {self.found}"


def promises(results: Mapping[str, Any], taught: Mapping[str, int], superseded: Collection[str]) -> list[Promise]:
    """All promises of a run; `taught` gives the night that teaches a suite, 0 for what is there from the start.

    The last night is the false one. A suite that a later night supersedes is not expected to keep its score.
    """
    nights = results["nights"]
    versions = ["base", *(f"v{night['version']}" if night["version"] else None for night in nights)]
    last = max(taught.values())
    made = [version for version in versions[: last + 1] if version]
    decided = ", ".join(night["decision"] for night in nights)
    false = [night["decision"] for night in nights[last:]]
    found = [
        Promise(
            f"nights 1 to {last} are promoted and the false one is not",
            decided,
            len(made) == last + 1 and bool(false) and "promoted" not in false,
        )
    ]

    def score(suite: str, version: str | None) -> float | None:
        cell = results["scores"].get(suite, {}).get(version)
        return None if cell is None else cell["score"]

    for suite, night in taught.items():
        if not night:
            continue
        before, after = score(suite, versions[night - 1]), score(suite, versions[night])
        told = f"{suite} goes from at most {BEFORE:.0%} to at least {AFTER:.0%} in night {night}"
        found.append(Promise(told, f"{_percent(before)} to {_percent(after)}", _holds(before, BEFORE, after, AFTER)))
    for suite, night in taught.items():
        if not 0 < night < last or suite in superseded:
            continue
        own, end = score(suite, versions[night]), score(suite, versions[last])
        kept = own is not None and end is not None and end >= KEPT * own - 1e-9
        told = f"{suite} keeps at least {KEPT:.0%} of its score after night {night}"
        found.append(Promise(told, f"{_percent(own)} then, {_percent(end)} at the end", kept))
    general = results["against_base"].get("general")
    shown = general is not None and len(made) == last + 1
    said = f"{100 * general['low']:+.1f} to {100 * general['high']:+.1f} points" if shown else "not measured"
    told = f"general against the base: the interval's lower end is above {100 * GENERAL:.0f} points"
    found.append(Promise(told, said, shown and general["low"] > GENERAL))
    return found


def _holds(before: float | None, most: float, after: float | None, least: float) -> bool:
    return before is not None and after is not None and before <= most and after >= least


def _percent(score: float | None) -> str:
    return "not measured" if score is None else f"{score:.1%}"
