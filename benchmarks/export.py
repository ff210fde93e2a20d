"""How far each form of export is from the stack, on SmolLM2-135M with two random adapters.

    python benchmarks/export.py [--seed 0] [--bfloat16]            # some minutes of one core for each dtype

Each adapter has rank 8 on every linear layer and adds 1 % of the weight's norm. `max_logit_difference_<form>` is the
largest difference of two logits on the six probes, in float32, where an exact export differs by the order of its sums
alone. With --bfloat16 also `max_logit_difference_<form>_bfloat16`, where the stack is served in bfloat16: it is folded
there, which rounds its deltas, and an adapter on top of the base does not. `_vllm_reduced` is an adapter cut down to
half the stack's rank by SVD, as it happens above rank 512; `relative_error_vllm_reduced` is what its deltas lost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from record import record

from incremental_llm.adapters.load import DTYPES, load_base, load_stack
from incremental_llm.adapters.lora import write_adapter
from incremental_llm.adapters.stack import Stack
from incremental_llm.artifacts import folder_digest
from incremental_llm.base_models import ResolvedBase, resolve
from incremental_llm.handoff import ExportReport, Form, Source, export

RANK, STRENGTH = 8, 0.01
FORMS: tuple[Form, ...] = ("peft", "vllm", "merged", "gguf-lora", "gguf")


def adapters(base: ResolvedBase, seed: int, folder: Path) -> tuple[Path, ...]:
    """Two random adapters on every linear layer but the head; each delta has 1 % of its weight's norm."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: layer.weight.float()
        for name, layer in load_base(base.folder, dtype=torch.float32).named_modules()
        if isinstance(layer, torch.nn.Linear) and name != "lm_head"
    }
    folders = tuple(folder / f"a{number}" for number in range(2))
    for path in folders:
        modules = {}
        for name, weight_OI in weights.items():
            A_RI = torch.randn(RANK, weight_OI.shape[1], generator=generator)
            B_OR = torch.randn(weight_OI.shape[0], RANK, generator=generator)
            modules[name] = (A_RI, B_OR * STRENGTH * weight_OI.norm() / (B_OR @ A_RI).norm())
        write_adapter(path, modules, base.ref.name)
    return folders


def exports(base: ResolvedBase, folders: tuple[Path, ...], dtype: str, out: Path) -> Iterator[tuple[str, ExportReport]]:
    """Every form of the stack served in `dtype`, by its name in the figures."""
    stack = Stack(base=base.ref, adapters=tuple(map(folder_digest, folders)), dtype=dtype)
    reference = load_stack(base.folder, folders, dtype=DTYPES[dtype])
    source = Source(stack, folders, base.folder, reference, say=lambda line: print(f"  {line}", flush=True))
    for form in FORMS:
        yield form.replace("-", "_"), export(source, out / form, form)
    with mock.patch("incremental_llm.handoff.adapter.VLLM_RANKS", (RANK,)):
        yield "vllm_reduced", export(source, out / "reduced", "vllm", max_error=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="measure a stack that is served in bfloat16 as well")
    options = parser.parse_args()
    dtypes = {"float32": "", **({"bfloat16": "_bfloat16"} if options.bfloat16 else {})}
    base = resolve("smollm2-135m", say=print)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = adapters(base, options.seed, Path(scratch))
        for dtype, suffix in dtypes.items():
            for name, report in exports(base, folders, dtype, Path(scratch) / dtype):
                print(dtype, name, report.check, flush=True)
                figures[f"max_logit_difference_{name}{suffix}"] = report.check.max_abs_logit
                figures[f"mean_kl_{name}{suffix}"] = report.check.mean_kl
                if report.error:
                    figures["relative_error_vllm_reduced"] = report.error
    print(record("export", figures, " ".join(["python benchmarks/export.py", *sys.argv[1:]])))


if __name__ == "__main__":
    main()
