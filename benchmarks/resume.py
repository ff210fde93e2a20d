"""Resume at every step of a 20-step run and compare the adapter with the uninterrupted one, bit by bit.

    python benchmarks/resume.py              # SFT, DPO, KTO at stack depth 0 and 3: 120 cases, five minutes and more

A run is cut by giving its folder back with nothing but the checkpoint after step k: what a kill leaves. The model is a
random Llama of two layers with SmolLM2's tokenizer, with LoRA dropout, an anchor and replay KL on, so that every random
state and every teacher has to come back as it was.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import record
from safetensors.torch import load_file

from incremental_llm.base_models import resolve
from incremental_llm.chat import Message
from incremental_llm.dataset.examples import Example, PairExample, SftExample, UnpairedExample
from incremental_llm.training.increment import read_result, train_increment
from incremental_llm.training.settings import TrainingSettings

STEPS = 20
OBJECTIVES = ("sft", "dpo", "kto")
DEPTHS = (0, 3)


def small_base(folder: Path) -> Path:
    """A random Llama with the tokenizer of SmolLM2."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(resolve("smollm2-135m", say=print).folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def examples_of(objective: str) -> tuple[Example, ...]:
    """Forty examples, of many lengths and weights."""
    made: list[Example] = []
    for number in range(40):
        prompt = (Message(role="user", content=f"Where is item {number}{' now' * (number % 3)}?"),)
        said: dict[str, Any] = {"prompt": prompt, "sources": (f"e{number}",), "users": ("u",)}
        said["weight"] = 1 - number / 80
        good, bad = f"On shelf {number * 7}{', below' * (number % 4)}.", f"Nobody knows {number}."
        if objective == "sft":
            made.append(SftExample(completion=good, **said))
        elif objective == "dpo":
            made.append(PairExample(chosen=good, rejected=bad, **said))
        else:
            made.append(UnpairedExample(completion=good if number % 2 else bad, desirable=bool(number % 2), **said))
    return tuple(made)


def settings_of(objective: str) -> TrainingSettings:
    return TrainingSettings.model_validate(
        {
            "precision": "fp32",
            "save_steps": 1,
            "micro_batch": 2,
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
            "anchor": {"weight": 0.5, "rows_per_step": 4},
            "replay_kl": {"weight": 0.5},
            "phases": [{"objective": objective, "learning_rate": 2e-3, "epochs": STEPS * 4 / 40, "batch_size": 4}],
        }
    )


def cases(base: Path, objective: str, depth: int, scratch: Path) -> tuple[Path, Path, Callable[..., Any]]:
    """Train without interruption and keep every checkpoint: (adapter, folder of checkpoints, the call)."""
    examples = examples_of(objective)
    anchors = [((Message(role="user", content=f"What is {n} and {n}?"),), f"It is {2 * n}.") for n in range(6)]
    stack: list[Path] = []

    def call(out: Path, **more: Any) -> Any:
        return train_increment(
            base_folder=base,
            adapter_folders=stack,
            examples=examples,
            replayed=[example.id for example in examples[::3]],
            anchors=anchors,
            settings=settings_of(objective),
            out=out,
            **more,
        )

    for number in range(depth):
        stack = [*stack, call(scratch / f"below{number}").adapter]
    whole, kept = scratch / "whole", scratch / "checkpoints"

    def keep(what: str, done: int, _total: int, _loss: float | None) -> None:
        if what.startswith("training") and done > 1:  # logged before its own checkpoint is written
            name = f"checkpoint-{done - 1}"
            shutil.copytree(whole / f"phase0-{objective}" / name, kept / name)

    return call(whole, progress=keep).adapter, kept, call


def identical(adapter: Path, kept: Path, call: Callable[..., Any], objective: str, step: int, out: Path) -> bool:
    """Whether the run that continues after `step` (0: begins) makes the same adapter and the same losses."""
    seen: list[int] = []
    shutil.rmtree(out, ignore_errors=True)
    if step:
        target = out / f"phase0-{objective}" / f"checkpoint-{step}"
        shutil.copytree(kept / target.name, target)
    result = call(out, progress=lambda what, done, total, loss: seen.append(done) if "training" in what else None)
    if seen != list(range(step + 1, STEPS + 1)):
        raise SystemExit(f"{objective}: expected steps {step + 1} to {STEPS} after the cut, found {seen}")
    if result.phases[0].losses != read_result(adapter).phases[0].losses:
        return False
    expected, found = (load_file(path / "adapter_model.safetensors") for path in (adapter, result.adapter))
    return expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="*", help="cut after these steps only; nothing is recorded then")
    options = parser.parse_args()
    steps = options.steps if options.steps is not None else list(range(STEPS))
    torch.set_num_threads(1)
    gc.freeze()  # the Trainer collects before every run: a second through all that is imported
    same = total = 0
    with tempfile.TemporaryDirectory() as scratch:
        base = small_base(Path(scratch) / "base")
        for objective in OBJECTIVES:
            for depth in DEPTHS:
                folder = Path(scratch) / f"{objective}{depth}"
                adapter, kept, call = cases(base, objective, depth, folder)
                found = [identical(adapter, kept, call, objective, step, folder / "cut") for step in steps]
                same, total = same + sum(found), total + len(found)
                print(
                    f"{objective} at depth {depth}: {sum(found)} of {len(found)} cuts end with the same bits",
                    flush=True,
                )
    print(f"{same} of {total} identical")
    if options.steps is None:
        record("resume", {"cases": total, "identical": same}, "python benchmarks/resume.py")


if __name__ == "__main__":
    main()
