"""A registry as a folder to publish, in the layout of a Hugging Face Hub repository, and back.

    README.md               the card of the repository
    registry.json           versions with their hashes, refs and tags, attempts, quarantine, suites; written last
    adapters/<digest>/      an adapter as PEFT reads it (subfolder="adapters/<digest>"), with a card
    objects/<digest>...     everything else that versions are made of

The one design fact: versions and moves of refs are append-only logs. Where one side's are the beginning of the other's,
the longer one is the newer state; otherwise they have diverged, and nothing is guessed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from incremental_llm.artifacts import MANIFEST, write_atomic, write_json
from incremental_llm.errors import InputError, IntegrityError, PreconditionFailed
from incremental_llm.registry.attempts import Attempt, Quarantined
from incremental_llm.registry.objects import ObjectStore
from incremental_llm.registry.queries import RefMove
from incremental_llm.registry.references import Reference, references
from incremental_llm.registry.snapshot import Snapshot

INDEX, CARD = "registry.json", "README.md"
TEXTS = ("replay", "corrections", "dataset", "report")
"""Kinds of objects that hold what people wrote."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PinnedSuite(_Record):
    """The content that a suite's version was first seen with."""

    name: str
    version: int
    digest: str


class PublishedObject(_Record):
    """An object of the folder: its digest, and what it is to the version that needs it."""

    digest: str
    kind: str


class Index(_Record):
    """What `registry.json` holds."""

    format: Literal[1] = 1
    snapshots: tuple[Snapshot, ...]
    moves: tuple[RefMove, ...]
    tags: dict[str, int]
    attempts: tuple[Attempt, ...]
    quarantine: tuple[Quarantined, ...]
    suites: tuple[PinnedSuite, ...]
    objects: tuple[PublishedObject, ...]


def read_index(folder: Path) -> Index | None:
    """The index of a published folder; None where there is none.

    Raises:
        IntegrityError: not one that this package wrote.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        return Index.model_validate(json.loads(path.read_bytes().decode("utf-8", "surrogatepass")))
    except (ValueError, ValidationError) as error:
        raise IntegrityError(f"{path}: expected the index of a registry, found another file ({error})") from error


def check_index(index: Index) -> None:
    """Raises IntegrityError where its versions are not dense, hash-chained and what their hashes say."""
    before: Snapshot | None = None
    for number, snapshot in enumerate(index.snapshots):
        chained = snapshot.previous_hash == (None if before is None else before.hash)
        if snapshot.version != number or not chained or Snapshot.from_body(snapshot.body, snapshot.hash) != snapshot:
            raise IntegrityError(
                f"{INDEX}: expected version {number} chained to the one before, found version {snapshot.version} that "
                "is not. It was changed after it was published."
            )
        before = snapshot
    if before is None:
        raise IntegrityError(f"{INDEX}: expected at least version 0, found none")


def compare_logs(here: Sequence[object], there: Sequence[object]) -> Literal["same", "ahead", "behind", "diverged"]:
    """How an append-only log stands to another one."""
    shared = min(len(here), len(there))
    if list(here[:shared]) != list(there[:shared]):
        return "diverged"
    return "same" if len(here) == len(there) else "ahead" if len(here) > len(there) else "behind"


def standing(here: Index, there: Index) -> Literal["same", "ahead", "behind"]:
    """How this registry stands to a published one.

    Raises:
        PreconditionFailed: both have gone on from the same version, each in its own way.
    """
    versions = compare_logs([one.hash for one in here.snapshots], [one.hash for one in there.snapshots])
    moves = compare_logs(here.moves, there.moves)
    if versions == "diverged" or moves == "diverged" or {versions, moves} == {"ahead", "behind"}:
        pairs = enumerate(zip(here.snapshots, there.snapshots, strict=False))
        first = next((number for number, (one, other) in pairs if one.hash != other.hash), None)
        what = f"version {first} is another one there" if first is not None else "refs were moved differently there"
        raise PreconditionFailed(
            f"expected what is published to be an earlier or a later state of this registry, found that {what}: both "
            "have gone on since. Nothing was changed: publish elsewhere, or pull that into a registry of its own."
        )
    return versions if versions != "same" else moves


def wanted(index: Index) -> tuple[Reference, ...]:
    """What its versions and attempts need, each object once."""
    found: dict[str, Reference] = {}
    for reference in references((*index.snapshots, *index.attempts)):
        found.setdefault(reference.digest, reference)
    return tuple(found.values())


def place(folder: Path, one: PublishedObject) -> Path:
    """The folder or the JSON file of an object in a published folder."""
    if one.kind == "adapter":
        return folder / "adapters" / one.digest
    found = folder / "objects" / one.digest
    return found if found.is_dir() else found.with_name(f"{one.digest}.json")


def write_objects(folder: Path, index: Index, store: ObjectStore, have: frozenset[str]) -> int:
    """Copy what is not in `have` (digests), each verified; how many."""
    written = 0
    for one in index.objects:
        if one.digest in have:
            continue
        store.verify(one.digest)
        source = store.path(one.digest)
        target = folder / ("adapters" if one.kind == "adapter" else "objects") / source.name
        if source.is_dir():
            _copy_folder(source, target, one)
        else:
            write_atomic(target, source.read_bytes())
        written += 1
    return written


def _copy_folder(source: Path, target: Path, one: PublishedObject) -> None:
    """The manifest comes last: a folder without one is written again."""
    shutil.rmtree(target, ignore_errors=True)
    for path in sorted(source.rglob("*"), key=lambda path: path.name == MANIFEST):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    if one.kind == "adapter" and not (target / CARD).exists():
        (target / CARD).write_text(_adapter_card(one.digest), encoding="utf-8")


def held(folder: Path, index: Index) -> frozenset[str]:
    """Digests of the index's objects that the folder has from an earlier push."""

    def there(one: PublishedObject) -> bool:
        path = place(folder, one)
        return (path / MANIFEST).is_file() if path.is_dir() else path.is_file()

    return frozenset(one.digest for one in index.objects if there(one))


