"""Adapters that somebody else made: judged before anything of them is loaded, then written anew.

    >>> found = check_foreign(folder, base_folder)               # doctest: +SKIP
    >>> import_foreign(folder, base_folder, out)                  # doctest: +SKIP

    folder.py    which files may lie there, and reading one within a size
    config.py    adapter_config.json as ranks and scalings
    header.py    the safetensors header, by its bytes
    weights.py   the tensors: names, shapes, values, norms
    tokens.py    tokenizer files that came along
    base.py      what the base has to adapt

The one design fact: each file is read once, and what was read is what is judged and what is written. Of the stranger's
files nothing is copied: the config is built from ranks alone, the weights are saved again with the scaling folded in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from incremental_llm.adapters.foreign.base import BaseLayers, base_layers
from incremental_llm.adapters.foreign.config import MAX_ALPHA, MAX_RANK, ForeignConfig, read_foreign_config
from incremental_llm.adapters.foreign.folder import ForeignFolder, opened_folder
from incremental_llm.adapters.foreign.header import read_header
from incremental_llm.adapters.foreign.quote import quoted
from incremental_llm.adapters.foreign.tokens import differing_tokenizer_files
from incremental_llm.adapters.foreign.weights import (
    MAX_RELATIVE_NORM,
    MAX_VALUE,
    as_adapter,
    largest_file,
    read_payload,
    relative_norms,
    require_tensors,
)
from incremental_llm.adapters.lora import CONFIG_FILE, WEIGHTS_FILE, LoraAdapter, write_adapter
from incremental_llm.artifacts import staged_folder, write_json
from incremental_llm.errors import InputError

__all__ = [
    "IMPORT_FILE",
    "MAX_ALPHA",
    "MAX_RANK",
    "MAX_RELATIVE_NORM",
    "MAX_VALUE",
    "ForeignAdapter",
    "ForeignModule",
    "ForeignReport",
    "check_foreign",
    "import_foreign",
]

IMPORT_FILE = "import.json"
"""Beside the imported weights: digests of the files they come from, and what was found."""


@dataclass(frozen=True)
class ForeignModule:
    """One adapted layer: rank, scaling s, stored dtypes, and |s·B·A| / |W| (Frobenius)."""

    name: str
    rank: int
    scaling: float
    dtype: str
    relative_norm: float


@dataclass(frozen=True)
class ForeignReport:
    """What a stranger's adapter is; all that it holds passed every check.

    `claimed_base` is what its config says it was trained on; `sha256` of config and weights as they were read;
    `ignored` the files that were allowed and not used.
    """

    base: str
    claimed_base: str | None
    parameters: int
    modules: tuple[ForeignModule, ...]
    ignored: tuple[str, ...]
    warnings: tuple[str, ...]
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class ForeignAdapter:
    """The report, and the adapter itself in memory as it was read: what is written from here is what was checked."""

    report: ForeignReport
    adapter: LoraAdapter

    def write(self, out: Path) -> None:
        """Write it as a folder of our own: config built anew, scaling folded into B, fp32, manifest last.

        Raises:
            InputError: `out` is in use.
        """
        _require_free(out)
        with staged_folder(out) as staged:
            write_adapter(staged, self.adapter.modules, self.report.base, scaling=self.adapter.scaling)
            write_json(staged / IMPORT_FILE, {"format": 1, **asdict(self.report)})


def check_foreign(folder: Path, base_folder: Path, *, base_name: str | None = None) -> ForeignAdapter:
    """Judge the adapter in `folder` as one for exactly the base in `base_folder`; nothing is written.

    Memory is bounded by what a LoRA for this base can need, the payload is read after names and shapes are right, and
    of the base's weights one is read at a time, for its norm.

    Args:
        base_name: how the base is called (by default as its folder), for the report and the config that is written.

    Raises:
        InputError: not plain LoRA for this base, or files that do not belong; the message says which.
        IntegrityError: damaged, or config and weights that disagree.
        BaseModelError: no base that can be read.
    """
    base = base_layers(base_folder)
    name = base_name or base_folder.resolve().name
    with opened_folder(folder) as opened:
        raw = opened.read(CONFIG_FILE, base.longest_text)
        config = read_foreign_config(raw, folder / CONFIG_FILE, base)
        adapter, dtypes, digest = _read_weights(opened, config, base)
        different = differing_tokenizer_files(opened, base_folder, base.vocabulary)
        ignored = tuple(sorted(opened.names - {CONFIG_FILE, WEIGHTS_FILE}))
    norms = relative_norms(adapter, base, folder / WEIGHTS_FILE)
    modules = tuple(
        ForeignModule(module, rank, config.scaling[module], dtypes[module], norms[module])
        for module, rank in config.ranks.items()
    )
    report = ForeignReport(
        base=name,
        claimed_base=config.claimed_base,
        parameters=sum(factor.numel() for pair in adapter.modules.values() for factor in pair),
        modules=modules,
        ignored=ignored,
        warnings=(*_about_base(config, name, base_folder), *_about_rest(config, different, norms)),
        sha256={CONFIG_FILE: hashlib.sha256(raw).hexdigest(), WEIGHTS_FILE: digest},
    )
    return ForeignAdapter(report, adapter)


def import_foreign(folder: Path, base_folder: Path, out: Path, *, base_name: str | None = None) -> ForeignReport:
    """Check the adapter in `folder` and write it anew to `out`, which appears whole or not at all.

    `out` is then a plain adapter of ours: the same deltas, rsLoRA and alpha folded into B.

    Raises:
        As `check_foreign`, and InputError where `out` is in use; nothing is written then.
    """
    _require_free(out)  # before minutes of checks, and again when it is written
    found = check_foreign(folder, base_folder, base_name=base_name)
    found.write(out)
    return found.report


def _read_weights(
    opened: ForeignFolder, config: ForeignConfig, base: BaseLayers
) -> tuple[LoraAdapter, dict[str, str], str]:
    """The adapter, its stored dtypes by module, and the sha256 of the file, from one pass over it."""
    path = opened.path / WEIGHTS_FILE
    with opened.open(WEIGHTS_FILE, largest_file(base)) as (stream, size):
        header = read_header(stream, size, path, largest=base.longest_text, most=2 * len(base.linear))
        require_tensors(header, config, base, path)
        payload, tensors = read_payload(stream, header, path)
    digest = hashlib.sha256(header.raw)
    digest.update(payload)
    adapter = as_adapter(tensors, config)
    dtypes = {
        name: "/".join(dict.fromkeys(str(factor.dtype).removeprefix("torch.") for factor in pair))
        for name, pair in adapter.modules.items()
    }
    return adapter, dtypes, digest.hexdigest()


def _about_base(config: ForeignConfig, name: str, base_folder: Path) -> tuple[str, ...]:
    claimed = config.claimed_base
    if not claimed:
        return ("its config names no base; that the shapes fit does not prove that it was trained on this one",)
    if _last_part(claimed) in (_last_part(name), _last_part(str(base_folder))):
        return ()
    return (f"its config names another base, {quoted(claimed)}, than {name}; the shapes fit, which proves little",)


def _last_part(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1].casefold()


def _about_rest(config: ForeignConfig, different: tuple[str, ...], norms: Mapping[str, float]) -> tuple[str, ...]:
    silent = [name for name, norm in norms.items() if norm == 0]
    more = f" and {len(config.unknown) - 8} more" if len(config.unknown) > 8 else ""
    found = (
        (config.revision, f"its config names revision {quoted(config.revision)} of its base; the one here is pinned"),
        (config.unknown, f"settings that are unknown here and off: {', '.join(config.unknown[:8])}{more}"),
        (different, f"not the base's own, and not used: {', '.join(different)}; it may expect other prompts"),
        (silent, f"{len(silent)} of {len(norms)} modules add nothing, such as {next(iter(silent), '')}"),
    )
    return tuple(words for holds, words in found if holds)


def _require_free(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise InputError(
            f"{out}: expected a folder that does not exist or is empty, found something there. Give another one, or "
            "remove this one first: an import never overwrites."
        )
