"""What 32 nights cost to serve beside 4, with and without a consolidation policy.

    python benchmarks/merges.py            # about a minute of a core

A random Llama of 10 million weights (512 wide, 4 layers, fp32) and a night's adapter of rank 16 on all its linear
layers, 32 times; the policy is `consolidation: {max_rank: 64, rank: 64}`, what four nights have in sum. Every stack is
served as it is exported for vLLM: as one adapter, the concatenated ranks padded to one that vLLM takes. Seconds are of
the processor, the median of rounds in which the stacks take turns, so that a busy machine is busy for all of them.

`serve_cost_32_vs_4` is seconds a generated token after 32 nights, over those after 4. `relative_error_32` is how far
the consolidated adapter is from the sum of all nights. The nights are random, of the same size and unrelated: no sum of
them is nearly of rank 64, so this is the worst that a policy can meet, and what the gate is for; here none stands
between.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from record import record
from transformers import LlamaConfig, LlamaForCausalLM

from incremental_llm.adapters.lora import WEIGHTS_FILE, LoraAdapter, delta, read_adapter, write_adapter
from incremental_llm.adapters.merge import concatenate, padded
from incremental_llm.adapters.merge_methods import merge
from incremental_llm.adapters.stack import BaseRef, Stack, adapter_paths
from incremental_llm.config import RunConfig, parse_config
from incremental_llm.consolidate_run import consolidation_due
from incremental_llm.handoff.export import VLLM_RANKS
from incremental_llm.registry import Registry

RANK, BOUND, NIGHTS, EARLY = 16, 64, 32, 4
BATCH, PROMPT, TOKENS = 4, 16, 32
NO_POLICY = RunConfig()
POLICY = parse_config({"consolidation": {"max_rank": BOUND, "rank": BOUND}}, source="the benchmark")


@dataclass(frozen=True)
class Served:
    """A stack as one adapter in a folder."""

    folder: Path
    stack_rank: int
    consolidations: int

    @property
    def bytes(self) -> int:
        return (self.folder / WEIGHTS_FILE).stat().st_size


def base_model() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8}
    return LlamaForCausalLM(LlamaConfig(vocab_size=1000, max_position_embeddings=512, **shape)).eval()


def night(model: Any, number: int) -> LoraAdapter:
    """A random adapter on every linear layer but the head."""
    draw = torch.Generator().manual_seed(number)
    modules = {
        name: (
            torch.randn(RANK, layer.in_features, generator=draw) / layer.in_features**0.5,
            torch.randn(layer.out_features, RANK, generator=draw) * 0.01,
        )
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name != "lm_head"
    }
    return LoraAdapter({}, modules, dict.fromkeys(modules, 2.0))


def commit(registry: Registry, adapter: LoraAdapter, work: Path, replaces: int) -> None:
    """A version with this adapter in the place of the last so many, as if a gate had passed it."""
    head = registry.head()
    folder = work / f"made{head.version}"
    write_adapter(folder, adapter.modules, "tiny", scaling=adapter.scaling)
    stack = head.stack.plus(registry.put_object(folder), replaces)
    decision = registry.put_json({"passed": True, "stack_digest": stack.digest})
    registry.commit_increment(
        parent=head.version, stack=stack, replaces=replaces, cursor=head.cursor + 1, decision=decision
    )


def grown(model: Any, nights: int, config: RunConfig, work: Path) -> Served:
    """The adapter that is served after so many nights."""
    work.mkdir()
    base = Stack(base=BaseRef(name="tiny", digest="ba" * 32, template_digest="7e" * 32), dtype="float32")
    consolidations = 0
    with Registry.create(work / "registry", base) as registry:
        for number in range(nights):
            commit(registry, night(model, number), work, 0)
            if consolidation_due(registry, config):
                before = adapter_paths(registry.head().stack, registry.objects)
                one, _ = merge([read_adapter(folder) for folder in before], config.consolidation)
                commit(registry, one, work, len(before))
                consolidations += 1
        served = concatenate([read_adapter(p) for p in adapter_paths(registry.head().stack, registry.objects)])
    rank = max(served.ranks.values())
    write_adapter(work / "served", padded(served, next(r for r in VLLM_RANKS if r >= rank)).modules, "tiny")
    return Served(work / "served", rank, consolidations)


def error_of(served: Served, nights: Sequence[LoraAdapter]) -> float:
    """Relative Frobenius distance of what is served from the sum of the nights."""
    one = read_adapter(served.folder)
    lost = energy = 0.0
    for name in one.modules:
        total = torch.stack([delta(adapter, name) for adapter in nights]).sum(dim=0)
        lost += float((total - delta(one, name)).square().sum())
        energy += float(total.square().sum())
    return (lost / energy) ** 0.5


@torch.no_grad()
def costs(model: Any, stacks: dict[str, Served], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds to load each adapter and to generate a token with it."""
    ids = torch.randint(0, 1000, (BATCH, PROMPT), generator=torch.Generator().manual_seed(1))
    told = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    load: dict[str, list[float]] = {name: [] for name in stacks}
    token: dict[str, list[float]] = {name: [] for name in stacks}
    for turn in range(rounds + 1):  # the first one warms up
        for name, served in stacks.items():
            fresh = copy.deepcopy(model)
            started = time.process_time()
            loaded = PeftModel.from_pretrained(fresh, served.folder).eval()
            took = time.process_time() - started
            started = time.process_time()
            loaded.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **told)
            spent = time.process_time() - started
            if turn:
                load[name].append(took)
                token[name].append(spent / (BATCH * TOKENS))
    return {name: {"load": statistics.median(load[name]), "token": statistics.median(token[name])} for name in stacks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = base_model()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        stacks = {
            "nights_4": grown(model, EARLY, POLICY, work / "4"),
            "nights_32": grown(model, NIGHTS, POLICY, work / "32"),
            "nights_32_without_policy": grown(model, NIGHTS, NO_POLICY, work / "none"),
        }
        found = costs(model, stacks, options.rounds)
        error = error_of(stacks["nights_32"], [night(model, number) for number in range(NIGHTS)])
        figures: dict[str, float] = {}
        for name, served in stacks.items():
            figures |= {
                f"{name}_rank": served.stack_rank,
                f"{name}_bytes": served.bytes,
                f"{name}_load_seconds": found[name]["load"],
                f"{name}_tokens_per_second": 1 / found[name]["token"],
            }
        early, late, without = (stacks[name] for name in ("nights_4", "nights_32", "nights_32_without_policy"))
        figures |= {
            "serve_cost_32_vs_4": found["nights_32"]["token"] / found["nights_4"]["token"],
            "serve_cost_32_vs_4_without_policy": found["nights_32_without_policy"]["token"]
            / found["nights_4"]["token"],
            "load_32_vs_4": found["nights_32"]["load"] / found["nights_4"]["load"],
            "rank_32_vs_4": late.stack_rank / early.stack_rank,
            "bytes_32_vs_4": late.bytes / early.bytes,
            "bytes_32_vs_4_without_policy": without.bytes / early.bytes,
            "consolidations": late.consolidations,
            "relative_error_32": error,
        }
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    record("merges", figures, f"python benchmarks/merges.py --rounds {options.rounds}")


if __name__ == "__main__":
    main()