def write_index(folder: Path, index: Index) -> None:
    """The card, and the index as the last file of all."""
    write_atomic(folder / CARD, card(index))
    write_json(folder / INDEX, index.model_dump(mode="json"))


def fetch_objects(folder: Path, index: Index, store: ObjectStore, scratch: Path) -> None:
    """Put every object of the index that the store has not, verified before and after.

    Raises:
        IntegrityError: one that is missing or is not what its digest says; what was put before is unused, and harmless.
    """
    listed = {one.digest for one in index.objects}
    if missing := [one for one in wanted(index) if one.digest not in listed and one.digest not in store]:
        raise IntegrityError(f"{INDEX}: expected every object that versions need, found none for {missing[0].owner}")
    for one in index.objects:
        if one.digest in store:
            continue
        source = place(folder, one)
        found = _put(source, store, scratch)
        if found != one.digest:
            raise IntegrityError(f"{source}: expected object {one.digest[:12]}, found {found[:12]}. It was changed.")


def _put(source: Path, store: ObjectStore, scratch: Path) -> str:
    if not source.exists():
        raise IntegrityError(
            f"{source}: expected an object that {INDEX} lists, found none. Push again, or copy it there."
        )
    if source.is_file():
        try:
            return store.put_json(json.loads(source.read_bytes().decode("utf-8", "surrogatepass")))
        except ValueError as error:
            raise IntegrityError(f"{source}: expected a JSON value, found another file ({error})") from error
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        names = json.loads((source / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name in sorted(names):
            path = (source / name).resolve()
            if source.resolve() not in path.parents:
                raise IntegrityError(f"{source}: expected files of its own, found {name!r} in its manifest")
            copy = scratch / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        return store.put_folder(scratch)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{source}: expected an object with its manifest, found none that is whole ({error})"
        ) from error
    except InputError as error:
        raise IntegrityError(f"{source}: refused ({error})") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def card(index: Index) -> str:
    """The card of the repository, with the metadata that the Hub reads."""
    base = index.snapshots[0].stack.base
    at = {move.name: move.after for move in index.moves}
    production = index.snapshots[at["production"]]
    return "\n".join(
        (
            "---",
            f"base_model: {json.dumps(base.name)}",
            "library_name: peft",
            "tags: [lora, incremental_llm]",
            "---",
            "",
            "# A registry of LoRA stacks",
            "",
            f"Base model `{base.name}`, digest `{base.digest}`, chat template `{base.template_digest}`.",
            f"{len(index.snapshots)} versions; production is version {production.version}, the sum of these adapters:",
            "",
            *(f"- `adapters/{adapter}`" for adapter in production.stack.adapters or ("none: the base itself",)),
            "",
            "`illm registry pull` verifies all of it against `registry.json`, whose versions are hash-chained.",
            "",
        )
    )


def _adapter_card(digest: str) -> str:
    return (
        "---\nlibrary_name: peft\ntags: [lora, incremental_llm]\n---\n\n"
        f"Adapter `{digest}`, one of a stack: see the README of the repository for what is served.\n"
    )


def texts(index: Index) -> Iterator[PublishedObject]:
    """Objects that hold what people wrote."""
    return (one for one in index.objects if one.kind in TEXTS)
