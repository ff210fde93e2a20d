"""The registry's objects without a person: which of them hold him, and putting others in their place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from incremental_llm.artifacts import staged_folder
from incremental_llm.dataset import CompiledDataset
from incremental_llm.erase.redaction import Redaction, redact_json
from incremental_llm.registry import Registry
from incremental_llm.registry.objects import ObjectStore
from incremental_llm.replay import ReplayBuffer

Kind = Literal["dataset", "replay buffer", "record"]

_DATASET, _BUFFER = "dataset.json", "buffer.json"
_WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class Replacement:
    """An object that holds the person: `write` puts the one without him into the store and returns its digest."""

    digest: str
    kind: Kind
    write: Callable[[ObjectStore], str]


def replacements(objects: ObjectStore, redaction: Redaction, scratch: Path) -> Iterator[Replacement]:
    """Every object that has to give way; reads each object once. Folders are made below `scratch` when written."""
    for digest in objects.held():
        path = objects.path(digest)
        if path.is_file():
            value = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
            if (left := redact_json(value, redaction)) != value:
                yield Replacement(digest, "record", _json_writer(left))
        elif (path / _DATASET).is_file():
            made = CompiledDataset.read(path)
            if (without := redaction.dataset(made)) != made:
                yield Replacement(digest, "dataset", _folder_writer(scratch / digest, without.write))
        elif (path / _BUFFER).is_file():
            held = ReplayBuffer.read(path / _BUFFER)
            if (rest := redaction.buffer(held)) != held:
                yield Replacement(digest, "replay buffer", _folder_writer(scratch / digest, _in_folder(rest)))


def orphans(registry: Registry, objects: ObjectStore) -> tuple[str, ...]:
    """Adapters that no version and no attempt has: of killed runs, and of learning at once, which is only measured."""
    named = {digest for snapshot in registry.list() for digest in snapshot.objects}
    named |= {digest for attempt in registry.attempts() for digest in attempt.objects}
    return tuple(
        digest for digest in objects.held() if digest not in named and any(objects.path(digest).glob(_WEIGHTS))
    )


def _json_writer(value: Any) -> Callable[[ObjectStore], str]:
    return lambda objects: objects.put_json(value)


def _folder_writer(folder: Path, write: Callable[[Path], None]) -> Callable[[ObjectStore], str]:
    def put(objects: ObjectStore) -> str:
        with staged_folder(folder) as staged:
            write(staged)
        return objects.put_folder(folder)

    return put


def _in_folder(buffer: ReplayBuffer) -> Callable[[Path], None]:
    return lambda folder: buffer.write(folder / _BUFFER)
