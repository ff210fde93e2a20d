"""How many bytes a registry takes, by kind of object and by version."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from incremental_llm.registry.objects import ObjectStore
from incremental_llm.registry.queries import all_snapshots, read_attempts
from incremental_llm.registry.references import references
from incremental_llm.registry.retention import entries


class KindUsage(BaseModel):
    """Objects of one kind; an object that is of several is counted once, for the first."""

    model_config = ConfigDict(frozen=True)

    kind: str
    objects: int
    bytes: int


class VersionUsage(BaseModel):
    """What one version needs: `own` bytes are needed by nothing else, `shared` ones by other versions or attempts too.

    `missing` counts objects that are not there, erased ones among them.
    """

    model_config = ConfigDict(frozen=True)

    version: int
    own: int
    shared: int
    missing: int


class Usage(BaseModel):
    """Sizes in bytes. `garbage` is what `gc` would free now, `database` the SQLite files, 0 for a server."""

    model_config = ConfigDict(frozen=True)

    kinds: tuple[KindUsage, ...]
    versions: tuple[VersionUsage, ...]
    objects: int
    database: int
    garbage: int


def usage(connection: Connection, objects: ObjectStore, root: Path, garbage: int) -> Usage:
    """Count what lies in the object folder against what versions and attempts need."""
    snapshots = all_snapshots(connection)
    named = references((*snapshots, *read_attempts(connection)))
    found = list(entries(objects.root))
    sizes = {entry.digest: entry.bytes for entry in found if entry.digest is not None}
    kind_of: dict[str, str] = {}
    for reference in named:
        kind_of.setdefault(reference.digest, reference.kind)
    owners = Counter(digest for digest, _ in {(one.digest, one.owner) for one in named})
    kinds: dict[str, list[int]] = {}
    for entry in found:
        what = entry.what if entry.digest is None else kind_of.get(entry.digest, "unreferenced")
        kinds.setdefault(what, []).append(entry.bytes)
    versions = []
    for snapshot in snapshots:
        digests = set(snapshot.objects)
        own = sum(sizes.get(digest, 0) for digest in digests if owners[digest] == 1)
        every = sum(sizes.get(digest, 0) for digest in digests)
        missing = len(digests - sizes.keys())
        versions.append(VersionUsage(version=snapshot.version, own=own, shared=every - own, missing=missing))
    return Usage(
        kinds=tuple(KindUsage(kind=kind, objects=len(held), bytes=sum(held)) for kind, held in kinds.items()),
        versions=tuple(versions),
        objects=sum(entry.bytes for entry in found),
        database=sum(path.stat().st_size for path in root.glob("registry.db*")),
        garbage=garbage,
    )
