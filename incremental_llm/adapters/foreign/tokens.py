"""Tokenizer files that came with an adapter: none is used, and one that has tokens of its own is refused.

An adapter that was trained with more tokens than the base has embeddings is not an adapter of that base, whatever its
tensors are called. The files are read as a stream and held to a depth: a vocabulary is some ten megabytes, and JSON
can be made to need a hundred times its size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from incremental_llm.adapters.foreign.folder import TOKENIZER_FILES, ForeignFolder
from incremental_llm.adapters.foreign.quote import quoted
from incremental_llm.artifacts import file_digest
from incremental_llm.errors import InputError, IntegrityError

_LARGEST = 64 * 1024 * 1024
_DEEPEST = 32


def differing_tokenizer_files(folder: ForeignFolder, base_folder: Path, vocabulary: int) -> tuple[str, ...]:
    """Names of the tokenizer files that are not those of the base, byte for byte.

    Raises:
        InputError: one with a token beyond the base's `vocabulary`, or too large.
        IntegrityError: one that is no JSON.
    """
    different = []
    for name in sorted(folder.names & TOKENIZER_FILES):
        with folder.open(name, _LARGEST) as (stream, _):
            digest, own = hashlib.file_digest(stream, "sha256").hexdigest(), base_folder / name  # type: ignore[arg-type]
            if own.is_file() and file_digest(own) == digest:
                continue
            different.append(name)
            if name in _TOKEN_PLACES:
                stream.seek(0)
                _require_known_tokens(stream, name, folder.path / name, vocabulary)
    return tuple(different)


def _require_known_tokens(stream: BinaryIO, name: str, path: Path, vocabulary: int) -> None:
    import ijson

    try:
        highest = max(_tokens(stream, name), default=-1)
    except (ijson.JSONError, ValueError) as error:
        raise IntegrityError(
            f"{path}: expected the JSON of a tokenizer, found something else ({quoted(str(error))}). It is not used: "
            "leave it out."
        ) from error
    if highest >= vocabulary:
        raise InputError(
            f"{path}: expected tokens below {vocabulary:,}, the embeddings of the base, found token {quoted(highest)}. "
            "The adapter was trained on a resized base: train it again with the base's own tokenizer."
        )


_TOKEN_PLACES = {
    "tokenizer.json": (("added_tokens", "", "id"), ("model", "vocab", "*")),
    "tokenizer_config.json": (("added_tokens_decoder", "*"),),
    "added_tokens.json": (("*",),),
    "vocab.json": (("*",),),
}
"""Where a file names tokens, as the path of keys: "" is an element of a list, "*" any key. The value is the number of a
token, but for `added_tokens_decoder`, whose keys are."""


def _tokens(stream: BinaryIO, name: str) -> Iterator[int]:
    """The numbers of all tokens that a file names."""
    import ijson

    by_key = name == "tokenizer_config.json"
    path: list[str] = []
    for event, value in ijson.basic_parse(stream):
        if event == "map_key":
            path[-1] = value
        elif event in ("start_map", "start_array"):
            path.append("")
            if len(path) > _DEEPEST:
                raise ValueError(f"nested more than {_DEEPEST} deep")
        elif event in ("end_map", "end_array"):
            path.pop()
        if event == ("map_key" if by_key else "number") and _at_token(name, path):
            yield _number(value)


def _number(value: Any) -> int:
    """Never by way of a decimal: 1e999999999 has a billion digits as a whole number."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"expected the number of a token, found {value!r}")
    return int(value)


def _at_token(name: str, path: list[str]) -> bool:
    return any(
        len(place) == len(path) and all(want in ("*", key) for want, key in zip(place, path, strict=True))
        for place in _TOKEN_PLACES[name]
    )
