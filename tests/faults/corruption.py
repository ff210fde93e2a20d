"""Bits that flip, files that are cut short, swapped or gone: found before anything of them is used, and named.

Undetected is a reader who got something else than was written and no error. In a SQLite file there are bytes that hold
nothing (free pages, the unused middle of a page) or that SQLite sets right by itself; a flip there changes nothing that
anybody reads, and no error is expected. So what is compared is what was read, not the bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from incremental_llm.adapters.stack import adapter_paths
from incremental_llm.errors import IncrementalError
from incremental_llm.registry import Registry

from .world import observe, open_registry

KINDS: dict[str, Callable[[Path], list[Path]]] = {
    "adapter": lambda root: sorted(root.glob("registry/objects/*/adapter_model.safetensors")),
    "config": lambda root: sorted(root.glob("registry/objects/*/adapter_config.json")),
    "dataset": lambda root: sorted(p for p in root.glob("registry/objects/*/*.jsonl") if p.stat().st_size),
    "manifest": lambda root: sorted(root.glob("registry/objects/*/manifest.json")),
    "json": lambda root: [p for p in sorted(root.glob("registry/objects/*.json")) if ".erased." not in p.name],
    "tombstone": lambda root: sorted(root.glob("registry/objects/*.erased.json")),
    "database": lambda root: [root / "registry" / "registry.db"],
}


@dataclass
class Account:
    """`done` faults. Of them `harmless` changed nothing that is read; `unnamed` had an error that names no part.

    `undetected` are those of which nobody was told.
    """

    done: int = 0
    harmless: int = 0
    unnamed: list[str] = field(default_factory=list)
    undetected: list[str] = field(default_factory=list)


def everything(root: Path) -> tuple[object, ...]:
    """What the registry has to say, objects included, read as its users do.

    Raises:
        IncrementalError: something of it is damaged.
    """
    with open_registry(root) as registry:
        problems = registry.verify()
        if problems:
            raise IncrementalError("; ".join(map(str, problems)))
        return observe(registry), *_objects(registry)


def _objects(registry: Registry) -> list[object]:
    read: list[object] = []
    gone = registry.erased_parts()
    for snapshot in registry.list():
        if "cannot be restored" not in gone.get(snapshot.version, ""):
            for folder in adapter_paths(snapshot.stack, registry.objects):
                read.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
        for digest in (snapshot.decision, snapshot.corrections, snapshot.report):
            if digest is not None:
                read.append(registry.get_json(digest))
    return read


def flip(path: Path, rng: random.Random) -> str:
    """Turn one bit around."""
    content, bit = bytearray(path.read_bytes()), rng.randrange(8)
    at = rng.randrange(len(content))
    content[at] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {at}"


def cut(path: Path, rng: random.Random) -> str:
    """Leave only the beginning."""
    content = path.read_bytes()
    size = rng.randrange(len(content))
    path.write_bytes(content[:size])
    return f"cut to {size} of {len(content)} bytes"


def remove(path: Path, rng: random.Random) -> str:
    """Take the file away."""
    path.unlink()
    return "removed"


def swap(path: Path, rng: random.Random) -> str:
    """Put the next file of the same name, or of the same kind, in its place."""
    one_folder = path.parent.name == "objects"
    others = path.parent.glob("*.json") if one_folder else path.parents[1].glob(f"*/{path.name}")
    kind = path.name.partition(".")[2]
    fitting = (file for file in sorted(others) if file.name.partition(".")[2] == kind)
    other = next((file for file in fitting if file.read_bytes() != path.read_bytes()), None)
    if other is None:
        return ""
    mine, yours = path.read_bytes(), other.read_bytes()
    path.write_bytes(yours)
    other.write_bytes(mine)
    return f"swapped with {other.relative_to(path.parents[1])}"


def damage(
    root: Path, kind: str, count: int, how: Callable[[Path, random.Random], str], seed: int, account: Account
) -> None:
    """Damage a file of this kind `count` times, each time on its own, and read everything; puts it right again."""
    rng = random.Random(seed)
    right = everything(root)
    files = KINDS[kind](root)
    contents = {path: path.read_bytes() for path in files}
    for number in range(count):
        path = files[number % len(files)]
        what = how(path, rng)
        if what:
            _look(root, path, what, right, account)
        for leftover in (root / "registry").glob("registry.db-*"):
            leftover.unlink()
        for file, content in contents.items():
            if not file.exists() or file.read_bytes() != content:
                file.write_bytes(content)


def _look(root: Path, path: Path, what: str, right: tuple[object, ...], account: Account) -> None:
    account.done += 1
    where = f"{path.relative_to(root)}: {what}"
    try:
        found = everything(root)
    except IncrementalError as error:
        names = (
            path.name,
            path.name.split(".")[0][:12],
            path.parent.name[:12],
            "database",
            "version",
            "ref ",
            "attempt",
        )
        if not any(name in str(error) for name in names):
            account.unnamed.append(f"{where}: {error}")
    except Exception as error:
        account.unnamed.append(f"{where}: {type(error).__name__}: {error}")
    else:
        if found == right:
            account.harmless += 1
        else:
            account.undetected.append(where)
