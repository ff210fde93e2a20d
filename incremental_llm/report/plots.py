"""Pictures as inline SVG that takes its colours and font from the page, so one drawing is right in light and in dark.

matplotlib only knows fixed colours; each colour below is a placeholder that `_themed` replaces by a CSS variable of
report/page.css (a heat map's fill becomes a mix of two of them). Text stays text: it can be selected and read aloud.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from incremental_llm.report.data import Cell, Night, ReportData, SuiteRow
from incremental_llm.report.summary import NOT_MEASURED

_INK, _MUTED, _LINE, _OURS, _BASELINE, _ON_HIGH = (f"#0a0b0{digit}" for digit in range(1, 7))
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    _OURS: "var(--ours)",
    _BASELINE: "var(--baseline)",
    _ON_HIGH: "var(--on-heat)",
}
_HEAT = re.compile(r"#0(c|d)00([0-9a-f]{2})")
_DARK_FROM = 0.68  # from this score on, text in the page's ink has less contrast on the cell than its opposite
_POINTS_TO_PIXELS = 96 / 72


def matrix_map(data: ReportData) -> str:
    """Heat map: suites down, versions across, score and interval in each cell.

    Paler with a dashed edge before a suite's own night, grey where its facts were superseded, empty if not measured.
    """
    rows, columns = len(data.suites), len(data.versions)
    longest = max((len(suite.name) for suite in data.suites), default=0)
    label_inches = min(3.0, 0.5 + 0.085 * max(longest, 11))

    def draw(figure: Any) -> None:
        width = label_inches + 1.5 * columns
        axes = figure.add_axes((label_inches / width, 0.0, 1 - label_inches / width, rows / (rows + 0.6)))
        axes.set(xlim=(0, columns), ylim=(rows, 0))
        axes.axis("off")
        for column, version in enumerate(data.versions):
            axes.text(column + 0.5, -0.18, version, ha="center", va="bottom", color=_INK, weight="bold", size=9.5)
        for row, suite in enumerate(data.suites):
            _suite_label(axes, row, suite)
            for column, version in enumerate(data.versions):
                _cell(axes, row, column, suite, suite.cells.get(version))

    size = (label_inches + 1.5 * max(columns, 1), 0.5 * (rows + 0.6))
    return _svg(size, draw, "Scores of every suite at every version, with intervals, as in the table that follows.")


def score_curves(data: ReportData) -> str:
    """One small panel a suite: score and interval over versions, and the baseline's where there is one."""
    versions = list(dict.fromkeys((*data.versions, *data.baseline_versions)))
    baseline = {suite.name: suite for suite in data.baseline_suites}
    columns = min(4, max(len(data.suites), 1))
    rows = math.ceil(len(data.suites) / columns) or 1

    def draw(figure: Any) -> None:
        panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
        for axes, suite in zip(panels, data.suites, strict=False):
            _style(axes, suite.name + (" †" if suite.role == "superseded" else ""))
            axes.set(ylim=(-0.03, 1.03), xlim=(-0.4, len(versions) - 0.6), yticks=(0, 0.5, 1))
            axes.set_xticks(range(len(versions)), versions)
            if 0 < suite.introduced < len(data.versions):
                axes.axvline(suite.introduced - 0.5, color=_MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
            if suite.name in baseline:
                _curve(axes, versions, baseline[suite.name], _BASELINE, "s", 0.09)
            _curve(axes, versions, suite, _OURS, "o", -0.09 if suite.name in baseline else 0.0)
        for axes in panels[len(data.suites) :]:
            axes.axis("off")
        figure.subplots_adjust(
            left=0.04, right=0.995, top=1 - 0.3 / (1.75 * rows), bottom=0.3 / (1.75 * rows), hspace=0.5, wspace=0.12
        )

    described = "Score of each suite over the versions, with intervals."
    if baseline:
        described += " Circles: this run; squares: plain sequential fine-tuning."
    return _svg((2.75 * columns, 1.75 * rows), draw, described)


def loss_curves(night: Night, nights: Sequence[Night]) -> str:
    """One row for one night: the loss of each objective and the anchor's KL over steps.

    Axes are shared with the other `nights`, so that rows can be compared; a faint line is the value of each step, a
    strong one its running mean.
    """
    objectives = list(dict.fromkeys(name for each in nights for name in each.losses))
    series = [
        (f"{name} loss", night.losses.get(name, []), [each.losses.get(name, []) for each in nights])
        for name in objectives
    ]
    if any(each.anchor_kl for each in nights):
        series.append(("anchor KL", night.anchor_kl, [each.anchor_kl for each in nights]))

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, max(len(series), 1), squeeze=False).flat
        for axes, (title, values, all_values) in zip(panels, series, strict=False):
            _style(axes, title)
            _limits(axes, all_values)
            if not values:
                axes.text(0.5, 0.5, "not run", color=_MUTED, ha="center", va="center", transform=axes.transAxes)
                continue
            steps = range(1, len(values) + 1)
            smooth = _running_mean(values, max(1, len(values) // 12))
            axes.plot(steps, values, color=_OURS, linewidth=0.8, alpha=0.35)
            axes.plot(steps, smooth, color=_OURS, linewidth=1.6, marker="o" if len(values) == 1 else None)
        figure.subplots_adjust(left=0.04, right=0.99, top=0.84, bottom=0.15, wspace=0.22)

    return _svg((11.0, 1.7), draw, f"Losses of {night.label} over its training steps.")


def _suite_label(axes: Any, row: int, suite: SuiteRow) -> None:
    note = f"taught on night {suite.introduced}" if suite.introduced else "there from the start"
    if suite.role == "superseded":
        note += ", superseded"
    axes.text(-0.1, row + 0.4, suite.name, ha="right", va="center", color=_INK, size=9.5)
    axes.text(-0.1, row + 0.72, note, ha="right", va="center", color=_MUTED, size=7.5)


def _cell(axes: Any, row: int, column: int, suite: SuiteRow, cell: Cell | None) -> None:
    from matplotlib.patches import Rectangle

    early = column < suite.introduced
    corner, size = (column + 0.03, row + 0.05), (0.94, 0.90)
    if cell is None:
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=_LINE, linewidth=1, linestyle=(0, (3, 2))))
        axes.text(column + 0.5, row + 0.52, NOT_MEASURED, ha="center", va="center", color=_MUTED, size=8)
        return
    fill = f"#0{'d' if suite.role == 'superseded' else 'c'}00{round(100 * cell.score):02x}"
    edge = {"edgecolor": _MUTED, "linestyle": (0, (3, 2)), "linewidth": 0.7} if early else {"edgecolor": "none"}
    axes.add_patch(Rectangle(corner, *size, facecolor=(*_rgb(fill), 0.45) if early else fill, **edge))
    ink = _ON_HIGH if cell.score >= _DARK_FROM and not early else _INK
    placed: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
    axes.text(column + 0.5, row + 0.39, f"{cell.score:.2f}", size=11, weight="bold", **placed)
    axes.text(column + 0.5, row + 0.71, f"[{cell.low:.2f}, {cell.high:.2f}]", size=7.5, **placed)


