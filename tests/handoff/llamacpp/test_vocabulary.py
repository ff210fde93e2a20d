"""Tokenizers are written under the name of their splitting, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from incremental_llm.errors import InputError
from incremental_llm.handoff.llamacpp.vocabulary import check_vocabulary, split_name


def written(pre_tokenizer: Any, normalizer: Any = None, **options: Any) -> dict[str, Any]:
    """The tokenizer.json of an empty BPE tokenizer that splits this way."""
    backend = Tokenizer(models.BPE(**options))
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    return json.loads(backend.to_str())


def test_a_splitting_has_llamacpps_name(splitting: tuple[str, Any]) -> None:
    name, pre_tokenizer = splitting
    assert split_name(written(pre_tokenizer)) == name
    assert split_name(written(pre_tokenizer, normalizers.NFC())) == name


def level(**options: Any) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **options)


def split(pattern: str, behavior: str = "isolated") -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior), level(use_regex=False)])


@pytest.mark.parametrize(
    "other",
    [
        written(pre_tokenizers.Metaspace()),
        written(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        written(level(use_regex=False)),
        written(split(r"\s+")),
        written(split(r"\s+", "removed")),
        written(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), level()])),
        written(level(), normalizers.Lowercase()),
        written(level(), byte_fallback=True),
        json.loads(Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).to_str()),
    ],
)
def test_another_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected a byte-level BPE tokenizer that splits text as"):
        split_name(other)


def test_a_folder_without_a_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"without tokenizer\.json"):
        check_vocabulary(tmp_path)
