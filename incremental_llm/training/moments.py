"""The optimizer's moments by the name of their parameter: what an adapter that goes on takes along.

The optimizer numbers its parameters; a name says which is which on another night, in another process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from incremental_llm.errors import IntegrityError

Moments = Mapping[str, torch.Tensor]
"""Tensors by `<parameter>/<name of the state>`, such as `.../exp_avg`."""


def moments_file(objective: str) -> str:
    """The file beside an adapter that holds the moments of one objective's optimizer."""
    return f"optimizer-{objective}.safetensors"


def read_moments(folder: Path, objective: str) -> Moments | None:
    """What `write_moments` left there; None where the objective has not been trained yet."""
    path = folder / moments_file(objective)
    return dict(load_file(path)) if path.is_file() else None


def moments_beside(folder: Path) -> dict[str, Moments]:
    """The moments of every objective that has left some there, by objective."""
    prefix, _, suffix = moments_file("*").partition("*")
    names = (path.name.removeprefix(prefix).removesuffix(suffix) for path in sorted(folder.glob(moments_file("*"))))
    return {name: found for name in names if (found := read_moments(folder, name))}


def write_moments(folder: Path, objective: str, moments: Moments) -> None:
    save_file(dict(moments), folder / moments_file(objective))


def moments_of(optimizer: Any, model: Any) -> dict[str, torch.Tensor]:
    """The state of every trained parameter, on the CPU."""
    state = optimizer.state
    return {
        f"{name}/{key}": torch.as_tensor(value).detach().cpu().clone()
        for name, parameter in model.named_parameters()
        for key, value in state.get(parameter, {}).items()
    }


def restore_moments(optimizer: Any, model: Any, moments: Moments) -> None:
    """Give every trained parameter the state that it had.

    Raises:
        IntegrityError: a trained parameter without state, or with one of another shape: it is of another adapter.
    """
    states: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in moments.items():
        name, _, part = key.rpartition("/")
        states.setdefault(name, {})[part] = value
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        found = states.get(name, {})
        if "exp_avg" not in found or found["exp_avg"].shape != parameter.shape:
            raise IntegrityError(
                f"the optimizer state of the adapter that goes on: expected one of shape {tuple(parameter.shape)} for "
                f"{name}, found {'none' if not found else tuple(found['exp_avg'].shape)}. Take growth: stack for this "
                "increment: a fresh adapter needs none."
            )
        # A fused optimizer counts its steps on the parameter's device, any other on the CPU.
        fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
        counts_on = parameter.device if fused else torch.device("cpu")
        optimizer.state[parameter] = {
            part: value.to(counts_on, copy=True)
            if part == "step"
            else value.to(parameter.device, parameter.dtype, copy=True)
            for part, value in found.items()
        }
