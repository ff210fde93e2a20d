"""Adapters that somebody made to harm, or broke: each is refused with its own reason, and leaves nothing behind.

Every case breaks a good folder in one way. A pickle or a module in it would create the canary if anything loaded it.
"""

from __future__ import annotations

import json
import os
import pickle
import stat
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from incremental_llm.adapters.foreign import IMPORT_FILE, check_foreign, import_foreign
from incremental_llm.adapters.lora import CONFIG_FILE, WEIGHTS_FILE
from incremental_llm.errors import InputError, IntegrityError

Q0 = "model.layers.0.self_attn.q_proj"
Q1 = "model.layers.1.self_attn.q_proj"
A0, B0 = (f"base_model.model.{Q0}.lora_{factor}.weight" for factor in "AB")
A1, B1 = (f"base_model.model.{Q1}.lora_{factor}.weight" for factor in "AB")
Break = Callable[[Path], Any]
Header = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One way to break a good adapter, and what the refusal has to say."""

    name: str
    error: type[Exception]
    words: str
    apply: Break


class Canary:
    """Unpickled, it creates `canary` beside the adapter."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def pickled(name: str) -> Break:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Canary(folder.parent / "canary"), protocol=2))


def file(name: str | bytes, data: bytes = b"hello") -> Break:
    def write(folder: Path) -> None:
        descriptor = os.open(os.path.join(os.fsencode(folder), os.fsencode(name)), os.O_CREAT | os.O_WRONLY)  # noqa: PTH118
        os.write(descriptor, data)
        os.close(descriptor)

    return write


def linked(name: str, link: Callable[[Path, Path], None]) -> Break:
    """The file itself lies outside; the folder holds a link to it."""

    def apply(folder: Path) -> None:
        outside = folder.parent / "outside"
        (folder / name).rename(outside)
        link(folder / name, outside)

    return apply


def config(**values: Any) -> Break:
    def apply(folder: Path) -> None:
        found = json.loads((folder / CONFIG_FILE).read_text())
        (folder / CONFIG_FILE).write_text(json.dumps({**found, **values}))

    return apply


def without(key: str) -> Break:
    def apply(folder: Path) -> None:
        found = json.loads((folder / CONFIG_FILE).read_text())
        del found[key]
        (folder / CONFIG_FILE).write_text(json.dumps(found))

    return apply


def config_text(change: Callable[[str], str]) -> Break:
    return lambda folder: (folder / CONFIG_FILE).write_text(change((folder / CONFIG_FILE).read_text()))


def parts(folder: Path) -> tuple[Header, bytes]:
    raw = (folder / WEIGHTS_FILE).read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8:end]), raw[end:]


def weights_file(folder: Path, header: str | bytes, payload: bytes, claimed: int | None = None) -> None:
    text = header if isinstance(header, bytes) else header.encode()
    length = len(text) if claimed is None else claimed
    (folder / WEIGHTS_FILE).write_bytes(struct.pack("<Q", length) + text + payload)


def header(change: Callable[[Header], Any], more: bytes = b"") -> Break:
    """Change the header's JSON; the payload stays, with `more` after it."""

    def apply(folder: Path) -> None:
        found, payload = parts(folder)
        change(found)
        weights_file(folder, json.dumps(found), payload + more)

    return apply


def header_text(change: Callable[[str], str]) -> Break:
    def apply(folder: Path) -> None:
        found, payload = parts(folder)
        weights_file(folder, change(json.dumps(found)), payload)

    return apply


def entry(name: str, **values: Any) -> Break:
    return header(lambda found: found[name].update(values))


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Break:
    """Change the tensors; the file stays well-formed."""

    def apply(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        found = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
        change(found)
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / WEIGHTS_FILE)

    return apply


def both(*steps: Break) -> Break:
    return lambda folder: [step(folder) for step in steps]


def value(name: str, number: float) -> Break:
    return tensors(lambda found: found[name].view(-1)[:1].fill_(number))


def added(name: str, *shape: int) -> Break:
    return tensors(lambda found: found.update({name: torch.ones(shape)}))


def scaled(**factors: float) -> Break:
    return tensors(
        lambda found: [found[name].mul_(factor) for name, factor in ((A0, factors["a"]), (B0, factors["b"]))]
    )


