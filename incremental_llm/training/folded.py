"""The folded model on the disk, for processes that share one model: none of them can fold it in its own memory.

    folder = folded_model(base_folder, adapter_folders, "bfloat16", cache)
    model = load_base(folder, dtype=torch.bfloat16)     # bit for bit load_stack(base_folder, adapter_folders)

It is an ordinary model folder, named after what decides it, written once a stack and shared by all runs on the machine.
Weights are read, folded and written piece by piece: it takes the memory of one piece, not of the model.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from incremental_llm.adapters.load import DTYPES
from incremental_llm.adapters.lora import LoraAdapter, read_adapter
from incremental_llm.adapters.merge import merged
from incremental_llm.artifacts import MANIFEST, is_complete, staged_folder, verify_folder, write_json
from incremental_llm.base_models import content_digests
from incremental_llm.chat import json_digest
from incremental_llm.errors import InputError, IntegrityError

log = logging.getLogger(__name__)

KEPT = 2  # folded models: last night's, to go back to, and tonight's
LOADING = 3600  # seconds: a job that was just given a folder still reads it, however many others come
PIECE = 1 << 30  # bytes of weights in a file, unless a single weight is larger

_INDEX = "model.safetensors.index.json"
_BESIDE = {".json", ".jinja", ".txt", ".model"}  # config, generation config, tokenizer, template


@dataclass(frozen=True)
class _Weight:
    """A tensor of the base: in which file it is, and how many bytes it will take."""

    name: str
    file: Path
    size: int


def folded_model(
    base_folder: Path,
    adapter_folders: Sequence[Path],
    dtype: str,
    cache: Path,
    *,
    kept: int = KEPT,
    loading: float = LOADING,
    piece: int = PIECE,
) -> Path:
    """A folder below `cache` with the base and the deltas of `adapter_folders` (oldest first) in `dtype`.

    The first process writes it, or verifies what is there; the others, and other jobs, wait. The `kept` folded models
    that were used last stay on the disk, and so does what was asked for in the last `loading` seconds.

    Args:
        dtype: "bfloat16", "float32" or "float16"; what no adapter touches stays as the base has it.
        piece: bytes of weights in a file.

    Raises:
        InputError: a quantised base, an adapter of another base, or one on a weight that is tied to another.
        IntegrityError: a damaged adapter, or a folded weight that is not finite.
    """
    made_of = {
        "base": content_digests(base_folder),
        "adapters": [verify_folder(folder) for folder in adapter_folders],
        "dtype": dtype,
    }
    target = cache / json_digest(made_of)
    if PartialState().is_main_process:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / "folded.lock"):  # other jobs on this machine
            if not _is_whole(target):
                _remove(cache.glob(".*.tmp"))  # of a run that was killed: whoever writes holds the lock
                with staged_folder(target) as folder:
                    _write(folder, base_folder, [read_adapter(path) for path in adapter_folders], dtype, piece)
                    write_json(folder / "folded.json", made_of)
            os.utime(target)
            _remove(path for path in _by_last_use(cache)[kept:] if time.time() - path.stat().st_mtime >= loading)
    PartialState().wait_for_everyone()
    return target


def _is_whole(target: Path) -> bool:
    """Whether `target` is there and what was written; a damaged one is removed, since it can be made again."""
    if not is_complete(target):
        return False
    try:
        verify_folder(target)
    except IntegrityError as error:
        log.warning("%s: folding it anew", error)
        _remove([target])
        return False
    return True


def _by_last_use(cache: Path) -> list[Path]:
    return sorted((p for p in cache.iterdir() if is_complete(p)), key=lambda p: p.stat().st_mtime_ns, reverse=True)


def _remove(folders: Iterable[Path]) -> None:
    """Manifests first: what is cut short in the middle is no folder any more. Whoever has the files open keeps them."""
    for folder in folders:
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def _write(folder: Path, base_folder: Path, adapters: Sequence[LoraAdapter], dtype: str, piece: int) -> None:
    config = json.loads((base_folder / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise InputError(
            f"{base_folder}: expected an unquantised base to fold into, found a quantization_config. Folding into "
            "4-bit weights loses nearly all of a delta: start without sharding, which leaves the stack beside the base."
        )
    deltas = _deltas(adapters)
    pieces = _pieces(base_folder, deltas, dtype, piece)
    _check_targets(base_folder, deltas, {weight.name for weights in pieces for weight in weights})
    places: dict[str, str] = {}
    for number, weights in enumerate(pieces, 1):
        name = f"model-{number:05}-of-{len(pieces):05}.safetensors" if len(pieces) > 1 else "model.safetensors"
        save_file(_folded(weights, deltas, DTYPES[dtype]), folder / name, metadata={"format": "pt"})
        places |= {weight.name: name for weight in weights}
    if len(pieces) > 1:
        total = sum(weight.size for weights in pieces for weight in weights)
        write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    for path in sorted(base_folder.iterdir()):
        if path.suffix in _BESIDE and path.name not in {_INDEX, MANIFEST, "config.json"}:
            shutil.copyfile(path, folder / path.name)
    config.pop("torch_dtype", None)
    write_json(folder / "config.json", config | {"dtype": dtype})


def _deltas(adapters: Sequence[LoraAdapter]) -> dict[str, list[LoraAdapter]]:
    """By the name of each weight that is adapted: the adapters that do, oldest first, with that module alone."""
    found: dict[str, list[LoraAdapter]] = {}
    for adapter in adapters:
        for name, factors in adapter.modules.items():
            only = LoraAdapter(adapter.config, {name: factors}, {name: adapter.scaling[name]})
            found.setdefault(f"{name}.weight", []).append(only)
    return found


def _pieces(base_folder: Path, deltas: Mapping[str, Any], dtype: str, piece: int) -> list[list[_Weight]]:
    """The base's weights in the order of its files, cut into files of at most `piece` bytes."""
    pieces: list[list[_Weight]] = [[]]
    filled = 0
    for file in _weight_files(base_folder):
        for name, told in _header(file).items():
            start, end = told["data_offsets"]
            size = math.prod(told["shape"]) * DTYPES[dtype].itemsize if name in deltas else end - start
            if pieces[-1] and filled + size > piece:
                pieces.append([])
                filled = 0
            pieces[-1].append(_Weight(name, file, size))
            filled += size
    return pieces


