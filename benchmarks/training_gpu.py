"""Training speed on one GPU beside TRL on the same token ids: Llama shapes with random weights, bf16.

    python benchmarks/training_gpu.py                   # every row, about 20 minutes on an H100
    python benchmarks/training_gpu.py --only sft_1b     # one row; nothing is recorded
    python benchmarks/training_gpu.py --tiny            # a rehearsal of the script in a minute, on any machine

Chats have about 284 tokens, as many labelled as not; tokens a second count useful ones only. Sides take turns, A B A B,
each with a trainer of its own on the same weights; a ratio is the median over the turns, with its range. The ceiling is
a measured product of matrices, and a step is counted at 4 N FLOPs a token (no weight gradients in the frozen base).
Rivals are TRL as shipped, and TRL with the best of the options listed in `TUNED`, each tried first. All sides have the
same rows in every optimizer step, by length within a window as ours are, but where TRL packs.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from record import record
from training.gpu import Measured, Side, ours, synchronize, trl
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from incremental_llm.training.batching import Row, TokenExample

SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
TUNED: dict[str, dict[str, Any]] = {
    "no checkpointing": {},
    "packing, torch varlen attention": {"packing": True, "max_length": 8192, "per_device_train_batch_size": 2},
}
PAIRS = {"no checkpointing, stored reference": {"precompute_ref_log_probs": True}, "no checkpointing": {}}


ROWS = {
    "sft_1b": Measured("sft", "1b"),
    "dpo_1b": Measured("dpo", "1b", batch_size=16),
    "sft_8b": Measured("sft", "8b", batch_size=16),
    "qlora_8b": Measured("sft", "8b", quantized=True, batch_size=16),
}


def model_of(row: Measured, device: torch.device) -> Any:
    """Random weights in bf16, or in 4 bits; frozen."""
    vocabulary = 512 if row.shape == "tiny" else 128_256
    config = LlamaConfig(
        **SHAPES[row.shape], num_key_value_heads=2 if row.shape == "tiny" else 8, vocab_size=vocabulary,
        max_position_embeddings=16384, tie_word_embeddings=row.shape != "8b",
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    if row.quantized:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            del model
            told = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
            )
            model = LlamaForCausalLM.from_pretrained(folder, quantization_config=told, dtype=torch.bfloat16)
    model.requires_grad_(False)
    return model.eval()


def examples_of(row: Measured, vocabulary: int, count: int) -> list[TokenExample]:
    """Random token ids: chats of about 284 tokens, or pairs of exactly `lengths`."""
    rng = random.Random(0)

    def some(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocabulary) for _ in range(length))

    made = []
    for _ in range(count):
        if row.objective == "dpo":
            prompt = some(row.lengths[0])
            rows = (Row(prompt, some(row.lengths[1])), Row(prompt, some(row.lengths[1])))
        else:
            length = min(max(int(rng.lognormvariate(5.45, 0.62)), 16), 2000)
            rows = (Row(some(length // 2), some(length - length // 2)),)
        made.append(TokenExample(rows, 1.0, id=str(len(made))))
    return made


def ceiling(device: torch.device, size: int) -> float:
    """FLOP/s of a bf16 product of matrices of this size, the best of ten."""
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(10):
        synchronize()
        at = time.perf_counter()
        one @ other
        synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - at))
    return best


def turns(row: Measured, model: Any, sides: dict[str, Callable[[Side], None]], count: int) -> dict[str, list[Side]]:
    found: dict[str, list[Side]] = {name: [] for name in sides}
    for turn in range(count):
        for name, run in sides.items():
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            side = Side()
            run(side)
            if torch.cuda.is_available():
                side.peak_gib = torch.cuda.max_memory_allocated() / 2**30
            found[name].append(side)
            print(f"  turn {turn + 1}, {name}: {side.rate:.0f} tokens/s, {side.peak_gib:.1f} GiB", flush=True)
    return found


def measured(name: str, row: Measured, pairs: int, steps: int, warmup: int, device: torch.device) -> dict[str, float]:
    """The figures of one row."""
    print(f"{name}: random weights of the {row.shape} shape", flush=True)
    model = model_of(row, device)
    examples = examples_of(row, model.config.vocab_size, 64 if row.shape == "tiny" else 1024)

    def rival(options: dict[str, Any], *, shipped: bool = False) -> Callable[[Side], None]:
        return lambda side: trl(row, model, examples, steps, warmup, side, dict(options), shipped=shipped)

    tried = {}
    for option, told in (TUNED if row.objective == "sft" else PAIRS).items():
        try:
            ((side,),) = turns(row, model, {option: rival(told)}, 1).values()
            tried[option] = side.rate
        except torch.OutOfMemoryError:
            print(f"  {option}: out of memory", flush=True)
    best = max(tried, key=lambda option: tried[option])
    sides: dict[str, Callable[[Side], None]] = {
        "ours": lambda side: ours(row, model, examples, steps, warmup, side),
        "tuned": rival((TUNED if row.objective == "sft" else PAIRS)[best]),
    }
    if name == "sft_1b":
        sides["shipped"] = rival({}, shipped=True)
    found = turns(row, model, sides, pairs)
    figures: dict[str, float] = {}
    for other in list(sides)[1:]:
        ratios = [a.rate / b.rate for a, b in zip(found["ours"], found[other], strict=True)]
        figures |= {
            f"{name}_vs_{other}": statistics.median(ratios),
            f"{name}_vs_{other}_low": min(ratios),
            f"{name}_vs_{other}_high": max(ratios),
        }
    rate = statistics.median(side.rate for side in found["ours"])
    figures[f"{name}_tokens_per_second"] = rate
    figures[f"peak_gib_{name.split('_', 1)[1] if name == 'sft_1b' else name}"] = max(s.peak_gib for s in found["ours"])
    if name == "sft_1b":
        weights = sum(p.numel() for p in model.parameters())
        figures["sft_1b_of_ceiling"] = rate * 4 * weights / ceiling(device, 8192 if device.type == "cuda" else 512)
    return figures


def _rows(only: str | None, tiny: bool) -> Iterator[tuple[str, Measured]]:
    for name, row in ROWS.items():
        if only in (None, name):
            yield name, Measured(row.objective, "tiny", row.quantized, (30, 10), 4) if tiny else row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(ROWS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: two layers, two steps; nothing is recorded")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        raise SystemExit("expected a CUDA device, found none. `--tiny` rehearses the script without one.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pairs, steps, warmup = (1, 2, 1) if options.tiny else (options.pairs, options.steps, 3)
    figures: dict[str, float] = {}
    for name, row in _rows(options.only, options.tiny):
        figures |= measured(name, row, pairs, steps, warmup, device)
    for name, value in figures.items():
        print(f"{name:32} {value:.4g}")
    if options.only is None and not options.tiny:
        record("training_gpu", figures, "python benchmarks/training_gpu.py")


if __name__ == "__main__":
    main()
