"""Runs of a continual-learning benchmark as figures, tables and heat maps. No torch.

Shares are fractions of 1; BWT is in points of 100. OP, overall performance, is what DESIGN.md calls average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from incremental_llm.evaluation.metrics import Matrix, Metrics

METRICS = ("op", "bwt", "fwt", "forgetting", "plasticity")


@dataclass(frozen=True)
class Result:
    """A method through an order with a seed."""

    matrix: Matrix
    seconds: float
    cpu_seconds: float

    def metric(self, name: str) -> float | None:
        """One of METRICS; None where it is undefined."""
        metrics: Metrics = self.matrix.metrics()
        value: float | None = getattr(metrics, "average" if name == "op" else name)
        return value * 100 if name == "bwt" and value is not None else value


@dataclass(frozen=True)
class Report:
    """All finished runs: results by method and order, one a seed; bounds as far as they were run.

    `mtl` are test scores by candidate and seed, `mtl_dev` the candidates' dev scores: they count the tuning budget.
    """

    results: Mapping[tuple[str, str], Sequence[Result]]
    base: Mapping[str, float]
    single: Mapping[str, Sequence[float]] = field(default_factory=dict)
    mtl: Sequence[Sequence[float]] = ()
    mtl_dev: Sequence[float] = ()

    @property
    def bound(self) -> float | None:
        """The strongest multi-task bound found: the best candidate's mean over seeds on test."""
        return max(map(fmean, self.mtl), default=None)

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for method, _ in self.results))

    @property
    def orders(self) -> list[str]:
        return list(dict.fromkeys(order for _, order in self.results))

    def mean(self, name: str, method: str, order: str | None = None) -> float | None:
        """A metric's mean over seeds, and over orders unless one is named; None if a run lacks it."""
        runs = [r for (m, o), seeds in self.results.items() if m == method and order in (None, o) for r in seeds]
        values = [run.metric(name) for run in runs]
        known = [value for value in values if value is not None]
        return fmean(known) if known and len(known) == len(values) else None

    def seconds(self, method: str, order: str | None = None) -> float:
        """Seconds that training took, mean of the runs."""
        return fmean(
            r.seconds for (m, o), seeds in self.results.items() if m == method and order in (None, o) for r in seeds
        )


def result_of(order: Sequence[str], run: Mapping[str, Any], base: Mapping[str, float]) -> Result:
    """The matrix of a finished run, with the base as its first column."""
    scores: dict[tuple[str, str], float | None] = {(task, "base"): base[task] for task in order}
    for number, version in enumerate(run["versions"], 1):
        scores |= {(task, f"v{number}"): share(right) for task, right in version["right"].items()}
    names = ("base", *(f"v{number}" for number in range(1, len(order) + 1)))
    introduced = {task: number for number, task in enumerate(order, 1)}
    total = {key: sum(version[key] for version in run["versions"]) for key in ("seconds", "cpu_seconds")}
    return Result(Matrix(tuple(order), names, scores, introduced), **total)


def share(right: Sequence[int]) -> float:
    return sum(right) / len(right)


def figures(report: Report, chosen: str) -> dict[str, float]:
    """Every figure under a flat name; `chosen` is the method whose means stand as `op_over_mtl` and `bwt`."""
    flat: dict[str, float | None] = {}
    mtl = report.bound
    if chosen in report.methods:
        op = report.mean("op", chosen)
        flat |= {"op_over_mtl": op / mtl if op is not None and mtl else None, "bwt": report.mean("bwt", chosen)}
    flat |= {"mtl_op": mtl, "mtl_candidates": len(report.mtl_dev) or None}
    flat |= {f"mtl_dev_candidate{n}": dev for n, dev in enumerate(report.mtl_dev)}
    flat |= {f"mtl_op_candidate{n}": fmean(seeds) for n, seeds in enumerate(report.mtl)}
    for method in report.methods:
        op = report.mean("op", method)
        flat[f"op_over_mtl_{method}"] = op / mtl if op is not None and mtl else None
        for order in report.orders:
            if (method, order) in report.results:
                flat |= {f"{name}_{method}_{order}": report.mean(name, method, order) for name in METRICS}
                flat[f"seconds_{method}_{order}"] = report.seconds(method, order)
    flat |= {f"single_{task}": fmean(scores) for task, scores in report.single.items()}
    flat |= {f"base_{task}": score for task, score in report.base.items()}
    flat["seeds"] = max(map(len, report.results.values()), default=0)
    return {name: value for name, value in flat.items() if value is not None}


