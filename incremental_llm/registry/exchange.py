"""Pushing a registry to a published folder or a Hub repository, and pulling it from there; see `published`.

The one design fact: a pull is a commit like any other. Every object is verified and put first, then one transaction
adds versions, moves and the rest, judged by the same preconditions: nothing is visible before all has been checked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, Engine, select

from incremental_llm.errors import InputError, PreconditionFailed
from incremental_llm.registry import schema
from incremental_llm.registry.erasure import read_erasures
from incremental_llm.registry.examples import places_in
from incremental_llm.registry.objects import Failpoint, ObjectStore
from incremental_llm.registry.published import (
    INDEX,
    Index,
    PinnedSuite,
    PublishedObject,
    check_index,
    fetch_objects,
    held,
    read_index,
    standing,
    texts,
    wanted,
    write_index,
    write_objects,
)
from incremental_llm.registry.queries import all_moves, all_snapshots, read_attempts, read_quarantine, read_tags
from incremental_llm.registry.transaction import join, transaction
from incremental_llm.registry.updates import (
    AddSnapshot,
    AddTag,
    QuarantineEvents,
    RecordAttempt,
    RecordSuite,
    RecordUses,
    RepeatMove,
    Update,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi


class PushReport(BaseModel):
    """What a push wrote or would write: `sent` of `objects`, and how many of them hold what people wrote."""

    model_config = ConfigDict(frozen=True)

    place: str
    versions: int
    objects: int
    sent: int
    with_texts: int


class Remote(Protocol):
    """A place that a registry is published to."""

    place: str

    def index(self) -> Index | None:
        """What is published there; None: nothing."""

    def have(self, index: Index) -> frozenset[str]:
        """Digests of the objects of `index` that are there."""

    def write(self, index: Index, store: ObjectStore, have: frozenset[str]) -> None:
        """Add the objects that are not in `have`, then the index."""

    def fetch(self, scratch: Path) -> Path:
        """A local folder with all of it."""


class FolderRemote:
    """A folder, on a shared disk or to be copied elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, str(folder)
        self._seen: Index | None = None

    def index(self) -> Index | None:
        self._seen = read_index(self.folder)
        return self._seen

    def have(self, index: Index) -> frozenset[str]:
        return held(self.folder, index)

    def write(self, index: Index, store: ObjectStore, have: frozenset[str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".push.lock"):
            if read_index(self.folder) != self._seen:
                raise PreconditionFailed(f"{self.place}: somebody else has pushed meanwhile. Push again.")
            write_objects(self.folder, index, store, have)
            write_index(self.folder, index)

    def fetch(self, scratch: Path) -> Path:
        return self.folder


class HubRemote:
    """A repository of the Hugging Face Hub; one push is one commit on the one it was planned from."""

    def __init__(self, repo: str, api: HfApi | None = None) -> None:
        self.repo, self.place = repo, f"hf://{repo}"
        self._api: Any = api
        self._seen: str | None = None

    @property
    def api(self) -> Any:
        if self._api is None:
            from huggingface_hub import HfApi

            self._api = HfApi()
        return self._api

    def index(self) -> Index | None:
        if not self.api.repo_exists(self.repo):
            return None
        self._seen = self.api.repo_info(self.repo).sha
        if INDEX not in self.api.list_repo_files(self.repo, revision=self._seen):
            return None
        return read_index(Path(self.api.hf_hub_download(self.repo, INDEX, revision=self._seen)).parent)

    def have(self, index: Index) -> frozenset[str]:
        if self._seen is None:
            return frozenset()
        names = {
            Path(name).parts[1] for name in self.api.list_repo_files(self.repo, revision=self._seen) if "/" in name
        }
        return frozenset(
            one.digest for one in index.objects if not names.isdisjoint((one.digest, f"{one.digest}.json"))
        )

    def write(self, index: Index, store: ObjectStore, have: frozenset[str]) -> None:
        self.api.create_repo(self.repo, private=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as name:
            write_objects(Path(name), index, store, have)
            write_index(Path(name), index)
            self.api.upload_folder(
                repo_id=self.repo,
                folder_path=name,
                parent_commit=self._seen,
                commit_message=f"versions 0 to {index.snapshots[-1].version}",
            )

    def fetch(self, scratch: Path) -> Path:
        return Path(self.api.snapshot_download(self.repo, local_dir=str(scratch)))


def remote_at(place: str) -> Remote:
    """`hf://owner/name` is a repository of the Hub, everything else a folder."""
    if not place.startswith("hf://"):
        return FolderRemote(Path(place))
    repo = place.removeprefix("hf://")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise InputError(f"{place}: expected a repository such as hf://owner/name, or a folder.")
    return HubRemote(repo)


def index_of(engine: Engine) -> Index:
    """The registry as it would be published.

    Raises:
        InputError: somebody was erased from it: a place that keeps its history would keep them.
    """
    with schema.reading(engine) as connection:
        if read_erasures(connection):
            raise InputError(
                "push: expected a registry that nobody was erased from, found one with erasures: what is published "
                "keeps its history, and copies do. Export a version instead: illm export production FOLDER."
            )
        suites = connection.execute(select(schema.suites.c.name, schema.suites.c.version, schema.suites.c.digest)).all()
        draft = Index(
            snapshots=all_snapshots(connection),
            moves=all_moves(connection),
            tags=read_tags(connection),
            attempts=read_attempts(connection),
            quarantine=read_quarantine(connection),
            suites=tuple(PinnedSuite(name=name, version=version, digest=digest) for name, version, digest in suites),
            objects=(),
        )
    objects = tuple(PublishedObject(digest=one.digest, kind=one.kind) for one in wanted(draft))
    return draft.model_copy(update={"objects": objects})


def push(engine: Engine, objects: ObjectStore, remote: Remote, *, dry_run: bool) -> PushReport:
    """Publish; only objects that are not there are sent.

    Raises:
        PreconditionFailed: what is published is newer, or has diverged; nothing was sent.
        IntegrityError: an object here is damaged.
    """
    index = index_of(engine)
    there = remote.index()
    if there is not None and standing(index, there) == "behind":
        raise PreconditionFailed(f"{remote.place}: expected an earlier state, found a newer one. Pull it first.")
    have = remote.have(index)
    sent = [one for one in index.objects if one.digest not in have]
    if not dry_run:
        remote.write(index, objects, have)
    return PushReport(
        place=remote.place,
        versions=len(index.snapshots),
        objects=len(index.objects),
        sent=len(sent),
        with_texts=len({one.digest for one in texts(index)} & {one.digest for one in sent}),
    )


def pull(engine: Engine, objects: ObjectStore, remote: Remote, failpoint: Failpoint) -> int:
    """Bring a registry, or the place of a new one, to what is published; how many versions are new.

    Raises:
        InputError: nothing is published there.
        PreconditionFailed: both have gone on since; or a version serves that no passed decision allows.
        IntegrityError: something published is not what its digest says. Nothing is visible.
    """
    with tempfile.TemporaryDirectory(dir=objects.root.parent, prefix=".pull.") as name:
        there = remote.index()
        if there is None:
            raise InputError(f"{remote.place}: expected a published registry with {INDEX}, found none.")
        check_index(there)
        new = not _exists(engine)
        here = None if new else index_of(engine)
        if here is not None and standing(here, there) != "behind":
            return 0
        fetch_objects(remote.fetch(Path(name) / "fetched"), there, objects, Path(name) / "object")
        updates = tuple(_updates(there, here, objects))
        begin: Callable[[Connection], None] = _create if new else join
        with transaction(engine, objects, failpoint, begin) as tx:
            tx.add(*updates)
    return len(there.snapshots) - (0 if here is None else len(here.snapshots))


def _create(connection: Connection) -> None:
    if schema.exists(connection):
        raise PreconditionFailed("pull: expected no registry here, found one that was made meanwhile. Pull again.")
    schema.create(connection)


def _exists(engine: Engine) -> bool:
    with schema.reading(engine) as connection:
        return schema.exists(connection)


def _updates(there: Index, here: Index | None, objects: ObjectStore) -> Iterator[Update]:
    """What is published and not here. Who was in which event stays where the log is."""
    versions, moves = (0, 0) if here is None else (len(here.snapshots), len(here.moves))
    for snapshot in there.snapshots[versions:]:
        yield AddSnapshot(snapshot=snapshot)
        if snapshot.kind == "increment" and snapshot.dataset is not None:
            places = tuple(places_in(objects.path(snapshot.dataset)))
            yield RecordUses(version=snapshot.version, adapter=None, uses=(), examples=places)
    for move in there.moves[moves:]:
        moved = {"name": move.name, "before": move.before, "version": move.after}
        yield RepeatMove(**moved, time=move.time, reason=move.reason)
    yield from (RecordAttempt(attempt=attempt) for attempt in there.attempts)
    for one in there.quarantine:
        yield QuarantineEvents(seqs=(one.seq,), reason=one.reason, attempt=one.attempt, version=one.version)
    yield from (RecordSuite(**suite.model_dump()) for suite in there.suites)
    tags = {} if here is None else here.tags
    for name, version in there.tags.items():
        if name not in tags:
            yield AddTag(name=name, version=version, reason="pulled")
