"""A stranger's adapter_config.json as ranks and scalings of the base's own layers. Nothing else of it is kept.

The one design fact: every key is on a list, with what it may hold. What would make s·B·A something else is refused with
its reason; a key that nobody knows is refused unless it is off. No regular expression of the stranger's is run: names
and patterns hold letters, digits, dots, dashes and underscores, and then mean what they mean to PEFT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from incremental_llm.adapters.foreign.base import BaseLayers
from incremental_llm.adapters.foreign.quote import quoted
from incremental_llm.adapters.lora import NOT_PLAIN, PLAIN_INITS
from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.strict_json import deeper, read_json

MAX_RANK = 512
"""The largest rank that vLLM serves."""
MAX_ALPHA = 16 * MAX_RANK
"""Alpha is commonly 1 to 2 ranks; 16 of the largest one leaves room, and the norms are bounded by themselves."""

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_PATTERN = re.compile(r"\^?(\\?\.)?[A-Za-z0-9_-]+(\\?\.[A-Za-z0-9_-]+)*")

_MUST_BE_OFF = NOT_PLAIN | {
    "auto_mapping": "it names a Python class to import",
    "megatron_config": "layers of Megatron are not those of this base",
    "loftq_config": "LoftQ changes the base weight",
    "corda_config": "CorDA changes the base weight",
    "lora_ga_config": "LoRA-GA changes the base weight",
    "velora_config": "VeLoRA is not plain LoRA",
    "ensure_weight_tying": "tied layers are not adapted",
    "layers_pattern": "a pattern for layers is not run; list the layers by name in target_modules",
}

Check = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RANK


def _is_alpha(value: Any) -> bool:
    return _is_number(value) and 0 < value <= MAX_ALPHA  # so neither infinite nor NaN


def _is_text(value: Any) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= 512 and value.isprintable())


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and _NAME.fullmatch(name) for name in value)


def _are_patterns(of: Check) -> Check:
    def check(value: Any) -> bool:
        entries = value.items() if isinstance(value, dict) else ()
        return value is None or (isinstance(value, dict) and all(_PATTERN.fullmatch(k) and of(v) for k, v in entries))

    return check


_PLAIN = "(letters, digits, dots, dashes, underscores; no other regular expression is run)"
_LINE = "at most 512 printable characters"
_ALLOWED: dict[str, tuple[Check, str]] = {
    "peft_type": (lambda value: value == "LORA", "LORA, the only kind that can be stacked"),
    "task_type": (lambda value: value in (None, "CAUSAL_LM"), "CAUSAL_LM, a chat model's"),
    "r": (_is_rank, f"a rank, a whole number from 1 to {MAX_RANK}"),
    "lora_alpha": (_is_alpha, f"a finite number above 0, at most {MAX_ALPHA}"),
    "use_rslora": (_is_flag, "true or false"),
    "lora_dropout": (lambda value: _is_number(value) and 0 <= value < 1, "a number from 0, below 1"),
    "bias": (lambda value: value == "none", "none, as biases are not merged"),
    "init_lora_weights": (
        lambda value: isinstance(value, bool) or (isinstance(value, str) and value in PLAIN_INITS),
        "a start that leaves the base weights as they are; convert it to plain LoRA with PEFT's "
        "path_initial_model_for_weight_conversion",
    ),
    "target_modules": (
        lambda value: value == "all-linear" or (_is_names(value) and bool(value)),
        f"all-linear, or a list of names {_PLAIN}",
    ),
    "exclude_modules": (lambda value: value is None or _is_names(value), f"a list of names {_PLAIN}"),
    "layers_to_transform": (
        lambda value: value is None or _is_index(value) or (isinstance(value, list) and all(map(_is_index, value))),
        "numbers of layers",
    ),
    "rank_pattern": (_are_patterns(_is_rank), f"ranks from 1 to {MAX_RANK} by names {_PLAIN}"),
    "alpha_pattern": (_are_patterns(_is_alpha), f"numbers above 0, at most {MAX_ALPHA}, by names {_PLAIN}"),
    "eva_config": (lambda value: value is None or isinstance(value, dict), "settings of a start, which is over"),
    "base_model_name_or_path": (_is_text, _LINE),
    "revision": (_is_text, _LINE),
    "peft_version": (_is_text, _LINE),
    "inference_mode": (_is_flag, "true or false"),
    "megatron_core": (_is_text, _LINE),  # only with megatron_config
    "qalora_group_size": (_is_index, "a whole number"),  # only with use_qalora
}
_NEEDED = ("peft_type", "r", "lora_alpha", "target_modules")


@dataclass(frozen=True)
class ForeignConfig:
    """Rank and scaling s of every module that the adapter has to have, and nobody else's.

    `claimed_base` and `revision` are the stranger's words; `unknown` the keys that nobody knows, all of them off.
    """

    ranks: Mapping[str, int]
    scaling: Mapping[str, float]
    claimed_base: str | None
    revision: str | None
    unknown: tuple[str, ...]


def read_foreign_config(raw: bytes, path: Path, base: BaseLayers) -> ForeignConfig:
    """Judge the bytes of an adapter_config.json.

    Raises:
        InputError: a kind of LoRA that is not plain, a value out of its range, or layers that the base has not.
        IntegrityError: no JSON object, a key twice, or nested too deeply.
    """
    config = _parsed(raw, path)
    for key, reason in _MUST_BE_OFF.items():
        if config.get(key):
            raise InputError(
                f"{path}: expected plain LoRA, found {key} = {quoted(config[key])}: {reason}. "
                f"Train it again without {key}."
            )
    missing = [key for key in _NEEDED if key not in config]
    if missing:
        raise InputError(f"{path}: expected {', '.join(_NEEDED)}, found no {', '.join(missing)}. Restore the file.")
    for key, (allowed, expected) in _ALLOWED.items():
        if key in config and not allowed(config[key]):
            raise InputError(
                f"{path}: expected {key} to be {expected}; found {quoted(config[key])}. "
                "Restore the file, or train the adapter again."
            )
    unknown = sorted(config.keys() - _ALLOWED.keys() - _MUST_BE_OFF.keys())
    for key in unknown:
        if not (config[key] is None or config[key] is False or config[key] in ({}, [])):
            raise InputError(
                f"{path}: expected the settings of plain LoRA, found {quoted(key)} = {quoted(config[key])}, which "
                "nobody here knows. Whether it changes what the adapter adds cannot be told: save it without."
            )
    ranks = _resolved(config, "rank_pattern", "r", _targets(config, path, base), path)
    alphas = _resolved(config, "alpha_pattern", "lora_alpha", list(ranks), path)
    root: Callable[[int], float] = math.sqrt if config.get("use_rslora") else float
    scaling = {name: float(alphas[name]) / root(rank) for name, rank in ranks.items()}
    shown = tuple(quoted(key) for key in unknown)
    return ForeignConfig(ranks, scaling, config.get("base_model_name_or_path"), config.get("revision"), shown)


def _parsed(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        config = read_json(raw)
        if deeper(config, 3):
            raise ValueError("expected JSON of settings, found it nested more than 3 deep")
        if not isinstance(config, dict):
            raise ValueError(f"expected a JSON object, found {quoted(config)}")
    except ValueError as error:
        raise IntegrityError(f"{path}: {error}. Restore the file.") from error
    return config


def _targets(config: Mapping[str, Any], path: Path, base: BaseLayers) -> list[str]:
    """The layers that PEFT would adapt (`check_target_module_exists` in its tuners_utils.py), sorted.

    Raises:
        InputError: a name that is no linear layer of the base, or nothing left to adapt.
    """
    unwanted = set(config.get("exclude_modules") or ())
    everything = config["target_modules"] == "all-linear"
    wanted = {name for name in base.linear if name != base.head} if everything else set(config["target_modules"])
    ends = {name: _ends(name) for name in base.linear}
    none = sorted(wanted - {end for name in base.linear for end in ends[name]})
    if none:
        raise InputError(
            f"{path}: expected target_modules to name linear layers of the base with weights of their own, found "
            f"{quoted(none[0])}, which is none. The adapter is of another base, or adapts embeddings or a tied head."
        )
    layers = config.get("layers_to_transform")
    numbers = {layers} if isinstance(layers, int) else set(layers or ())
    found = [
        name
        for name in sorted(base.linear)
        if not ends[name] & unwanted
        and (name in wanted or (ends[name] & wanted and (not _given(layers) or _number(name) in numbers)))
    ]
    if not found:
        raise InputError(
            f"{path}: expected layers to adapt, found none left of target_modules. There is nothing in it."
        )
    return found


def _given(layers: Any) -> bool:
    """Whether layers_to_transform restricts anything: PEFT takes an empty list for none given."""
    return layers is not None and layers != []


def _ends(module: str) -> set[str]:
    """A module's name and all of its ends: a.b.c, b.c, c."""
    parts = module.split(".")
    return {".".join(parts[at:]) for at in range(len(parts))}


def _number(module: str) -> int | None:
    """The number of a module's layer, as PEFT finds it: the first part that is a number, with two parts before it."""
    return next((int(part) for part in module.split(".")[2:-1] if part.isdecimal()), None)


def _resolved(config: Mapping[str, Any], patterns: str, default: str, names: list[str], path: Path) -> dict[str, Any]:
    """The value for each name: of the first pattern that matches its end, as PEFT's get_pattern_key does it."""
    given = config.get(patterns) or {}
    if len(given) > len(names):
        raise InputError(
            f"{path}: expected at most one entry for each of {len(names)} adapted layers in {patterns}, found "
            f"{len(given)}. It is not a config that PEFT wrote for this base."
        )
    compiled = [(re.compile(rf"(.*\.)?({key})$"), value) for key, value in given.items()]
    return {name: next((v for pattern, v in compiled if pattern.match(name)), config[default]) for name in names}
