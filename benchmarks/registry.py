"""How fast the registry is, and what loading through it costs over loading the same folders with PEFT.

    python benchmarks/registry.py [--versions 10000] [--base smollm2-135m]

writes results/registry.json:

    promote_ms, promote_ms_p95      a move of production, fsync included, in a registry of `versions` versions
    commit_ms                       a whole commit of an increment, its two objects put before
    list_ms_10k                     every version with its refs and tags, as `illm registry list` reads them
    load_overhead                   load of `production` through the registry, every file read and compared with its
                                    digest, over loading base and adapters with PEFT, minus 1: medians of interleaved
                                    pairs
    promote_cpu_ms, list_cpu_ms     the same in processor time, which other work on the machine does not change
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import record
from sqlalchemy import insert

from incremental_llm.adapters.stack import BaseRef, Stack, adapter_paths
from incremental_llm.artifacts import staged_folder
from incremental_llm.base_models import resolve
from incremental_llm.registry import Registry, Snapshot, schema
from incremental_llm.registry.summaries import SnapshotSummary

DEPTH = 16
"""Adapters on the deepest stacks; each version adds one until then, and begins again."""


def seconds(work: Callable[[], Any]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def processor(work: Callable[[], Any]) -> float:
    """How much processor time one call takes, in seconds."""
    started = time.process_time()
    work()
    return time.process_time() - started


def grown(root: Path, base: Stack, versions: int) -> Registry:
    """A registry with that many versions; rows only, but for what is promoted."""
    registry = Registry.create(root, base)
    last, rows, summaries = registry.head(), [], []
    for number in range(1, versions - 1):
        adapters = tuple(f"{number - number % DEPTH + place:064x}" for place in range(number % DEPTH + 1))
        digests = dict.fromkeys(("dataset", "report", "decision", "replay", "recipe", "attempt"), f"{number:064x}")
        stack = base.model_copy(update={"adapters": adapters})
        fields = {"kind": "increment", "parent": last.version, "time": last.time, "stack": stack, "cursor": 28 * number}
        last = Snapshot.after(last, **fields, **digests, note="14 examples from 28 events")
        rows.append({"version": last.version, "hash": last.hash, "attempt": last.attempt, "body": last.body})
        summary = SnapshotSummary.of(last)
        values = {name: getattr(summary, name) for name in summary.__slots__}
        summaries.append({**values, "time": last.time.isoformat()})
    with registry._engine.begin() as connection:
        connection.execute(insert(schema.snapshots), rows)
        connection.execute(insert(schema.summaries), summaries)
    return registry


def commit(registry: Registry, work: Path, number: int) -> Snapshot:
    """One more increment with a small adapter of its own, from the base."""
    folder = work / f"adapter{number}"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(bytes([number % 256]) * 4096 + bytes(str(number), "ascii"))
    head = registry.head()
    stack = head.stack.plus(registry.put_object(folder))
    decision = registry.put_json({"passed": True, "stack_digest": stack.digest})
    return registry.commit_increment(parent=head.version, stack=stack, cursor=head.cursor + 1, decision=decision)


def speed(work: Path, versions: int, rounds: int) -> dict[str, float]:
    """Promote, commit and list in a registry of `versions` versions, in milliseconds."""
    base = Stack(base=BaseRef(name="none", digest="ba" * 32, template_digest="7e" * 32))
    with grown(work / "registry", base, versions) as registry:
        first = commit(registry, work, 0)
        promotes = [
            1000 * seconds(lambda to=to: registry.promote(to)) for _ in range(rounds) for to in (0, first.version)
        ]
        commits = [1000 * seconds(lambda number=number: commit(registry, work, number)) for number in range(1, rounds)]

        def read() -> None:
            registry.summaries()
            registry.refs()
            registry.tags()

        reads = [1000 * seconds(read) for _ in range(rounds)]
        return {
            "versions": len(registry.summaries()),
            "promote_ms": statistics.median(promotes),
            "promote_ms_p95": statistics.quantiles(promotes, n=20)[-1],
            "commit_ms": statistics.median(commits),
            "list_ms_10k": statistics.median(reads),
            "promote_cpu_ms": statistics.median(1000 * processor(lambda: registry.promote(0)) for _ in range(rounds)),
            "list_cpu_ms": statistics.median(1000 * processor(read) for _ in range(rounds)),
        }


def load_overhead(work: Path, base: str, adapters: int, pairs: int) -> dict[str, float]:
    """`production` through the registry over the same folders with PEFT; both end with PEFT's model of all adapters."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    found = resolve(base)
    stack = Stack(base=found.ref)
    with Registry.create(work / "loading", stack) as registry:
        for number in range(adapters):
            torch.manual_seed(number)
            model = AutoModelForCausalLM.from_pretrained(found.folder, dtype=torch.bfloat16)
            shaped = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False))
            with staged_folder(work / f"lora{number}") as folder:
                shaped.save_pretrained(folder)
            stack = stack.plus(registry.put_object(work / f"lora{number}"))
        decision = registry.put_json({"passed": True, "stack_digest": stack.digest})
        for depth in range(1, adapters + 1):
            part = stack.model_copy(update={"adapters": stack.adapters[:depth]})
            decision = registry.put_json({"passed": True, "stack_digest": part.digest})
            registry.commit_increment(parent=depth - 1, stack=part, cursor=depth, decision=decision)
        folders = [registry.object_path(digest) for digest in stack.adapters]

        def load(paths: Callable[[], Any]) -> None:
            chosen = paths()
            model = AutoModelForCausalLM.from_pretrained(found.folder, dtype=torch.bfloat16)
            loaded = PeftModel.from_pretrained(model, chosen[0], adapter_name="a0")
            for number, path in enumerate(chosen[1:], 1):
                loaded.load_adapter(path, adapter_name=f"a{number}")
            gc.collect()

        def through_registry() -> Any:
            with Registry.open(work / "loading", base=found.ref) as opened:
                return adapter_paths(opened.head().stack, opened.objects)

        load(lambda: folders)  # what both read is in the page cache from here on
        times = [
            (seconds(lambda: load(through_registry)), seconds(lambda: load(lambda: folders))) for _ in range(pairs)
        ]
        lookups = [1000 * seconds(through_registry) for _ in range(pairs)]
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "load_overhead": ours / theirs - 1,
        "load_seconds": ours,
        "load_seconds_peft": theirs,
        "load_registry_ms": statistics.median(lookups),
        "load_adapters": adapters,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = speed(Path(name), options.versions, options.rounds)
        figures |= load_overhead(Path(name), options.base, options.adapters, options.pairs)
    for figure, value in figures.items():
        print(f"{figure:20} {value:10.4g}")
    record("registry", figures, "python benchmarks/registry.py")


if __name__ == "__main__":
    main()
