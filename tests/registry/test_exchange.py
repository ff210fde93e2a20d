"""What is published is verified whole before anything of it is visible, and nothing that has diverged is guessed at."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from incremental_llm.errors import CommitError, InputError, IntegrityError, PreconditionFailed
from incremental_llm.registry import Erasure, Registry, Snapshot
from incremental_llm.registry.exchange import FolderRemote, HubRemote, remote_at


@pytest.fixture
def published(world):
    """Three versions, a rollback, a refused attempt and a tag, in a folder."""
    world.night(replay=world.registry.put_json(["replay"]), dataset=world.registry.put_object(world.folder("data")))
    world.night()
    world.registry.rollback(1, "x")
    world.rejected(range(31, 33))
    world.registry.tag("first", 0)
    world.registry.alias("shadow", 1)
    world.registry.record_suite("shop", 1, "d" * 64)
    world.remote = FolderRemote(world.root / "published")
    world.registry.push(world.remote)
    return world


def state(registry: Registry) -> tuple[object, ...]:
    return (
        registry.list(),
        registry.refs(),
        registry.tags(),
        registry.attempts(),
        registry.quarantined(),
        registry.suites(),
        registry.history(),
    )


def test_a_pull_has_all_of_it_and_keeps_every_promise(published):
    with Registry.pull(published.root / "two", published.remote) as pulled:
        assert state(pulled) == state(published.registry)
        assert pulled.verify() == []
    folder = published.remote.folder
    adapter = published.registry.head().stack.adapters[0]
    assert f"`adapters/{adapter}`" not in (folder / "README.md").read_text().split("\n")[0]
    assert adapter in (folder / "README.md").read_text()
    assert "library_name: peft" in (folder / "adapters" / adapter / "README.md").read_text()


def test_only_what_is_missing_is_sent_and_pulled(published):
    pulled = Registry.pull(published.root / "two", published.remote)
    before = len(published.registry.list())
    published.night()
    report = published.registry.push(published.remote, dry_run=True)
    assert (report.sent, report.with_texts, report.versions) == (2, 0, before + 1)  # its adapter and its decision
    assert len(published.remote.index().snapshots) == before
    published.registry.push(published.remote)
    assert published.registry.push(published.remote).sent == 0
    Registry.pull(published.root / "two", published.remote).close()
    assert state(pulled) == state(published.registry)
    assert pulled.verify() == []
    pulled.close()


def test_what_has_diverged_is_refused_with_the_reason(published):
    pulled = Registry.pull(published.root / "two", published.remote)
    published.night()
    pulled.rollback(0, "my own way")
    published.registry.push(published.remote)
    for give in (lambda: pulled.push(published.remote), lambda: Registry.pull(pulled.root, published.remote)):
        with pytest.raises(PreconditionFailed, match="version 4 is another one there"):
            give()
    pulled.close()


def test_an_older_copy_has_to_pull_first(published):
    pulled = Registry.pull(published.root / "two", published.remote)
    published.night()
    published.registry.push(published.remote)
    with pytest.raises(PreconditionFailed, match="Pull it first"):
        pulled.push(published.remote)
    pulled.close()


def changed_adapter(folder: Path) -> None:
    (path,) = list(folder.glob("adapters/*/adapter_model.safetensors"))[:1]
    path.write_text("changed")


def changed_record(folder: Path) -> None:
    next(folder.glob("objects/*.json")).write_text('{"passed": true}')


def missing_object(folder: Path) -> None:
    next(folder.glob("objects/*.json")).unlink()


def in_index(change):
    def apply(folder: Path) -> None:
        index = json.loads((folder / "registry.json").read_text())
        change(index)
        (folder / "registry.json").write_text(json.dumps(index))

    return apply


def path_trick(folder: Path) -> None:
    manifest = next(folder.glob("adapters/*/manifest.json"))
    said = json.loads(manifest.read_text())
    said["files"]["../../README.md"] = {"sha256": "0" * 64, "bytes": 1}
    manifest.write_text(json.dumps(said))


@pytest.mark.parametrize(
    "break_it",
    [
        changed_adapter,
        changed_record,
        missing_object,
        path_trick,
        in_index(lambda index: index["snapshots"][1].update(cursor=99)),
        in_index(lambda index: index["snapshots"].pop(1)),
        in_index(lambda index: index.update(objects=[])),
        in_index(lambda index: index.update(unknown=1)),
        lambda folder: (folder / "registry.json").write_text("{"),
    ],
)
def test_what_was_changed_is_refused_and_nothing_is_visible(published, break_it):
    break_it(published.remote.folder)
    with pytest.raises(IntegrityError):
        Registry.pull(published.root / "two", published.remote)
    assert not Registry.exists(published.root / "two")


def test_a_version_that_no_decision_allows_is_refused(published):
    """The chain is whole and every object is what its digest says, but the decision of what serves did not pass."""
    refused = published.decision(published.registry.get(2).stack, passed=False)
    folder = published.remote.folder
    shutil.copy(published.registry.object_path(refused), folder / "objects")

    def change(index) -> None:
        last = published.registry.list()[-1]
        fields = {"kind": "increment", "parent": 3, "time": last.time, "stack": published.registry.get(2).stack}
        forged = Snapshot.after(last, **fields, cursor=99, decision=refused)
        index["snapshots"].append(forged.model_dump(mode="json"))
        index["moves"].append({**index["moves"][0], "before": 3, "after": 4})
        index["objects"].append({"digest": refused, "kind": "decision"})

    in_index(change)(folder)
    with pytest.raises(PreconditionFailed, match="that did not pass"):
        Registry.pull(published.root / "two", published.remote)
    assert not Registry.exists(published.root / "two")


def test_of_two_pushes_the_second_is_told(published):
    late = FolderRemote(published.remote.folder)
    seen = late.index()
    published.night()
    published.registry.push(published.remote)
    with pytest.raises(PreconditionFailed, match="somebody else has pushed meanwhile"):
        late.write(seen, published.registry._objects, frozenset())


@pytest.mark.parametrize("point", ["begun", "before commit", "committing"])
def test_a_failure_on_the_way_shows_nothing_and_the_same_call_goes_on(published, point):
    def fail(name: str) -> None:
        if name == point:
            raise OSError(28, "No space left on device")

    with pytest.raises(CommitError):
        Registry.pull(published.root / "two", published.remote, failpoint=fail)
    assert not Registry.exists(published.root / "two")
    with Registry.pull(published.root / "two", published.remote) as pulled:
        assert state(pulled) == state(published.registry)


def test_nothing_is_published_of_whom_was_erased(published):
    published.registry.erasing().record(Erasure(id="e1", person="p", begun=published.registry.head().time))
    with pytest.raises(InputError, match="nobody was erased from"):
        published.registry.push(published.remote)


def test_places(tmp_path):
    assert remote_at("hf://team/registry").place == "hf://team/registry"
    assert remote_at("team/registry").place == "team/registry"
    with pytest.raises(InputError, match="hf://owner/name"):
        remote_at("hf://registry")
    with pytest.raises(InputError, match="found none"):
        Registry.pull(tmp_path / "r", FolderRemote(tmp_path / "nothing"))


class FakeHub:
    """A repository in a folder, with the calls of huggingface_hub's client that a remote makes."""

    def __init__(self, root: Path) -> None:
        self.root, self.commits = root, 0

    def repo_exists(self, repo: str) -> bool:
        return self.root.is_dir()

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        assert private and exist_ok
        self.root.mkdir(exist_ok=True)

    def repo_info(self, repo: str) -> SimpleNamespace:
        return SimpleNamespace(sha=str(self.commits))

    def list_repo_files(self, repo: str, *, revision: str) -> list[str]:
        return [path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()]

    def hf_hub_download(self, repo: str, name: str, *, revision: str) -> str:
        return str(self.root / name)

    def upload_folder(self, *, repo_id: str, folder_path: str, parent_commit: str | None, commit_message: str) -> None:
        if parent_commit not in (None, str(self.commits)):
            raise RuntimeError("412 Precondition Failed")
        self.sent = sorted(path.name for path in Path(folder_path).rglob("*") if path.is_file())
        shutil.copytree(folder_path, self.root, dirs_exist_ok=True)
        self.commits += 1

    def snapshot_download(self, repo: str, *, local_dir: str) -> str:
        shutil.copytree(self.root, local_dir)
        return local_dir


def test_a_hub_repository_is_the_same_by_its_client(published):
    hub = FakeHub(published.root / "hub")
    published.registry.push(HubRemote("team/registry", hub))
    assert hub.commits == 1
    published.night()
    stale = HubRemote("team/registry", hub)
    assert stale.index() is not None
    published.registry.push(HubRemote("team/registry", hub))
    assert len([name for name in hub.sent if name.endswith(".safetensors")]) == 1  # the new one only
    with Registry.pull(published.root / "two", HubRemote("team/registry", hub)) as pulled:
        assert state(pulled) == state(published.registry)
        assert pulled.verify() == []
    with pytest.raises(RuntimeError, match="412"):  # somebody pushed since it looked
        stale.write(published.remote.index(), published.registry._objects, frozenset())