def _curve(axes: Any, versions: list[str], suite: SuiteRow, color: str, marker: str, shift: float) -> None:
    places = [place + shift for place in range(len(versions))]
    scores = [suite.cells[name].score if name in suite.cells else math.nan for name in versions]
    axes.plot(places, scores, color=color, linewidth=1.5, marker=marker, markersize=4.5)  # NaN leaves a gap
    for place, name in zip(places, versions, strict=True):
        if name in suite.cells:
            axes.vlines(place, suite.cells[name].low, suite.cells[name].high, color=color, linewidth=1.2)


def _style(axes: Any, title: str) -> None:
    axes.set_title(title, size=9, color=_INK, loc="left", pad=5)
    axes.patch.set_visible(False)
    axes.tick_params(colors=_MUTED, labelsize=7.5, length=0, pad=4)
    axes.grid(axis="y", color=_LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=_LINE)


def _limits(axes: Any, all_values: Sequence[Sequence[float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    flat = [value for values in all_values for value in values] or [0.0, 1.0]
    low, high = min(0.0, *flat), max(flat)
    room = 0.06 * (high - low or 1.0)
    axes.set_ylim(low - (room if low < 0 else 0.0), high + room)
    axes.set_xlim(0.5, max(map(len, all_values), default=1) + 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Mean over up to `reach` steps on either side."""
    windows = [values[max(0, step - reach) : step + reach + 1] for step in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _rgb(color: str) -> tuple[float, float, float]:
    return (int(color[1:3], 16) / 255, int(color[3:5], 16) / 255, int(color[5:7], 16) / 255)


def _svg(inches: tuple[float, float], draw: Callable[[Any], None], description: str) -> str:
    """Run `draw` on a new figure and return an <svg> element whose every name and text is escaped."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    stream = io.StringIO()
    no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    settings = {"svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False}
    with warnings.catch_warnings(), rc_context(settings):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser draws the text, with its own fonts
        figure = Figure(figsize=inches)
        draw(figure)
        figure.savefig(stream, format="svg", metadata=no_metadata, transparent=True)
    return _themed(stream.getvalue(), inches, description)


def _themed(svg: str, inches: tuple[float, float], description: str) -> str:
    width, height = (72 * side for side in inches)
    pixels = width * _POINTS_TO_PIXELS
    narrowest = min(pixels, max(600.0, 0.8 * pixels))
    opening = (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(description)}" '
        f'style="max-width: {pixels:.0f}px; min-width: {narrowest:.0f}px">'
    )
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)  # it would restyle the whole page
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # group names repeat from picture to picture
    body = re.sub(r"font-family: [^;\"]*(; )?", "", body)
    body = _HEAT.sub(_heat_fill, body)
    for placeholder, variable in _VARIABLES.items():
        body = body.replace(placeholder, variable)
    return opening + re.sub(r"\n\s*", "\n", body).strip()


def _heat_fill(found: re.Match[str]) -> str:
    family = "heat" if found[1] == "c" else "grey"
    return f"color-mix(in oklab, var(--{family}-high) {int(found[2], 16)}%, var(--{family}-low))"
