"""Keep what a benchmark measured, with all that is needed to measure it again.

    from record import record       # a benchmark is a script in this folder

    record("evaluation_speed", {"tokens_per_second": 410.0}, "python benchmarks/evaluation_speed.py")

writes results/evaluation_speed.json: {"date", "machine", "versions", "command", "figures": {name: number}}. Shares and
rates of events are fractions of 1, ratios are ours over the rival's speed (above 1 is faster), BWT is in points of 100.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from incremental_llm.artifacts import write_json

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("incremental_llm", "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")


def record(name: str, figures: Mapping[str, float], command: str, *, folder: Path = RESULTS) -> Path:
    """Write `folder`/`name`.json, replacing an earlier measurement, and return its path.

    Args:
        name: lower-case letters, digits and underscores; the file's name and the heading in RESULTS.md.
        figures: what was measured, by a name that says its unit.
        command: the shell command that measures it again, from the repository's root.

    Raises:
        ValueError: a name that is none, no command, no figures, or a figure that is not a finite number.
    """
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", name):
        raise ValueError(f"expected a name like 'evaluation_speed', found {name!r}.")
    if not command.strip():
        raise ValueError(f"{name}: expected the command that measures this again, found none.")
    if not figures:
        raise ValueError(f"{name}: expected figures, found none: a benchmark that measured nothing is not kept.")
    for figure, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(
                f"{name}: expected a finite number for {figure!r}, found {value!r}. Nothing was written: leave out "
                "what was not measured."
            )
    path = folder / f"{name}.json"
    write_json(path, {**_circumstances(), "command": command, "figures": dict(figures)})
    return path


def _circumstances() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def machine() -> str:
    """The hardware in words, without the machine's own name: processor, usable cores, memory, GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = [f"{platform.system()} {platform.machine()}", _processor(), f"{cores} CPU cores"]
    if "SC_PHYS_PAGES" in os.sysconf_names:
        parts.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB memory")
    return ", ".join(part for part in (*parts, *_gpus()) if part)


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    except OSError:
        found = None
    return " ".join(found[1].split()) if found else platform.processor()


def _gpus() -> list[str]:
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
