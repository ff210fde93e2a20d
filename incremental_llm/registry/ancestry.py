"""The lineage of versions as a tree: what each one goes on from, and the refs on it.

An increment goes on from its parent, a rollback from the version that it restores: production is one path through the
tree, and what was undone is a branch that ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from incremental_llm.registry.summaries import SnapshotSummary


class Node(BaseModel):
    """A version in the tree; `continues` is the version it goes on from, None for the base."""

    model_config = ConfigDict(frozen=True)

    version: int
    continues: int | None
    kind: str
    parent: int | None
    time: datetime
    adapters: int
    events: int
    refs: tuple[str, ...]
    note: str

    @property
    def line(self) -> str:
        """The node in one line."""
        named = f" [{', '.join(self.refs)}]" if self.refs else ""
        how = f"rollback to {self.continues} from {self.parent}" if self.kind == "rollback" else self.kind
        noted = f': "{self.note}"' if self.note else ""
        return f"v{self.version}{named}  {how}, {self.time:%Y-%m-%d %H:%M}, {self.adapters} adapters{noted}"


def lineage_tree(summaries: Sequence[SnapshotSummary], refs: Mapping[str, int]) -> tuple[Node, ...]:
    """All versions as nodes, oldest first; `summaries` are all versions, dense from 0."""
    names: dict[int, list[str]] = {}
    for name, version in refs.items():
        names.setdefault(version, []).append(name)
    nodes = []
    for one in summaries:
        continues = one.restores if one.kind == "rollback" else one.parent
        before = summaries[one.parent].cursor if one.parent is not None else 0
        nodes.append(
            Node(
                version=one.version,
                continues=continues,
                kind=one.kind,
                parent=one.parent,
                time=one.time,
                adapters=one.adapters,
                events=one.cursor - before,
                refs=tuple(names.get(one.version, ())),
                note=one.note,
            )
        )
    return tuple(nodes)


def draw(nodes: Sequence[Node], to: int, last: int | None = None) -> Iterator[str]:
    """Lines of the tree. The path to version `to` runs straight down; what branches off it is indented.

    Args:
        last: leave out all that is older than the `last` newest versions of that path, and say how many these are.
    """
    path = [to]
    while (before := nodes[path[-1]].continues) is not None:
        path.append(before)
    path.reverse()
    shown = path if last is None else path[-last:]
    children: dict[int | None, list[int]] = {}
    for node in nodes:
        children.setdefault(node.continues, []).append(node.version)
    if len(shown) < len(path):
        yield f"… {len(path) - len(shown)} earlier versions"
    for place, version in enumerate(shown):
        yield nodes[version].line
        straight = shown[place + 1] if place + 1 < len(shown) else None
        branches = [child for child in children.get(version, ()) if child != straight]
        yield from _branches(nodes, children, branches, "│ " if straight is not None else "")


def _branches(
    nodes: Sequence[Node], children: Mapping[int | None, Sequence[int]], roots: Sequence[int], pad: str
) -> Iterator[str]:
    """Each branch below its version, without recursion: a chain of any length is drawn straight."""
    waiting = [(root, pad, root == roots[-1]) for root in reversed(roots)]
    while waiting:
        version, indent, final = waiting.pop()
        yield f"{indent}{'└─' if final else '├─'} {nodes[version].line}"
        below = children.get(version, ())
        deeper = indent + ("   " if final else "│  ")
        chain = len(below) == 1
        waiting += [(child, indent if chain and final else deeper, child == below[-1]) for child in reversed(below)]
