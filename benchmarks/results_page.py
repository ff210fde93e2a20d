"""Make RESULTS.md from results/*.json and NOTES.md.

python benchmarks/results_page.py     # or: make results
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KEYS = {"date": str, "machine": str, "versions": dict, "command": str, "figures": dict}
HEAD = """# Results

Made by `make results` from NOTES.md and from results/*.json, which the benchmarks write: change those, not this page.
Shares and rates are fractions of 1, ratios are ours over the rival's speed (above 1 is faster), BWT is in points of
100.
"""
NOTHING = "\nNothing has been measured yet.\n"


def page(folder: Path = HERE) -> str:
    """The page's text; NOTES.md goes in as it is.

    Raises:
        ValueError: a results file that is not one, named with what is wrong.
        FileNotFoundError: no NOTES.md.
    """
    paths = sorted((folder / "results").glob("*.json"))
    sections = [_section(path.stem, _read(path)) for path in paths]
    notes = (folder / "NOTES.md").read_text(encoding="utf-8")
    return HEAD + ("".join(sections) or NOTHING) + "\n" + notes


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found otherwise ({error}). Run its benchmark again.") from error
    wrong = [key for key, kind in KEYS.items() if not isinstance(found, dict) or not isinstance(found.get(key), kind)]
    if wrong:
        raise ValueError(
            f"{path}: expected {', '.join(KEYS)}, found no good {', '.join(wrong)}. Run its benchmark again."
        )
    for figure, value in found["figures"].items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{path}: expected a finite number for {figure!r}, found {value!r}.")
    return dict(found)


def _section(name: str, found: dict[str, Any]) -> str:
    rows = "".join(f"| {_cell(figure)} | {_number(value)} |\n" for figure, value in found["figures"].items())
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    return (
        f"\n## {name}\n\n| figure | value |\n|---|---:|\n{rows}\n"
        f"{found['date']}, {found['machine']}; {versions}.\n\n    {found['command']}\n"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _number(value: float) -> str:
    """Integers whole; anything else with four significant digits."""
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return str(int(value))
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"


if __name__ == "__main__":
    (HERE / "RESULTS.md").write_text(page(), encoding="utf-8")
    print(f"wrote {HERE / 'RESULTS.md'}")
