"""A tokenizer as GGUF holds it: its tokens and merges, how text is split before merging, and the chat template.

llama.cpp splits text by a pattern that it knows under a name; the name is found here by the shape of the tokenizer's
own splitting, and a tokenizer whose splitting has no name here is refused: near enough would answer, and answer worse.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from incremental_llm.adapters.load import load_tokenizer
from incremental_llm.errors import InputError

# Patterns of byte-level vocabularies by the name that llama.cpp knows them under (src/llama-vocab.cpp).
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe", rf"{_WORDS}|\p{{N}}|{_REST}": "qwen2"}


def write_vocabulary(writer: Any, folder: Path, size: int) -> None:
    """Write the tokenizer saved in `folder`, filled up with unused tokens to the `size` of the embedding.

    Raises:
        InputError: a kind of tokenizer that is not written.
    """
    tokenizer, written = load_tokenizer(folder), _read(folder)
    writer.add_tokenizer_model("gpt2")  # byte-level BPE, whatever the model
    writer.add_tokenizer_pre(split_name(written))
    added = {token["id"]: token for token in written["added_tokens"]}
    words = {number: word for word, number in tokenizer.get_vocab().items()}
    if len(words) > size or max(words) >= size:
        raise InputError(
            f"expected at most {size} tokens, as the embedding has, found {len(words)}, the last of them number "
            f"{max(words)}. Tokenizer and weights are not of the same model."
        )
    # GGUF has no gaps: a number without a word gets a name that no text can hold.
    writer.add_token_list([words.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types([_kind(words.get(number), added.get(number)) for number in range(size)])
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=size)
    special.add_special_token["bos"] = _begins_with_bos(tokenizer)
    special.chat_template = tokenizer.chat_template
    special.add_to_gguf(writer, quiet=True)


def check_vocabulary(folder: Path) -> None:
    """Raises InputError for a kind of tokenizer that is not written."""
    split_name(_read(folder))


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise _refused("a folder without tokenizer.json")
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def split_name(written: Mapping[str, Any]) -> str:
    """llama.cpp's name for how the tokenizer of a tokenizer.json splits text.

    Raises:
        InputError: it has none that is known here.
    """
    model, normalizer = written["model"], written.get("normalizer")
    if model["type"] != "BPE" or model.get("byte_fallback") or (normalizer or {}).get("type") not in (None, "NFC"):
        raise _refused(f"a {model['type']} tokenizer with normalizer {json.dumps(normalizer)}")
    steps = written["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    shape = [step.get("type") for step in steps]
    if shape[-1] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        raise _refused(json.dumps(steps))
    own_pattern = steps[-1].get("use_regex", True)
    if shape == ["ByteLevel"] and own_pattern:
        return "gpt-2"
    if shape == ["Digits", "ByteLevel"] and own_pattern and steps[0]["individual_digits"]:
        return "smollm"
    pattern = steps[0]["pattern"].get("Regex") if shape == ["Split", "ByteLevel"] and not own_pattern else None
    if pattern not in _SPLITS or steps[0]["behavior"] != "Isolated" or steps[0]["invert"]:
        raise _refused(json.dumps(steps))
    return _SPLITS[pattern]


def _refused(found: str) -> InputError:
    return InputError(
        "expected a byte-level BPE tokenizer that splits text as GPT-2, SmolLM, Llama 3 or Qwen 2 do, for GGUF, found "
        f"{found}. Export it as merged and convert that folder with llama.cpp's own convert_hf_to_gguf.py."
    )


def _kind(word: str | None, added: Mapping[str, Any] | None) -> gguf.TokenType:
    if word is None:
        return gguf.TokenType.UNUSED
    if added is None:
        return gguf.TokenType.NORMAL
    return gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED


def _begins_with_bos(tokenizer: Any) -> bool:
    """Whether plain text gets a first token; raises InputError where it gets others than that."""
    plain, whole = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
    if whole == plain:
        return False
    if whole == [tokenizer.bos_token_id, *plain]:
        return True
    raise _refused(f"one that turns {plain} into {whole} to mark its beginning and end")
