"""The configuration of a run: one YAML file, dotted overrides, every problem listed at once.

    >>> config = RunConfig()
    >>> config.base
    'smollm2-135m'

A config is complete (every value has a default or is required), frozen, and hashed into every snapshot it makes.
"""

from __future__ import annotations

import difflib
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from incremental_llm.adapters.merge_settings import MergeSettings
from incremental_llm.chat import json_digest
from incremental_llm.dataset import CompileSettings
from incremental_llm.errors import ConfigError
from incremental_llm.feedback.review.settings import ReviewSettings
from incremental_llm.gate import GatePolicy
from incremental_llm.replay import ReplaySettings
from incremental_llm.strict_yaml import parse_yaml
from incremental_llm.training.settings import TrainingSettings

_DECIDES_NOTHING: dict[str, Any] = {
    "workspace": True,
    "database": True,
    "registry": True,
    "review": True,
    "suites": {"folder"},
}

CORRECTION_SUITES = ("corrections", "new_corrections")
"""The suites made of accepted corrections: every earlier one that still holds, and this increment's own."""


_EXPECTED: Mapping[str, str] = {
    **dict.fromkeys(("tuple_type", "list_type", "set_type", "frozen_set_type"), "a list, such as [a, b]"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(
        ("model_type", "model_attributes_type", "dict_type", "mapping_type"), "a section of keys and values"
    ),
    "finite_number": "a finite number",
    "string_type": "text",
    "path_type": "a path",
    "literal_error": "one of {expected}",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "a list of at least {min_length}",
}
"""Type of a pydantic error -> what was expected, in the words of a recipe."""


class SuitesConfig(BaseModel):
    """Which suites are measured, and what each one is to this increment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path = Field(Path("eval_suites"), description="one folder a suite; relative to the current directory")
    old: tuple[str, ...] = Field((), description="suites that the candidate must not lose")
    new: tuple[str, ...] = Field((), description="suites of this increment's own subject, which must get better")
    watch: tuple[str, ...] = Field((), description="suites that are measured and shown, and decide nothing yet")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.old, *self.new, *self.watch)))

    @model_validator(mode="after")
    def _one_role_each(self) -> Self:
        twice = [name for name, count in Counter((*self.old, *self.new, *self.watch)).items() if count > 1]
        if twice:
            raise ValueError(f"expected every suite once, in old, new or watch; found {', '.join(twice)} twice")
        taken = [name for name in self.names if name in CORRECTION_SUITES]
        if taken:
            raise ValueError(f"{', '.join(taken)}: the name of the suite that is made from corrections; rename yours")
        return self


class ConsolidationSettings(MergeSettings):
    """How several adapters become one, and when a nightly run does so by itself: never, unless told.

    It does so after an increment that was promoted, as a candidate of its own; where the gate refuses it, the stack
    stays. `illm consolidate` does it at any time.
    """

    after: int | None = Field(
        None, ge=1, description="a nightly run makes one of more adapters than this; null: however many there are"
    )
    max_rank: int | None = Field(
        None,
        ge=1,
        description="and of adapters whose ranks sum to more than this, which a server would have to be given; null: "
        "the largest that vLLM takes, with `after`, and none without",
    )
    scales: tuple[float, ...] = Field(
        (1.0,),
        min_length=1,
        description="factors of the newest adapter, each measured as a candidate; the best is judged, more strictly",
    )

    @property
    def automatic(self) -> bool:
        """Whether a nightly run consolidates."""
        return self.after is not None or self.max_rank is not None

    @model_validator(mode="after")
    def _scales_that_differ(self) -> Self:
        if len(set(self.scales)) < len(self.scales) or min(self.scales) <= 0:
            raise ValueError(f"expected scales above 0, each once, found {list(self.scales)}")
        return self

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.automatic and self.rank is None:
            raise ValueError(
                "expected consolidation.rank with after or max_rank, or the one adapter would grow with every night, "
                "found null"
            )
        if self.max_rank is not None and self.rank is not None and self.rank > self.max_rank:
            raise ValueError(f"expected rank of at most max_rank, {self.max_rank}, found {self.rank}")
        return self


class RunConfig(BaseModel):
    """Everything that decides a run, data aside."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workspace: Path = Field(Path("illm"), description="registry, feedback database, objects and runs live here")
    base: str = Field("smollm2-135m", description="embedded name, local folder, or hub id")
    database: str | None = Field(None, description="feedback database URL; SQLite in the workspace by default")
    registry: str | None = Field(
        None,
        description="registry database URL, such as postgresql+psycopg://host/name; SQLite in the workspace by default",
    )
    process: Literal["increment", "retrain"] = Field(
        "increment",
        description="increment: an adapter for new feedback; retrain: one for all feedback, in the place of all others",
    )
    suites: SuitesConfig = SuitesConfig()
    compile: CompileSettings = CompileSettings()
    replay: ReplaySettings = ReplaySettings()
    training: TrainingSettings = TrainingSettings()
    gate: GatePolicy = GatePolicy()
    consolidation: ConsolidationSettings = ConsolidationSettings()
    review: ReviewSettings = ReviewSettings()

    @model_validator(mode="after")
    def _no_key_without_effect(self) -> Self:
        if self.training.dark.weight and self.replay.policy == "self_synthesised":
            raise ValueError(
                "training.dark holds replayed answers to the logits that they had when they were learnt, and replay of "
                "policy self_synthesised has new answers every night: expected one of the two, found both"
            )
        return self

    @property
    def database_url(self) -> str:
        """The feedback database; a `?`, `#` or `%` in the workspace's path belongs to the path."""
        if self.database:
            return self.database
        from sqlalchemy.engine import URL

        path = str(self.workspace.resolve() / "feedback.db")
        return URL.create("sqlite", database=path).render_as_string(hide_password=False)

    def at_dtype(self, dtype: str) -> RunConfig:
        """This recipe with `training.precision: auto` decided: what goes with a stack in `dtype`."""
        return self.model_copy(update={"training": self.training.at_dtype(dtype)})

    @property
    def mixing(self) -> ReplaySettings:
        """How much is replayed by this process: a retraining sees everything once, and rehearses nothing."""
        return self.replay if self.process == "increment" else self.replay.model_copy(update={"ratio": 0.0})

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides the result, as plain data: places on the disk and the review are left out, sets are sorted."""
        tree = self.model_dump(mode="json", exclude=_DECIDES_NOTHING)
        tree["compile"]["policy_reviewers"].sort()
        return tree

    @property
    def digest(self) -> str:
        """Digest of the recipe: equal for equal results, on every machine."""
        return json_digest(self.recipe)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe and apply overrides such as `training.seed=1`.

    Relative folders in a recipe count from the current directory.

    Raises:
        ConfigError: every unknown key (with the nearest known one) and every wrong value, in one message.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"recipe {path}: {error.strerror}. Give a YAML file, such as recipes/nightly_smollm2_cpu.yaml."
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"recipe {path}: expected YAML in UTF-8, found an error: {error}") from error
        loaded = parse_yaml(text, f"recipe {path}", ConfigError)
        if not isinstance(loaded, dict | None):
            raise ConfigError(f"recipe {path}: expected keys and values, found {type(loaded).__name__}.")
        tree = loaded or {}
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, source=str(path) if path else "the command line")


def parse_config(tree: Mapping[str, Any], *, source: str) -> RunConfig:
    """A RunConfig from plain data; raises ConfigError with all problems."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        problems = [_problem(detail) for detail in error.errors()]
        raise ConfigError(
            f"{source}: {len(problems)} problem(s):\n"
            + "".join(f"  - {p}\n" for p in problems)
            + "Correct them; a recipe by `illm init` explains every key, with its bounds."
        ) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key=value, such as training.seed=1.")
    *parents, last = key.split(".")
    node: Any = tree
    for parent in parents:
        if isinstance(node, dict) and parent.isdigit():
            raise ConfigError(
                f"override {override!r}: expected a list before {parent!r} in the recipe, found none. Write the list "
                "into the recipe first; a recipe by `illm init` has all of them."
            )
        node = node[_position(override, parent, node)] if isinstance(node, list) else node.setdefault(parent, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"override {override!r}: {parent!r} is a value, not a section.")
    value = parse_yaml(text, f"override {override!r}", ConfigError)
    if isinstance(node, list):
        node[_position(override, last, node)] = value
    else:
        node[last] = value


def _position(override: str, part: str, among: Sequence[Any]) -> int:
    if not part.isdigit() or int(part) >= len(among):
        raise ConfigError(f"override {override!r}: {part!r} is no position in a list of {len(among)}.")
    return int(part)


def _problem(detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] != "extra_forbidden":
        return f"{where}: {_expected(detail)}"
    known = _keys_at(RunConfig, detail["loc"][:-1])
    near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.5)
    return f"unknown config key '{where}'" + (
        f", did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
    )


def _expected(detail: Any) -> str:
    """What a value should be and what it is; a rule of the project's own says both itself."""
    if detail["type"] == "value_error":
        return str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "missing":
        return "expected a value, found none"
    found = "nothing" if detail["input"] is None else repr(detail["input"])
    expected = _EXPECTED.get(detail["type"])
    if expected is None:
        return f"{detail['msg']} (found {found})"
    limits = {key: f"{value:g}" if isinstance(value, float) else value for key, value in detail.get("ctx", {}).items()}
    return f"expected {expected.format(**limits)}, found {found}"


def _keys_at(model: Any, loc: Sequence[Any]) -> list[str]:
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        models = [
            a for a in (annotation, *typing.get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)