def tables(report: Report) -> str:
    """Methods by metrics, first over all orders, then order by order with each matrix, as Markdown."""
    parts = [_bounds(report), _table(report, None)]
    for order in report.orders if len(report.orders) > 1 else ():
        parts.append(f"order {order}\n\n{_table(report, order)}")
    parts += [
        f"{method}, order {order}, mean of {len(seeds)} seed{'s' if len(seeds) > 1 else ''}\n\n{_matrix(seeds)}"
        for (method, order), seeds in report.results.items()
    ]
    return "\n\n".join(part for part in parts if part)


def _bounds(report: Report) -> str:
    lines = ["base: " + ", ".join(f"{task} {score:.3f}" for task, score in report.base.items())]
    if report.single:
        scores = {task: fmean(found) for task, found in report.single.items()}
        said = ", ".join(f"{task} {score:.3f}" for task, score in scores.items())
        lines.append(f"single-task bounds: {said}; mean {fmean(scores.values()):.3f}")
    if report.mtl:
        tried = ", ".join(
            f"{fmean(test):.3f} (dev {dev:.3f})" for test, dev in zip(report.mtl, report.mtl_dev, strict=True)
        )
        lines.append(f"multi-task bound (MTL): {report.bound:.3f}, the best of {len(report.mtl)} candidates: {tried}")
    return "  \n".join(lines)


def _table(report: Report, order: str | None) -> str:
    mtl = report.bound
    lines = [
        "| method | OP | OP / MTL | BWT, points | FWT | forgetting | plasticity | training, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for method in report.methods:
        if order is None or (method, order) in report.results:
            op, bwt, *others = (report.mean(name, method, order) for name in METRICS)
            ratio = op / mtl if op is not None and mtl else None
            cells = [_said(op), _said(ratio), _said(bwt, 1), *map(_said, others)]
            lines.append(f"| {method} | {' | '.join(cells)} | {report.seconds(method, order):.0f} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _matrix(seeds: Sequence[Result]) -> str:
    suites, versions = seeds[0].matrix.suites, seeds[0].matrix.versions
    head = [f"| | {' | '.join(versions)} |", "|---|" + "---:|" * len(versions)]
    means = mean_matrix(seeds)
    return "\n".join(
        head + [f"| {s} | {' | '.join(f'{v:.2f}' for v in row)} |" for s, row in zip(suites, means, strict=True)]
    )


def _said(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def mean_matrix(seeds: Sequence[Result]) -> list[list[float]]:
    """a_ij, suites down and versions across, mean over seeds."""
    one = seeds[0].matrix
    return [[fmean(r.matrix.cell(s, j) for r in seeds) for j in range(len(one.versions))] for s in one.suites]


def heat_maps(report: Report, folder: Path) -> list[Path]:
    """<method>.png for each method: a panel an order, a_ij with tasks down and versions across."""
    folder.mkdir(parents=True, exist_ok=True)  # nothing was run where every run was kept
    return [_heat_map(report, method, folder / f"{method}.png") for method in report.methods]


def _heat_map(report: Report, method: str, path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {order: seeds for (m, order), seeds in report.results.items() if m == method}
    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (order, seeds) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        cells = mean_matrix(seeds)
        axes.imshow(cells, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(cells[0])), seeds[0].matrix.versions)
        axes.set_yticks(range(len(cells)), seeds[0].matrix.suites)
        axes.set_title(f"{method}, order {order}: OP {report.mean('op', method, order):.3f}", fontsize=10)
        for row, values in enumerate(cells):
            for column, value in enumerate(values):
                ink = "black" if value > 0.6 else "white"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=9)
    figure.savefig(path, dpi=120)
    return path
