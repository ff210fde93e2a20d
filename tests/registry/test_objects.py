from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incremental_llm.artifacts import MANIFEST, folder_digest, staged_folder
from incremental_llm.chat import json_digest
from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.registry.objects import ObjectStore


@pytest.fixture
def store(tmp_path):
    (tmp_path / "objects").mkdir()
    return ObjectStore(tmp_path / "objects")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "adapter"
    (made / "deep").mkdir(parents=True)
    (made / "adapter_model.safetensors").write_bytes(b"weights")
    (made / "deep" / "config.json").write_text("{}")
    return made


def test_a_folder_is_copied_under_its_digest_once(store, folder):
    digest = store.put_folder(folder)
    assert digest == folder_digest(folder)
    assert (store.path(digest) / "deep" / "config.json").read_text() == "{}"
    assert store.put_folder(folder) == digest
    assert [path.name for path in store.root.iterdir()] == [digest]


def test_a_staged_folder_keeps_its_digest(store, tmp_path):
    with staged_folder(tmp_path / "done") as staged:
        (staged / "a.txt").write_text("a")
    digest = store.put_folder(tmp_path / "done")
    store.verify(digest)
    assert digest == folder_digest(tmp_path / "done")


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "x.pkl", "deep/x.PTH", "x.ckpt"])
def test_pickles_are_refused_by_name(store, folder, name):
    (folder / name).write_bytes(b"")
    with pytest.raises(InputError, match=f"expected no pickles, found {name.split('/')[-1]}"):
        store.put_folder(folder)
    assert not list(store.root.iterdir())


def test_links_empty_and_missing_folders_are_refused(store, folder, tmp_path):
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="links"):
        store.put_folder(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        store.put_folder(tmp_path / "empty")
    with pytest.raises(InputError, match="found none"):
        store.put_folder(tmp_path / "absent")


def test_a_folder_that_differs_from_its_own_manifest_is_refused(store, tmp_path):
    with staged_folder(tmp_path / "done") as staged:
        (staged / "a.txt").write_text("a")
    (tmp_path / "done" / "a.txt").write_text("b")
    with pytest.raises(IntegrityError, match=r"a\.txt"):
        store.put_folder(tmp_path / "done")


def test_a_folder_that_changes_while_it_is_copied_is_refused(tmp_path, folder):
    copied = tmp_path / "objects"

    def change(point: str) -> None:
        if point == "object staged":
            next(copied.glob(".*/adapter_model.safetensors")).write_bytes(b"other")

    with pytest.raises(IntegrityError, match="changed while it was copied"):
        ObjectStore(copied, change).put_folder(folder)
    assert not list(copied.iterdir())


def test_damage_is_found_before_use(store, folder):
    digest = store.put_folder(folder)
    (store.path(digest) / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match="adapter_model"):
        store.verify(digest)
    with pytest.raises(IntegrityError, match="adapter_model"):
        store.put_folder(folder)


def test_an_object_under_another_name_is_found(store, folder):
    digest = store.put_folder(folder)
    store.path(digest).rename(store.root / ("0" * 64))
    with pytest.raises(IntegrityError, match="expected digest 0000"):
        store.verify("0" * 64)


def test_an_absent_object_and_a_bad_digest_are_errors(store):
    with pytest.raises(IntegrityError, match="found none"):
        store.path("0" * 64)
    for digest in ("../../etc/passwd", "", "A" * 64):
        assert digest not in store
        with pytest.raises(IntegrityError, match="64 hex digits"):
            store.path(digest)


def test_json_is_stored_under_its_digest_and_checked(store):
    digest = store.put_json({"b": 1, "a": "ü"})
    assert digest == json_digest({"a": "ü", "b": 1}) == hashlib.sha256(store.path(digest).read_bytes()).hexdigest()
    assert store.put_json({"a": "ü", "b": 1}) == digest
    assert store.get_json(digest) == {"a": "ü", "b": 1}
    store.path(digest).write_text("{}")
    with pytest.raises(IntegrityError, match="expected digest"):
        store.get_json(digest)


def test_json_refuses_nan_and_a_folder(store, folder):
    with pytest.raises(ValueError, match="Out of range"):
        store.put_json({"score": float("nan")})
    with pytest.raises(IntegrityError, match="expected a JSON value"):
        store.get_json(store.put_folder(folder))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
)


@settings(max_examples=30, deadline=None)
@given(JSON)
def test_any_json_comes_back(tmp_path_factory, value):
    store = ObjectStore(tmp_path_factory.getbasetemp() / "json-objects")
    assert store.get_json(store.put_json(value)) == value


def test_half_a_surrogate_pair_survives(store):
    assert store.get_json(store.put_json("\ud83d")) == "\ud83d"


def test_the_top_manifest_is_not_part_of_the_digest(store, folder):
    digest = store.put_folder(folder)
    assert (store.path(digest) / MANIFEST).is_file()
    assert folder_digest(store.path(digest)) == digest
