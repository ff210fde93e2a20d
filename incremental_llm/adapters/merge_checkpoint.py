"""Adapters folded into a checkpoint on the disk: the base of everything after.

The one design fact: weights are read, changed and written a file at a time, so that a model larger than the memory can
be folded. What comes out is the base with every delta added in fp32 and rounded once, bit for bit what `merge_into`
makes of the loaded model, and loads like it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from incremental_llm.adapters.lora import LoraAdapter
from incremental_llm.adapters.merge import merged, require_alike
from incremental_llm.artifacts import MANIFEST, staged_folder
from incremental_llm.errors import InputError

_PICKLES = (".bin", ".pt", ".pth")


def fold_checkpoint(base_folder: Path, adapters: Sequence[LoraAdapter], out: Path) -> None:
    """Write the model of `base_folder` with the deltas of `adapters` in its weights to `out`; the rest is copied.

    Raises:
        InputError: `out` exists, no adapters, a base without safetensors or with quantised weights, or a module that is
            not among its weights (another base, or a tied one, which has no weight of its own).
        IntegrityError: a value that is not finite.
    """
    require_alike(adapters)
    if out.exists():
        raise InputError(f"{out}: expected a folder that does not exist, found one. Nothing is overwritten.")
    weights = sorted(base_folder.glob("*.safetensors"))
    places = {key: file for file in weights for key in _keys(file)}
    _check(base_folder, places.keys(), {name for adapter in adapters for name in adapter.modules})
    with staged_folder(out) as folder:
        for file in sorted(base_folder.iterdir()):
            if file.is_file() and file not in weights and file.name != MANIFEST and file.suffix not in _PICKLES:
                shutil.copyfile(file, folder / file.name)
        for file in weights:
            tensors = load_file(file)
            here = [_within(adapter, tensors.keys()) for adapter in adapters]
            if some := [adapter for adapter in here if adapter.modules]:
                tensors = merged(tensors, some)
            save_file(tensors, folder / file.name, metadata={"format": "pt"})


def _keys(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _check(base_folder: Path, keys: Collection[str], modules: set[str]) -> None:
    if not keys:
        raise InputError(f"{base_folder}: expected a model in safetensors, found none. Save it so first.")
    config = base_folder / "config.json"
    if config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("quantization_config"):
        raise InputError(
            f"{base_folder}: expected unquantised weights, found a quantization_config. Folding into 4 bits loses "
            "nearly all of a delta: dequantise the base first."
        )
    if lacking := sorted(name for name in modules if f"{name}.weight" not in keys):
        raise InputError(
            f"{base_folder}: expected a weight of its own for {lacking[0]}, found none among {len(keys)} tensors. It "
            "is tied to another one, or the adapter is of another base."
        )


def _within(adapter: LoraAdapter, keys: Collection[str]) -> LoraAdapter:
    return replace(adapter, modules={n: pair for n, pair in adapter.modules.items() if f"{n}.weight" in keys})
