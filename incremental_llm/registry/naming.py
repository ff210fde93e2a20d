"""Names for versions that serve nobody: tags, which never move, and aliases, which do."""

from __future__ import annotations

import re

from incremental_llm.errors import InputError, PreconditionFailed, UnknownRefError
from incremental_llm.registry.committing import Committing
from incremental_llm.registry.erasure import refuse_erased
from incremental_llm.registry.queries import read_refs, read_tags, resolve
from incremental_llm.registry.snapshot import Snapshot
from incremental_llm.registry.updates import GATED_REFS, AddTag, MoveRef, RefIs, RemoveTag

LINES = ("rebuild", "cherry-drop")
"""Refs on which versions are made again; only what makes them moves them."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")


class Naming(Committing):
    """Tags and aliases. Both resolve wherever a version is taken."""

    def tag(self, name: str, version: int | str, reason: str = "") -> Snapshot:
        """Name a version for good; the same again changes nothing.

        Raises:
            InputError: not a name, or one that a ref has.
            PreconditionFailed: the tag names another version.
        """
        check_name(name)
        with self._write() as tx:
            snapshot = resolve(tx.connection, version)
            if name in read_refs(tx.connection):
                raise InputError(f"tag {name!r}: expected a new name, found a ref that moves. Choose another one.")
            held = read_tags(tx.connection).get(name)
            if held not in (None, snapshot.version):
                raise PreconditionFailed(
                    f"tag {name}: expected it to be new, found it on version {held}, and a tag does not move. Nothing "
                    f"was changed: choose another name, or take this one back first: illm registry untag {name}"
                )
            if held is None:
                tx.add(AddTag(name=name, version=snapshot.version, reason=reason))
        return snapshot

    def untag(self, name: str) -> int:
        """Take a tag back; the version that it named, which stays.

        Raises:
            UnknownRefError: no such tag.
        """
        with self._write() as tx:
            tags = read_tags(tx.connection)
            if name not in tags:
                raise UnknownRefError(f"expected a tag, found none called {name!r}: there are {_listed(tags)}")
            tx.add(RemoveTag(name=name))
        return tags[name]

    def alias(self, name: str, version: int | str, *, expected: int | None = None, reason: str = "") -> Snapshot:
        """Point a ref that serves nobody, such as `shadow`, to a version.

        Args:
            expected: refuse unless it is at this version now.

        Raises:
            InputError: not a name, a tag's, or a ref that only a passed gate or a rebuild moves.
            PreconditionFailed: the ref is elsewhere, or the version was trained on somebody who was erased.
        """
        check_name(name)
        with self._write() as tx:
            snapshot = resolve(tx.connection, version)
            if name in read_tags(tx.connection):
                raise InputError(f"alias {name!r}: expected a name that may move, found a tag. Choose another one.")
            refuse_erased(tx.connection, snapshot)
            if expected is not None:
                tx.require(RefIs(name=name, version=expected))
            tx.add(MoveRef(name=name, version=snapshot.version, reason=reason or f"alias of {snapshot.version}"))
        return snapshot


def check_name(name: str) -> None:
    """Raises InputError for what is no name of a tag or an alias."""
    if name in GATED_REFS:
        raise InputError(f"{name!r} serves users and moves only by a passed gate: expected another name. See promote.")
    if name in LINES:
        raise InputError(f"{name!r} is the ref on which versions are made again: expected another name.")
    if not _NAME.fullmatch(name) or re.fullmatch(r"v\d+", name):
        raise InputError(
            f"{name!r}: expected a name of letters, digits, '.', '_' and '-' that begins with a letter, has at most 64 "
            "of them and does not read as a version, such as before-sale."
        )


def _listed(names: dict[str, int]) -> str:
    return ", ".join(names) or "none"
