"""A large log on one machine: import, compile, trace; and how much memory each takes.

    python benchmarks/compile.py                        # a million events: half an hour on two cores
    python benchmarks/compile.py --events 100000        # a try; nothing is recorded
    python benchmarks/compile.py --only import,trace    # a part; what was recorded of the others stays

The log is made up (generated_log.py), with the lengths, repeats and noise of a real one. Each step is a process of its
own, so that its peak memory is its own. Beside the import stands the same import line by line through `json` and the
models, which is how it was done before: `import_vs_models` is ours over that, on the same lines, A B A B.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import tracing
from generated_log import write_log
from record import RESULTS, record

from incremental_llm.dataset import CompileSettings, compile_dataset
from incremental_llm.feedback import EventError, FeedbackStore, import_jsonl
from incremental_llm.feedback.encode import encode, encode_line
from incremental_llm.feedback.events import read_event

MILLION = 1_000_000
STEPS = ("import", "compile", "trace")
PAIRS, SAMPLE = 5, 20_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=MILLION, help="lines of the log")
    parser.add_argument("--only", default=",".join(STEPS), help="import, compile, trace")
    parser.add_argument("--folder", type=Path, help="where the log and the databases go; a temporary one by default")
    told = parser.parse_args()
    steps = told.only.split(",")
    with tempfile.TemporaryDirectory(dir=told.folder) as made:
        figures = measured(Path(made), told.events, steps)
    for name, value in figures.items():
        print(f"{name:24} {value:14,.2f}")
    if told.events == MILLION:
        kept = RESULTS / "compile.json"
        before = json.loads(kept.read_text(encoding="utf-8"))["figures"] if kept.is_file() else {}
        record("compile", before | figures, "python benchmarks/compile.py")
    return 0


def measured(folder: Path, events: int, steps: list[str]) -> dict[str, float]:
    """All figures of a log of so many lines."""
    log, figures = folder / "log.jsonl", dict[str, float]()
    say(f"writing a log of {events:,} lines")
    write_log(log, events)
    say("importing")
    seconds, peak = alone(partial(imported, log, folder))
    if "import" in steps:
        figures |= {"import_events_per_s": events / seconds, "import_peak_bytes": peak}
        figures["import_vs_models"] = against_models(log)
    if "compile" in steps:
        say("compiling")
        seconds, peak = alone(partial(compiled, folder))
        figures |= {"compile_1m_seconds": seconds, "peak_bytes_1m": peak}
    if "trace" in steps:
        say("tracing")
        figures["trace_seconds"], _ = alone(partial(traced, events))
    return figures


def imported(log: Path, folder: Path) -> float:
    with FeedbackStore(url(folder)) as store:
        start = time.perf_counter()
        import_jsonl(store, log, processes=1)
        return time.perf_counter() - start


def against_models(log: Path) -> float:
    """How many times faster lines become rows than through the models; the median of pairs."""
    with log.open("rb") as stream:
        lines = [line for line, _ in zip(stream, range(SAMPLE), strict=False)]
    ratios = []
    for _ in range(PAIRS):
        ours = seconds_for(encode_line, lines)
        ratios.append(seconds_for(lambda line: encode(read_event(line)), lines) / ours)
    return statistics.median(ratios)


def seconds_for(work: Callable[[bytes], object], lines: list[bytes]) -> float:
    start = time.process_time()
    for line in lines:
        try:
            work(line)
        except EventError:
            continue
    return time.process_time() - start


def compiled(folder: Path) -> float:
    with FeedbackStore(url(folder)) as store, tempfile.TemporaryDirectory(dir=folder) as out:
        start = time.perf_counter()
        dataset = compile_dataset(tuple(store.read()), CompileSettings())
        dataset.write(Path(out))
        seconds = time.perf_counter() - start
    print("; ".join(f"{name} {count:,}" for name, count in dataset.counts.items()))
    return seconds


def traced(events: int) -> float:
    """The slowest of all traces; tracing.py fills databases of its own."""
    seconds = tracing.measured(events)
    print("; ".join(f"{name} {taken:.3f} s" for name, taken in seconds.items()))
    return max(seconds.values())


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'feedback.db'}"


def alone(work: Callable[[], float]) -> tuple[float, float]:
    """What `work` gives in a process of its own, and that process's peak memory, in bytes."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_peak, work).result()


def _with_peak(work: Callable[[], float]) -> tuple[float, float]:
    result = work()
    return result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