def sparse(name: str, size: int) -> Break:
    return lambda folder: os.truncate(folder / name, size)


def shifted(by: int) -> Callable[[Header], None]:
    """Every tensor but the first begins `by` bytes later."""

    def change(found: Header) -> None:
        for spec in found.values():
            if "data_offsets" in spec and spec["data_offsets"][0] > 0:
                spec["data_offsets"] = [at + by for at in spec["data_offsets"]]

    return change


def many_tensors(found: Header) -> None:
    found.update({f"t{i}": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for i in range(40)})


def unpadded(found: dict[str, torch.Tensor]) -> None:
    found[B0] = torch.ones(32, 3)


HUGE = 2**62
DEEP = "[" * 20_000 + "]" * 20_000

FILES = [
    Case("pickle for weights", InputError, r"found 'adapter_model\.bin': a pickle", pickled("adapter_model.bin")),
    Case(
        "pickle of arguments",
        InputError,
        r"'training_args\.bin': a pickle.*leave optimizer",
        pickled("training_args.bin"),
    ),
    Case("pickle of an optimizer", InputError, r"'optimizer\.PT': a pickle", pickled("optimizer.PT")),
    Case("pickle called safetensors", InputError, "found one that claims", pickled(WEIGHTS_FILE)),
    Case("pickle called a config", IntegrityError, "expected UTF-8", pickled(CONFIG_FILE)),
    Case("python module", InputError, r"'modeling\.py': code", file("modeling.py", b"import os; os.mkdir('canary')")),
    Case("shared library", InputError, r"'torch\.so': code", file("torch.so")),
    Case("hidden file", InputError, r"'\.env': a hidden name", file(".env")),
    Case("hidden folder", InputError, r"'\.git': a hidden name", lambda folder: (folder / ".git").mkdir()),
    Case("folder", InputError, r"'original': a name that is not on the list", lambda f: (f / "original").mkdir()),
    Case("folder called as a file", InputError, r"'README\.md': a folder", lambda f: (f / "README.md").mkdir()),
    Case(
        "link for the config",
        InputError,
        r"'adapter_config\.json': a symbolic link",
        linked(CONFIG_FILE, Path.symlink_to),
    ),
    Case("link for the weights", InputError, r"safetensors': a symbolic link", linked(WEIGHTS_FILE, Path.symlink_to)),
    Case(
        "link to a secret",
        InputError,
        r"'LICENSE': a symbolic link",
        lambda f: (f / "LICENSE").symlink_to("/etc/passwd"),
    ),
    Case(
        "link to nothing", InputError, r"'NOTICE': a symbolic link", lambda f: (f / "NOTICE").symlink_to("../nothing")
    ),
    Case("hard link", InputError, "one of several hard links", linked(WEIGHTS_FILE, Path.hardlink_to)),
    Case("pipe", InputError, r"'README\.md': a pipe", lambda folder: os.mkfifo(folder / "README.md")),
    Case("socket", InputError, "a socket", lambda folder: os.mknod(folder / "README.md", stat.S_IFSOCK | 0o600)),
    Case("case trick beside", InputError, "differ in case", file("Adapter_Config.json", b"{}")),
    Case(
        "case trick instead",
        InputError,
        r"'ADAPTER_MODEL\.safetensors': which is not adapter_model\.safetensors",
        lambda folder: (folder / WEIGHTS_FILE).rename(folder / "ADAPTER_MODEL.safetensors"),
    ),
    Case(
        "letter of another script",
        InputError,
        r"adapter_c\\u043enfig\.json.*looks like",
        file("adapter_c\u043enfig.json"),
    ),
    Case("path in a name", InputError, "means a path elsewhere", file("x\\..\\..\\evil.json")),
    Case("terminal codes in a name", InputError, r"\\x1b\[2J", file("\x1b[2JREADME.md")),
    Case("name that is not UTF-8", InputError, r"udcff", file(b"\xff.json")),
    Case("second weights file", InputError, "a second weights file", file("model-00002.safetensors")),
    Case("archive", InputError, "an archive", file("weights.tar.gz")),
    Case("file of no kind", InputError, r"'notes\.csv': a name that is not on the list", file("notes.csv")),
    Case("no config", InputError, r"found no adapter_config\.json", lambda folder: (folder / CONFIG_FILE).unlink()),
    Case(
        "no weights",
        InputError,
        r"found no adapter_model\.safetensors",
        lambda folder: (folder / WEIGHTS_FILE).unlink(),
    ),
]

