"""What a continual-learning benchmark runs: the file continual.yaml, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from incremental_llm.errors import ConfigError
from incremental_llm.replay import ReplaySettings
from incremental_llm.strict_yaml import parse_yaml
from incremental_llm.training.settings import TrainingSettings


class _Plan(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Setting(_Plan):
    """How much is trained and measured; `training` and `phase` are the product's settings that all methods share."""

    train_rows: int = Field(ge=2)
    dev_rows: int = Field(ge=1)
    test_rows: int = Field(ge=1)
    input_tokens: int | None = Field(None, ge=1)
    training: dict[str, Any] = {}
    phase: dict[str, Any] = {}
    mtl: tuple[dict[str, Any], ...] = Field(({},), min_length=1)


class Method(_Plan):
    """A method is settings: of training, of its SFT phase, and of replay (none unless it says so)."""

    training: dict[str, Any] = {}
    phase: dict[str, Any] = {}
    replay: ReplaySettings = ReplaySettings(ratio=0)


class Plan(_Plan):
    """Orders of tasks, settings and methods, by name; `name` is that of the results file."""

    name: str
    orders: dict[str, tuple[str, ...]] = Field(min_length=1)
    settings: dict[str, Setting] = Field(min_length=1)
    methods: dict[str, Method] = Field(min_length=1)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of all orders, each once."""
        return tuple(dict.fromkeys(task for order in self.orders.values() for task in order))


def read_plan(path: Path) -> Plan:
    """The plan in `path`; raises ConfigError with every problem of it."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: expected a plan as YAML, found no readable file ({error.strerror}).") from error
    try:
        return Plan.model_validate(parse_yaml(text, str(path), ConfigError))
    except ValidationError as error:
        raise ConfigError(f"{path}: {_problems(error)}") from error


def settings_of(setting: Setting, method: Method, *, seed: int, **phase: Any) -> TrainingSettings:
    """The product's settings for a method at a setting; keyword arguments are laid over its SFT phase.

    Raises:
        ConfigError: something that training does not know.
    """
    tree = laid_over(setting.training, method.training)
    sft = {"objective": "sft", **setting.phase, **method.phase, **phase}
    try:
        return TrainingSettings.model_validate({**tree, "seed": seed, "phases": [sft]})
    except ValidationError as error:
        raise ConfigError(f"settings of a benchmark's method: {_problems(error)}") from error


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both trees as one; where both have a value, that of `above`."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        both = isinstance(under, Mapping) and isinstance(value, Mapping)
        merged[key] = laid_over(under, value) if both else value
    return merged


def _problems(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
