"""illm init: a commented recipe and an empty workspace."""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from incremental_llm.cli.console import next_steps, result, say, write
from incremental_llm.cli.errors import crash_log
from incremental_llm.cli.options import RECIPE, ConfigOption, JsonOption, SetOption
from incremental_llm.errors import InputError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

_COMMENT_COLUMN = 34


def init(
    folder: Annotated[Path, typer.Argument(help="Where recipe and workspace go; made if it is not there.")] = Path(),
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a recipe and make a workspace.

    The recipe has every key with its meaning; version 0 of the workspace is the base model. A recipe that is there
    already is used as it is. The same command again finishes what was interrupted.
    """
    from incremental_llm.config import load_config
    from incremental_llm.workspace import Workspace

    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder, or a name that is free, found a file.")
    recipe = folder / RECIPE
    found = recipe.is_file()
    settings = load_config(config or (recipe if found else None), overrides or ())
    if found and settings != load_config(recipe):
        raise InputError(
            f"{recipe} is there already and says something else than --config or --set. "
            "Nothing was changed: edit the recipe, or remove it."
        )
    with _inside(folder), crash_log(settings.workspace):
        workspace = Workspace.create(settings, say=say)
        version = workspace.registry.head("production").version
        workspace.close()
        if not found:
            RECIPE.write_text(recipe_text(settings), encoding="utf-8")
    if as_json:
        return result({"recipe": folder / RECIPE, "workspace": folder / settings.workspace, "production": version})
    write(f"{folder / RECIPE}: {'was there and is used as it is' if found else 'written, every key with its meaning'}")
    write(f"{folder / settings.workspace}: workspace with base {settings.base}, production is version {version}")
    steps = ["illm feedback import FILE.jsonl", "illm doctor"]
    if folder != Path():
        steps.insert(0, f"cd {folder}")
    if not settings.suites.names:
        steps.append(f"name your suites (folders in {settings.suites.folder}) under `suites` in {RECIPE}")
    return next_steps(*steps)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in `folder`, where a recipe's relative folders count from; folders made for nothing are removed again."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # it holds something by now
                path.rmdir()


def recipe_text(config: BaseModel) -> str:
    """`config` as YAML with every section and key explained; reading it gives the same config."""
    head = (
        "# What a run of incremental_llm does. All values are shown; delete a line to keep its default.",
        "# `illm run --set key=value` overrides one, such as --set training.seed=1.",
        "",
    )
    return "\n".join((*head, *_section(config, 0))) + "\n"


def _section(model: BaseModel, depth: int, *, commented: bool = True) -> Iterator[str]:
    from pydantic import BaseModel

    pad = "  " * depth
    data = model.model_dump(mode="json")
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _titled(name, type(value), pad)
            yield from _section(value, depth + 1, commented=commented)
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            yield from _titled(name, type(value[0]), pad)
            for number, item in enumerate(value):
                first, *rest = _section(item, depth + 2, commented=number == 0)
                yield f"{pad}  - {first.lstrip()}"
                yield from rest
        else:
            told = data.get(name, value)  # some are dumped only where they are not the default
            shown = sorted(told) if isinstance(value, frozenset) else told
            line = f"{pad}{name}: {_inline(shown)}"
            yield f"{line:<{_COMMENT_COLUMN}}  # {_meaning(field)}" if commented else line


def _titled(name: str, model: type[BaseModel], pad: str) -> Iterator[str]:
    lead = (model.__doc__ or name).strip().splitlines()[0]
    if not pad:
        yield ""
    yield f"{pad}# {lead}"
    yield f"{pad}{name}:"


def _inline(value: Any) -> str:
    """A value on one line, as YAML reads it back."""
    import yaml

    text = str(yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True))
    return text.removesuffix("\n").removesuffix("\n...")


def _meaning(field: FieldInfo) -> str:
    """The field's description, its choices and its bounds."""
    parts = [" ".join(field.description.split())] if field.description else []
    if typing.get_origin(field.annotation) is typing.Literal:
        parts.append("one of " + ", ".join(map(str, typing.get_args(field.annotation))))
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = [
        f"{words[name]} {getattr(bound, name):g}" for bound in field.metadata for name in words if hasattr(bound, name)
    ]
    if limits:
        parts.append(", ".join(limits))
    return "; ".join(parts) or _type_name(field.annotation)


def _type_name(annotation: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    return names.get(annotation, "a value for each key" if typing.get_origin(annotation) else str(annotation))