CONFIGS = [
    Case("no JSON", IntegrityError, "expected JSON, found an error at position", config_text(lambda text: text[:-3])),
    Case("a list", IntegrityError, r"expected a JSON object, found \[", config_text(lambda text: f"[{text}]")),
    Case(
        "a key twice", IntegrityError, "the key 'r' twice", config_text(lambda text: text.replace("{", '{"r": 8, ', 1))
    ),
    Case("nested without end", IntegrityError, "JSON nested too deeply", config_text(lambda text: DEEP)),
    Case("nested", IntegrityError, "nested more than 3 deep", config(eva_config={"a": [[1]]})),
    Case("NaN", IntegrityError, "found NaN, which is not JSON", config(lora_alpha=float("nan"))),
    Case(
        "infinite alpha",
        InputError,
        "lora_alpha.*found inf",
        config_text(lambda text: text.replace('"lora_alpha": 8', '"lora_alpha": 1e999')),
    ),
    Case("negative alpha", InputError, "lora_alpha.*found -8", config(lora_alpha=-8)),
    Case("alpha of 0", InputError, "lora_alpha to be a finite number above 0.*found 0", config(lora_alpha=0)),
    Case("alpha beyond measure", InputError, "lora_alpha.*found 1000000", config(lora_alpha=1_000_000)),
    Case("alpha as text", InputError, "lora_alpha.*found '8'", config(lora_alpha="8")),
    Case(
        "alpha of a pattern", InputError, "alpha_pattern to be numbers above 0", config(alpha_pattern={"q_proj": 1e9})
    ),
    Case("rank 0", InputError, "r to be a rank.*found 0", config(r=0)),
    Case("rank beyond the servers'", InputError, "from 1 to 512; found 513", config(r=513)),
    Case("rank of 400 digits", InputError, r"r to be a rank.*found 1000+\.\.\.0+", config(r=10**400)),
    Case("rank true", InputError, "r to be a rank.*found True", config(r=True)),
    Case("rank of a pattern", InputError, "rank_pattern to be ranks", config(rank_pattern={"q_proj": -1})),
    Case("no rank", InputError, "found no r", without("r")),
    Case("another method", InputError, "peft_type to be LORA.*'IA3'", config(peft_type="IA3")),
    Case("unknown method", InputError, "peft_type to be LORA.*'EVIL'", config(peft_type="EVIL")),
    Case("another task", InputError, "task_type to be CAUSAL_LM.*'SEQ_CLS'", config(task_type="SEQ_CLS")),
    Case("saved modules", InputError, "modules_to_save = .'lm_head'.", config(modules_to_save=["lm_head"])),
    Case(
        "remote code",
        InputError,
        "auto_mapping = .*a Python class to import",
        config(auto_mapping={"base_model_class": "E", "parent_library": "modeling"}),
    ),
    Case("DoRA", InputError, "use_dora = True: DoRA scales", config(use_dora=True)),
    Case("biases", InputError, "bias to be none.*'lora_only'", config(bias="lora_only")),
    Case("biases of LoRA", InputError, "lora_bias = True", config(lora_bias=True)),
    Case("PiSSA", InputError, "init_lora_weights.*'pissa'", config(init_lora_weights="pissa")),
    Case("LoftQ", InputError, "loftq_config = .*changes the base weight", config(loftq_config={"loftq_bits": 4})),
    Case("CorDA", InputError, "CorDA changes the base", config(corda_config={"covariance_file": "/etc/passwd"})),
    Case("replicated layers", InputError, "layer_replication", config(layer_replication=[[0, 2], [0, 2]])),
    Case("trained tokens", InputError, "trainable_token_indices", config(trainable_token_indices=[1, 2])),
    Case("bare parameters", InputError, "target_parameters", config(target_parameters=["experts.w"])),
    Case("Megatron", InputError, "megatron_config", config(megatron_config={"a": 1})),
    Case("routed adapters", InputError, "arrow_config", config(arrow_config={"top_k": 3})),
    Case("transposed layers", InputError, "fan_in_fan_out", config(fan_in_fan_out=True)),
    Case("unknown setting that is on", InputError, "'use_evil' = 1, which nobody here knows", config(use_evil=1)),
    Case("remote code by another key", InputError, "'trust_remote_code' = True", config(trust_remote_code=True)),
    Case(
        "regular expression of targets",
        InputError,
        "target_modules to be all-linear, or a list",
        config(target_modules="(.*)*q_proj"),
    ),
    Case(
        "endless regular expression",
        InputError,
        "target_modules.*no other regular",
        config(target_modules=["(a+)+$", "q_proj"]),
    ),
    Case("endless pattern of ranks", InputError, r"rank_pattern.*\(a\+\)\+", config(rank_pattern={"(a+)+b": 4})),
    Case(
        "more patterns than layers",
        InputError,
        "at most one entry for each of 2 adapted layers in alpha_pattern, found 300",
        config(alpha_pattern={f"m{i}": 8 for i in range(300)}),
    ),
    Case(
        "embeddings as targets",
        InputError,
        "found 'embed_tokens', which is none",
        config(target_modules=["q_proj", "embed_tokens"]),
    ),
    Case(
        "tied head as target",
        InputError,
        "found 'lm_head', which is none",
        config(target_modules=["lm_head", "q_proj"]),
    ),
    Case("layers of another base", InputError, "found 'c_attn', which is none", config(target_modules=["c_attn"])),
    Case("no targets", InputError, r"target_modules.*found \[\]", config(target_modules=[])),
    Case("all excluded", InputError, "found none left of target_modules", config(exclude_modules=["q_proj"])),
    Case("layers that are not there", InputError, "expected layers to adapt", config(layers_to_transform=[7])),
    Case("pattern of layers", InputError, "layers_pattern", config(layers_pattern="(h+)+")),
    Case(
        "terminal codes in the base's name",
        InputError,
        r"base_model_name_or_path.*\\x1b",
        config(base_model_name_or_path="\x1b[31m"),
    ),
    Case(
        "a start that is no text",
        InputError,
        r"init_lora_weights.*found \['pissa'\]",
        config(init_lora_weights=["pissa"]),
    ),
]

