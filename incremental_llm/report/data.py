"""What a report shows, as plain values: the caller fills these records, the report only draws them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from incremental_llm.errors import InputError

Role = Literal["general", "increment", "superseded"]


@dataclass(frozen=True)
class Cell:
    """Score of one suite at one version: `score` in 0..1, its interval `low`..`high`, over `n` items."""

    score: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """The last version's score minus the base's on the same items: fractions of 1 with their paired interval."""

    difference: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class SuiteRow:
    """One row of the matrix.

    `role` is "superseded" when later policy changed the row's facts, so that a falling score is right.
    `introduced` is the night that taught the suite (1 for the first), 0 for one that was there from the start.
    `cells` maps a version ("base", "v1", ...) to its cell; a version without a cell was not measured.
    """

    name: str
    role: Role
    introduced: int
    cells: dict[str, Cell]


@dataclass(frozen=True)
class CheckRow:
    """One check of the gate. Scores are fractions of 1, `difference` is after minus before with its interval."""

    name: str
    passed: bool | None  # None: reported, not guarded
    before: float | None
    after: float | None
    difference: float | None
    low: float | None
    high: float | None
    n: int | None
    margin: float | None
    reason: str


@dataclass(frozen=True)
class Answer:
    """One suite item answered by production (`before`) and by the candidate (`after`); None is "not scored"."""

    suite: str
    question: str
    before: str
    after: str
    before_correct: bool | None
    after_correct: bool | None


@dataclass(frozen=True)
class Night:
    """One attempt: what went in, how it trained, what the gate said.

    `version` is None for an attempt that got none; `losses` maps an objective to one number a step; `tokens` are those
    trained; `seconds` is the whole night and `stage_seconds` its parts; `events`, `examples` and `drops` are counts.
    """

    label: str
    version: int | None
    decision: str
    reasons: tuple[str, ...]
    checks: tuple[CheckRow, ...]
    seconds: float
    tokens: int
    stage_seconds: dict[str, float]
    losses: dict[str, list[float]]
    anchor_kl: list[float]
    events: dict[str, int]
    examples: dict[str, int]
    drops: dict[str, int]
    mixture: str
    refused_lines: tuple[str, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class LineageRow:
    """One snapshot of the registry; `adapters` are those of its stack, the oldest first."""

    version: int
    parent: int | None
    kind: str
    adapters: tuple[str, ...]
    time: str
    note: str


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows.

    `metrics` are fractions of 1 under the names of `incremental_llm.report.summary.METRICS`; a metric without an entry
    was not measured. `against_base` has a difference for each suite that was there from the start. `baseline_*` is
    plain sequential fine-tuning on the same data, whose cells may name later versions than ours (nothing rejects its
    nights). `sources` maps a label to the command that gave the figures. `production` is the version in production
    where the nights and the lineage do not tell.

    Raises:
        InputError: a number is NaN or infinite, a score is outside 0..1, a cell names a version that is not in
            `versions`, or a name occurs twice.
    """

    title: str
    base: str
    seed: int
    date: str
    machine: str
    versions: tuple[str, ...]
    suites: tuple[SuiteRow, ...]
    metrics: dict[str, float]
    nights: tuple[Night, ...]
    lineage: tuple[LineageRow, ...]
    peak_memory_bytes: int | None
    against_base: dict[str, Difference] = field(default_factory=dict)
    baseline_suites: tuple[SuiteRow, ...] = ()
    baseline_metrics: dict[str, float] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    production: int | None = None

    def __post_init__(self) -> None:
        _refuse_non_finite(self)
        _refuse_repeats("versions", self.versions)
        _refuse_repeats("suites", [suite.name for suite in self.suites])
        _refuse_repeats("baseline_suites", [suite.name for suite in self.baseline_suites])
        for suite in self.suites:
            for version in suite.cells.keys() - set(self.versions):
                raise InputError(
                    f"report: suite {suite.name!r} has a cell for {version!r}, expected one of "
                    f"{', '.join(self.versions)}. Add it to `versions`, or leave the cell out."
                )
        for suite in self.suites + self.baseline_suites:
            for version, cell in suite.cells.items():
                _refuse_wrong_cell(f"{suite.name!r} at {version}", cell)

    @property
    def baseline_versions(self) -> tuple[str, ...]:
        """Our versions that the baseline has too, then its later ones in the order they occur."""
        found = dict.fromkeys(version for suite in self.baseline_suites for version in suite.cells)
        known = [version for version in self.versions if version in found]
        return (*known, *(version for version in found if version not in self.versions))


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """Every float inside `value` with the path that leads to it."""
    if isinstance(value, float):
        yield path, value
    elif dataclasses.is_dataclass(value):
        for each in dataclasses.fields(value):
            yield from _numbers(getattr(value, each.name), f"{path}.{each.name}" if path else each.name)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _numbers(inner, f"{path}[{index}]")


def _refuse_non_finite(data: ReportData) -> None:
    wrong = [(path, number) for path, number in _numbers(data, "") if not math.isfinite(number)]
    if wrong:
        listed = ", ".join(f"{path} is {number}" for path, number in wrong[:5])
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise InputError(
            f"report: expected finite numbers, found that {listed}{more}. "
            'Leave out what was not measured (no cell, no metric, None): it is then shown as "not measured".'
        )


def _refuse_wrong_cell(where: str, cell: Cell) -> None:
    if not (0 <= cell.score <= 1 and 0 <= cell.low <= cell.high <= 1 and cell.n > 0):
        raise InputError(
            f"report: {where}: expected a score and an interval low <= high from 0 to 1 over at least 1 item, "
            f"found {cell}. Leave the cell out if it was not measured."
        )


def _refuse_repeats(what: str, names: tuple[str, ...] | list[str]) -> None:
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise InputError(f"report: {what}: {', '.join(repeated)} occurs more than once, expected different names.")
