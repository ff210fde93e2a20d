"""What a report says in words: the definitions of its metrics, its verdicts, and how numbers are written."""

from __future__ import annotations

from dataclasses import dataclass

from incremental_llm.report.data import Cell, Night, ReportData

NOT_MEASURED = "not measured"
BASELINE = "plain sequential fine-tuning (one adapter; no replay, gate or stack)"


@dataclass(frozen=True)
class Metric:
    """A metric's definition; `better` says which sign or end is the good one, `signed` that it can be below 0."""

    key: str
    label: str
    meaning: str
    better: str
    signed: bool


# Lopez-Paz & Ranzato 2017 (average, BWT, FWT), Chaudhry et al. 2018 (forgetting).
METRICS = (
    Metric("average", "Average", "mean score over the increments' suites after the last increment", "higher", False),
    Metric(
        "bwt",
        "BWT (backward transfer)",
        "mean change of earlier increments' suites from right after their own night to the end",
        "higher; below 0 is forgetting",
        True,
    ),
    Metric(
        "fwt",
        "FWT (forward transfer)",
        "mean gain over the base on a suite just before its own night",
        "higher; 0 is no transfer",
        True,
    ),
    Metric(
        "forgetting",
        "Forgetting",
        "mean drop of earlier suites from their best score so far to the end",
        "lower; above 0 is loss",
        True,
    ),
    Metric("plasticity", "Plasticity", "mean score of each suite right after its own night", "higher", False),
    Metric("stability", "Stability", "share of items whose outcome did not change", "higher", False),
    Metric("negative_flips", "Negative flips", "share of items right before and wrong now", "lower", False),
)
_KNOWN = {metric.key for metric in METRICS}


def metric_rows(*measured: dict[str, float]) -> list[Metric]:
    """The five metrics every run publishes, and any other that one of `measured` holds."""
    found = {key for metrics in measured for key in metrics}
    always = {"average", "bwt", "fwt", "forgetting", "negative_flips"}
    known = [metric for metric in METRICS if metric.key in always | found]
    return known + [Metric(key, key, "given by the caller", "", True) for key in sorted(found - _KNOWN)]


def production(data: ReportData) -> str:
    """The version in production: as given, or the newest that was promoted or committed, or "base"."""
    if data.production is not None:
        version = data.production
    else:
        promoted = [night.version or 0 for night in data.nights if night.decision == "promoted"]
        version = max([0, *promoted, *(row.version for row in data.lineage)])
    return f"v{version}" if version else "base"


def headline(data: ReportData) -> str:
    """One sentence for the whole run."""
    if not data.nights:
        return "No night has run yet."
    counts: dict[str, int] = {}
    for night in data.nights:
        counts[night.decision] = counts.get(night.decision, 0) + 1
    listed = ", ".join(f"{count} {decision}" for decision, count in counts.items())
    text = f"{len(data.nights)} night{'s' if len(data.nights) > 1 else ''}: {listed}."
    last = data.nights[-1]
    return f"{text} {last.label} was rejected and changed nothing." if last.decision == "rejected" else text


def why(night: Night) -> str:
    """The first reason without its list of items, or what the checks say where no reason is given."""
    if night.reasons:
        more = len(night.reasons) - 1
        return night.reasons[0].split(" Lost: ")[0] + (f" (and {more} more, below)" if more else "")
    failed = [check for check in night.checks if check.passed is False]
    if failed:
        return f"{len(failed)} of {len(night.checks)} checks failed, first {failed[0].name}: {failed[0].reason}"
    return f"all {len(night.checks)} checks passed" if night.checks else "the gate checked nothing"


def cell_text(cell: Cell | None) -> str:
    """For example "0.83 [0.71, 0.91]"."""
    return NOT_MEASURED if cell is None else f"{cell.score:.2f} [{cell.low:.2f}, {cell.high:.2f}]"


def difference_lines(data: ReportData) -> list[str]:
    """For example "general: +0.01 against the base (95 % interval −0.04 to +0.06, 260 items), v3"."""
    return [
        f"{suite}: {signed(found.difference, 3)} against the base (95 % interval {signed(found.low, 3)} to "
        f"{signed(found.high, 3)}, {found.n} items), {data.versions[-1]}"
        for suite, found in data.against_base.items()
    ]


def share(value: float | None) -> str:
    """A fraction of 1 with two decimals."""
    return NOT_MEASURED if value is None else f"{value:.2f}"


def signed(value: float | None, decimals: int = 2) -> str:
    """A difference with its sign, a true minus, and no sign on a zero."""
    if value is None:
        return NOT_MEASURED
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\u2212")


def metric_text(metric: Metric, metrics: dict[str, float]) -> str:
    """A metric's value with three decimals, signed where it can be below 0."""
    value = metrics.get(metric.key)
    if value is None:
        return NOT_MEASURED
    return signed(value, 3) if metric.signed else f"{value:.3f}"


def duration(seconds: float) -> str:
    """For example "0.4 s", "38 s", "2 min 05 s", "1 h 02 min"."""
    if 0 < seconds < 0.05:
        return "< 0.1 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def memory(size: int | None) -> str:
    """Bytes as GB (1e9) or MB (1e6)."""
    if size is None:
        return NOT_MEASURED
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