HEADERS = [
    Case("seven bytes", IntegrityError, "found 7 bytes", lambda f: (f / WEIGHTS_FILE).write_bytes(b"\x00" * 7)),
    Case("empty file", IntegrityError, "found 0 bytes", lambda f: (f / WEIGHTS_FILE).write_bytes(b"")),
    Case(
        "header beyond the file",
        IntegrityError,
        "bytes, as it says, found",
        lambda f: weights_file(f, "{}", b"", claimed=9000),
    ),
    Case(
        "cut in the payload",
        IntegrityError,
        "outside the file",
        lambda f: (f / WEIGHTS_FILE).write_bytes((f / WEIGHTS_FILE).read_bytes()[:-8]),
    ),
    Case("header that is no JSON", IntegrityError, "the header: expected JSON", header_text(lambda text: text[:-1])),
    Case(
        "header that begins elsewhere",
        IntegrityError,
        "expected it to begin with {",
        header_text(lambda text: " " + text),
    ),
    Case(
        "header that is not UTF-8",
        IntegrityError,
        "the header: expected UTF-8",
        lambda f: weights_file(f, b'{"\xff": 1}', b""),
    ),
    Case(
        "tensor twice",
        IntegrityError,
        "the key .* twice; remove",
        header_text(lambda text: text[:-1] + f', "{A0}": {{}}}}'),
    ),
    Case(
        "header nested",
        IntegrityError,
        "found it nested more than 3",
        header(lambda found: found[A0].update(shape=[[[1]]])),
    ),
    Case(
        "header nested without end",
        IntegrityError,
        "the header: expected JSON, found JSON nested",
        header_text(lambda text: '{"a":' + DEEP[:10_000] + "1" + DEEP[-10_000:] + "}"),
    ),
    Case("too many tensors", InputError, "expected at most 28 tensors", header(many_tensors)),
    Case(
        "notes that are no text",
        IntegrityError,
        "__metadata__ to hold text",
        header(lambda found: found.update(__metadata__={"a": 1})),
    ),
    Case(
        "entry with a key too many",
        IntegrityError,
        "expected dtype, shape and data_offsets",
        entry(A0, code="import os"),
    ),
    Case(
        "entry that is a number", IntegrityError, "data_offsets, found 7", header(lambda found: found.update({A0: 7}))
    ),
    Case("dtype of double width", InputError, "found dtype 'F64'", entry(A0, dtype="F64")),
    Case("quantised", InputError, "found dtype 'I8'", entry(A0, dtype="I8")),
    Case("dtype that is a list", InputError, r"found dtype \['F32'\]", entry(A0, dtype=["F32"])),
    Case("half of the bytes", IntegrityError, "256 bytes apart for F16", entry(A0, dtype="F16")),
    Case("negative shape", IntegrityError, r"numbers above 0, found \[-4, -32\]", entry(A0, shape=[-4, -32])),
    Case(
        "empty tensor",
        IntegrityError,
        r"numbers above 0, found \[0, 32\]",
        entry(A0, shape=[0, 32], data_offsets=[0, 0]),
    ),
    Case("fractions as a shape", IntegrityError, r"numbers above 0, found \[4.0, 32\]", entry(A0, shape=[4.0, 32])),
    Case("shape that overflows", IntegrityError, "bytes apart for F32 of its shape", entry(A0, shape=[HUGE, HUGE])),
    Case(
        "shape that wraps to the right size",
        IntegrityError,
        r"apart for F32 of its shape",
        entry(A0, shape=[2**62 + 128, 4]),
    ),
    Case("shape of 400 digits", IntegrityError, "at most 8 numbers above 0", entry(A0, shape=[10**400] * 4)),
    Case("shape of 1,000 sides", IntegrityError, "at most 8 numbers above 0", entry(A0, shape=[2] * 1000)),
    Case(
        "offset of 4,000 digits",
        IntegrityError,
        r"below 2.*found \[0, 1000+\.\.\.",
        entry(A0, data_offsets=[0, 10**4000]),
    ),
    Case("offsets that overflow", IntegrityError, "numbers from 0, below 2", entry(A0, data_offsets=[0, 2**64 + 512])),
    Case("negative offsets", IntegrityError, "two whole numbers from 0", entry(A0, data_offsets=[-512, 0])),
    Case("three offsets", IntegrityError, r"two whole numbers.*found \[0, 1, 2\]", entry(A0, data_offsets=[0, 1, 2])),
    Case("offsets backwards", IntegrityError, "end after they begin", entry(A0, data_offsets=[512, 0])),
    Case(
        "overlapping tensors",
        IntegrityError,
        "overlaps another tensor",
        header(lambda found: found[A1].update(data_offsets=found[A0]["data_offsets"])),
    ),
    Case("a hole", IntegrityError, "a hole before it", header(shifted(512), more=bytes(512))),
    Case("tensors outside the file", IntegrityError, "outside the file", header(shifted(10**6))),
    Case(
        "bytes after the last tensor",
        IntegrityError,
        "64 bytes after it that belong to none",
        header(lambda found: None, more=b"#!/bin/sh\n".ljust(64)),
    ),
]