def _weight_files(base_folder: Path) -> list[Path]:
    """The files that the base is loaded from; others may lie beside them, with the same weights in another layout."""
    index = base_folder / _INDEX
    if (base_folder / "model.safetensors").is_file() or not index.is_file():
        return [base_folder / "model.safetensors"]
    return [base_folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def _header(file: Path) -> dict[str, Any]:
    """Shape and place of every tensor of a safetensors file: its first 8 bytes say how long the JSON behind them is."""
    with file.open("rb") as stream:
        header: dict[str, Any] = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    return header


def _check_targets(base_folder: Path, deltas: Mapping[str, Any], written: Collection[str]) -> None:
    """Every adapted weight is one of the model's, one of the files', and tied to no other.

    Raises:
        InputError: it is not.
    """
    with torch.device("meta"):  # names and ties, without a weight
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base_folder))
    weights = dict(model.named_parameters(remove_duplicate=False))
    for name in deltas:
        module = name.removesuffix(".weight")
        if name not in weights:
            raise InputError(f"{module}: expected this module in the base, found none. The adapter is of another base.")
        twin = next((other for other, weight in weights.items() if other != name and weight is weights[name]), None)
        if twin is not None:
            raise InputError(
                f"{module}: expected a weight of its own, found one that is tied to {twin}, which folding would change "
                "as well. Leave tied modules out of lora.targets."
            )
        if name not in written:
            raise InputError(
                f"{base_folder.name}: expected {name} in its files, found other names: they are of an older or a fused "
                "layout. Load the base with transformers, save_pretrained it to another folder, and give that one."
            )


def _folded(
    weights: Sequence[_Weight], deltas: Mapping[str, Sequence[LoraAdapter]], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The tensors of one piece: adapted ones rounded to `dtype`, folded in fp32 and rounded again, as in memory."""
    tensors: dict[str, torch.Tensor] = {}
    with contextlib.ExitStack() as stack:
        files = {path: stack.enter_context(safe_open(path, framework="pt")) for path in {w.file for w in weights}}
        for weight in weights:
            tensor = files[weight.file].get_tensor(weight.name)
            if weight.name in deltas:
                tensor = merged({weight.name: tensor.to(dtype)}, deltas[weight.name])[weight.name]
            tensors[weight.name] = tensor.contiguous()
    return tensors
