"""What lies between two versions: recipe, data, weights and scores, each only as far as it is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from incremental_llm.errors import IncrementalError
from incremental_llm.registry.snapshot import Snapshot, SnapshotDiff, diff

if TYPE_CHECKING:
    from incremental_llm.registry.reading import Reading

_READ = ("used", "replayed")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Setting(_Record):
    """A key of the recipe that differs; None where one of the recipes has no such key."""

    key: str
    before: Any
    after: Any


class Count(_Record):
    """How much of something went into each increment."""

    what: str
    before: int
    after: int


class LayerChange(_Record):
    """Frobenius norms of what the adapters of both versions add to the weights of one layer.

    `moved` is the norm of the difference; `relative` is `moved` over `before`, None where there was nothing before.
    """

    layer: str
    before: float
    after: float
    moved: float
    relative: float | None


class Score(_Record):
    """Share of right answers on a suite, 0 to 1; None where it was not measured."""

    suite: str
    before: float | None
    after: float | None


class Comparison(SnapshotDiff):
    """Two versions side by side. `absent` says in words what could not be compared, and why."""

    settings: tuple[Setting, ...]
    counts: tuple[Count, ...]
    layers: tuple[LayerChange, ...]
    scores: tuple[Score, ...]
    absent: tuple[str, ...]


def compare(registry: Reading, before: int | str, after: int | str) -> Comparison:
    """Both versions, read from what the registry holds; no base model is loaded.

    Raises:
        UnknownRefError: no such version.
    """
    one, other = registry.get(before), registry.get(after)
    absent: list[str] = []
    recipes = [_json(registry, snapshot, "recipe", absent) for snapshot in (one, other)]
    reports = [_json(registry, snapshot, "report", absent) for snapshot in (one, other)]
    counts = [_counts(registry, snapshot, absent) for snapshot in (one, other)]
    return Comparison(
        **diff(one, other).model_dump(),
        settings=() if None in recipes else tuple(_settings(*(dict(_leaves(tree)) for tree in recipes))),
        counts=tuple(
            Count(what=what, before=counts[0][what], after=counts[1][what]) for what in sorted({*counts[0], *counts[1]})
        ),
        layers=_layers(registry, one, other, absent),
        scores=tuple(_scores(*(_of_suites(report) for report in reports))),
        absent=tuple(dict.fromkeys(absent)),
    )


def _json(registry: Reading, snapshot: Snapshot, part: str, absent: list[str]) -> Any:
    digest = getattr(snapshot, part)
    if digest is None:
        absent.append(f"version {snapshot.version} has no {part}")
        return None
    try:
        return registry.get_json(digest)
    except IncrementalError as error:
        absent.append(f"the {part} of version {snapshot.version} cannot be read ({error})")
        return None


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested sections by its dotted key; a list is one value."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree


def _settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Setting]:
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield Setting(key=key, before=before.get(key), after=after.get(key))


def _counts(registry: Reading, snapshot: Snapshot, absent: list[str]) -> Counter[str]:
    """Examples by kind, and events by what became of them; nothing for a version that trained on nothing."""
    if snapshot.kind != "increment":
        absent.append(f"version {snapshot.version} trained on no data of its own ({snapshot.kind})")
        return Counter()
    found = Counter(f"examples, {kind}" for kind in registry.example_kinds(snapshot.version))
    events = registry.events_of(snapshot.version)
    found.update(f"events, {one.outcome if one.outcome in _READ else 'left out'}" for one in events)
    return found


def _of_suites(report: Any) -> dict[str, float | None]:
    return {name: suite["score"] for name, suite in (report or {}).get("suites", {}).items()}


def _scores(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> Iterator[Score]:
    for suite in sorted(before.keys() | after.keys()):
        yield Score(suite=suite, before=before.get(suite), after=after.get(suite))


def _layers(registry: Reading, one: Snapshot, other: Snapshot, absent: list[str]) -> tuple[LayerChange, ...]:
    """Nothing to read where neither version has adapters; what cannot be read makes all norms absent, not zero."""
    from incremental_llm.adapters.norms import layer_changes

    folders: dict[str, Path] = {}
    for snapshot in (one, other):
        for digest in snapshot.stack.adapters:
            try:
                folders[digest] = registry.object_path(digest, verified=True)
            except IncrementalError as error:
                absent.append(f"norms of the weights: an adapter of version {snapshot.version} is not there ({error})")
                return ()
    if not folders:
        return ()
    try:
        found = tuple(layer_changes(folders, one.stack.adapters, other.stack.adapters))
    except IncrementalError as error:
        absent.append(f"norms of the weights: {error}")
        return ()
    return tuple(LayerChange(layer=layer, **norms) for layer, norms in found)