WEIGHTS = [
    Case("a factor missing", IntegrityError, r"found no .*layers\.1.*lora_B", tensors(lambda found: found.pop(B1))),
    Case(
        "a layer missing",
        IntegrityError,
        r"found no .*layers\.1.*lora_A",
        tensors(lambda found: [found.pop(A1), found.pop(B1)]),
    ),
    Case("no tensors", IntegrityError, r"found no .*layers\.0.*lora_A", lambda f: weights_file(f, "{}", b"")),
    Case(
        "a layer that is no target",
        InputError,
        "which target_modules does not name",
        added("base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight", 4, 32),
    ),
    Case(
        "a layer of another base",
        InputError,
        "no such linear layer",
        added("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", 4, 32),
    ),
    Case(
        "resized embeddings",
        InputError,
        "embed_tokens.*resized",
        added("base_model.model.model.embed_tokens.weight", 330, 32),
    ),
    Case("a saved head", InputError, "lm_head.*trained or resized", added("base_model.model.lm_head.weight", 320, 32)),
    Case(
        "embeddings of LoRA",
        InputError,
        "lora_embedding_A.*resized",
        added("base_model.model.model.tokens.lora_embedding_A", 4, 320),
    ),
    Case(
        "magnitudes of DoRA",
        InputError,
        "lora_magnitude_vector.*no factor of plain LoRA",
        added(f"base_model.model.{Q0}.lora_magnitude_vector", 32),
    ),
    Case("a bias", InputError, r"lora_B\.bias.*no factor", added(f"base_model.model.{Q0}.lora_B.bias", 32)),
    Case(
        "a weight of the base",
        InputError,
        r"q_proj\.weight', which is no factor",
        added(f"base_model.model.{Q0}.weight", 32, 32),
    ),
    Case(
        "an adapter's name inside",
        InputError,
        r"lora_A\.default\.weight.*no factor",
        tensors(lambda found: found.update({A0.replace("A.", "A.default."): found.pop(A0)})),
    ),
    Case(
        "names without prefix",
        InputError,
        "found 'model.layers.0.*target_modules does not",
        tensors(lambda found: found.update({A0[17:]: found.pop(A0)})),
    ),
    Case("rank unlike the config's", IntegrityError, r"expected rank 8 for .*q_proj", config(r=8)),
    Case("ranks of A and B differ", IntegrityError, r"equal in A and B; found shape \(32, 3\)", tensors(unpadded)),
    Case(
        "transposed",
        InputError,
        r"lora_A\.weight of shape \(4, 32\).*found \(32, 4\)",
        tensors(lambda found: found.update({A0: found[A0].T})),
    ),
    Case(
        "inputs of another base",
        InputError,
        r"found \(4, 48\)",
        tensors(lambda found: found.update({A0: torch.ones(4, 48)})),
    ),
    Case(
        "three dimensions",
        InputError,
        r"found \(4, 32, 1\)",
        tensors(lambda found: found.update({A0: found[A0][..., None]})),
    ),
    Case("NaN in a weight", IntegrityError, "NaN or infinity in .*lora_A", value(A0, float("nan"))),
    Case("infinity in a weight", IntegrityError, "NaN or infinity in .*lora_B", value(B1, -float("inf"))),
    Case("a delta larger than its weight", InputError, "at most 1 of its weight's norm, found", scaled(a=30.0, b=30.0)),
    Case(
        "a delta made large by alpha",
        InputError,
        "weight's norm, found .*alpha",
        config(alpha_pattern={"layers.0.self_attn.q_proj": 4000}),
    ),
    Case("values that overflow in half", InputError, "values of at most 1,024 in magnitude", scaled(a=1e7, b=1e-9)),
    Case(
        "nothing in it",
        InputError,
        "every delta to be 0",
        tensors(lambda found: [found[B0].zero_(), found[B1].zero_()]),
    ),
]

TOKENIZERS = [
    Case(
        "more tokens",
        InputError,
        r"tokenizer\.json: expected tokens below 320.*found token 320",
        file("tokenizer.json", b'{"model": {"vocab": {"a": 319, "b": 320}}}'),
    ),
    Case(
        "added tokens",
        InputError,
        "found token 321",
        file("tokenizer.json", b'{"added_tokens": [{"id": 321, "content": "x"}]}'),
    ),
    Case("a file of added tokens", InputError, "found token 322", file("added_tokens.json", b'{"x": 322}')),
    Case(
        "added tokens of the config",
        InputError,
        "found token 323",
        file("tokenizer_config.json", b'{"added_tokens_decoder": {"323": {}}}'),
    ),
    Case(
        "tokens of a billion digits",
        IntegrityError,
        "expected the number of a token",
        file("vocab.json", b'{"x": 1e999999999}'),
    ),
    Case(
        "tokenizer nested without end",
        IntegrityError,
        "nested more than 32 deep",
        file("tokenizer.json", DEEP.encode()),
    ),
    Case(
        "tokenizer that is no JSON",
        IntegrityError,
        "expected the JSON of a tokenizer",
        file("tokenizer.json", b"cos\nsystem\n"),
    ),
]

BOMBS = [
    Case("config of a gigabyte", InputError, r"adapter_config\.json: expected at most", sparse(CONFIG_FILE, 2**30)),
    Case("weights of 8 gigabytes", InputError, r"safetensors: expected at most", sparse(WEIGHTS_FILE, 2**33)),
    Case(
        "tokenizer of a gigabyte",
        InputError,
        r"vocab\.json: expected at most",
        both(file("vocab.json"), sparse("vocab.json", 2**30)),
    ),
    Case("header of 2**63 bytes", InputError, "claims 9,223", lambda f: weights_file(f, "{}", b"", claimed=2**63)),
    Case("header of a megabyte", InputError, "claims 1,048,576", lambda f: weights_file(f, " " * 2**20, b"")),
    Case(
        "header full of lists",
        IntegrityError,
        r"expected dtype, shape and data_offsets, found .\[\], ",
        lambda f: weights_file(f, '{"a":[' + "[]," * 20_000 + "[]]}", b""),
    ),
    Case(
        "one tensor of 4 exabytes",
        IntegrityError,
        "bytes apart|outside",
        entry(A0, shape=[2**30, 2**30], data_offsets=[0, 2**62]),
    ),
]

CASES = [*FILES, *CONFIGS, *HEADERS, *WEIGHTS, *TOKENIZERS, *BOMBS]


def _named(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@_named(CASES)
def test_it_is_refused_with_its_reason_and_nothing_is_written(case: Case, good: Path, tiny_model_dir: Path) -> None:
    case.apply(good)
    before = _names(good.parent)
    with pytest.raises(case.error, match=case.words) as refused:
        import_foreign(good, tiny_model_dir, good.parent / "out" / "imported")
    said = str(refused.value)
    assert "expected" in said and "found" in said and said.endswith((".", "/"))
    assert said.isprintable(), "a stranger's text must not reach a terminal as it is"
    assert _names(good.parent) == before, "nothing was written, and no canary says that code ran"


@_named(BOMBS)
def test_no_memory_is_spent_on_what_a_file_claims(case: Case, good: Path, tiny_model_dir: Path) -> None:
    check_foreign(good, tiny_model_dir)  # what is imported on first use is not the bomb's
    case.apply(good)
    tracemalloc.start()
    try:
        with pytest.raises(case.error):
            check_foreign(good, tiny_model_dir)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20


def test_the_cases_are_many_and_each_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60


def test_the_canary_sings_when_a_pickle_is_loaded(good: Path) -> None:
    pickled("weights.pkl")(good)
    pickle.loads((good / "weights.pkl").read_bytes())
    assert (good.parent / "canary").is_dir()


def test_the_folder_that_every_case_breaks_is_good(good: Path, tiny_model_dir: Path) -> None:
    import_foreign(good, tiny_model_dir, good.parent / "imported")
    assert sorted(path.name for path in (good.parent / "imported").iterdir()) == sorted(
        [CONFIG_FILE, WEIGHTS_FILE, IMPORT_FILE, "manifest.json"]
    )


@pytest.mark.parametrize("kind", ["nothing", "a file"])
def test_what_is_no_folder(kind: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    if kind == "a file":
        (tmp_path / "adapter").write_text("{}")
    with pytest.raises(InputError, match="expected the folder of a PEFT adapter"):
        check_foreign(tmp_path / "adapter", tiny_model_dir)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A plain adapter of rank 4 on both query projections of the tiny model, well within every bound."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(
        {name: torch.randn(4, 32, generator=generator) * 0.05 for name in (A0, A1)}
        | {name: torch.randn(32, 4, generator=generator) * 0.05 for name in (B0, B1)},
        folder / WEIGHTS_FILE,
    )
    plain = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / CONFIG_FILE).write_text(json.dumps({**plain, "base_model_name_or_path": "org/tiny"}))
    return folder


def _names(folder: Path) -> list[str]:
    return sorted(ascii(path.relative_to(folder)) for path in folder.rglob("*"))
