"""A rephrasing by meaning: what words do not find the same they propose, and a tiny model made here decides."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from model2vec import StaticModel
from tokenizers import Tokenizer, models, pre_tokenizers

from incremental_llm.dataset import embeddings, rephrases
from incremental_llm.errors import InputError

FIRST, AGAIN, OTHER = (
    "What does delivery to Norway cost?",
    "What does shipping to Norway cost?",
    "What does it cost to send boots to Norway?",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Delivery and shipping are one direction, all other words another small one."""
    words = ["[UNK]", "[PAD]", "delivery", "shipping", "norway", "cost", "what", "does", "to", "me", "?"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    vectors = np.full((len(words), 2), 0.01, dtype=np.float32)
    vectors[2:4] = [0.0, 1.0]
    vectors[4:] = [0.1, 0.0]
    folder = tmp_path_factory.mktemp("model")
    StaticModel(vectors, tokenizer).save_pretrained(folder)
    return str(folder)


def asked_twice(log, first: str, second: str) -> None:
    log.served("i1", first, "14 days", conversation="c")
    log.served("i2", second, "30 days", conversation="c", after=60)


def test_other_words_of_one_meaning_are_a_rephrasing_for_the_model_alone(log, model):
    asked_twice(log, FIRST, AGAIN)
    assert log.compile().examples == ()
    dataset = log.compile(rephrase_embeddings=model)
    assert [(pair.chosen, pair.rejected) for pair in dataset.pairs] == [("30 days", "14 days")]


def test_what_the_model_finds_apart_is_no_rephrasing(log, model):
    asked_twice(log, FIRST, OTHER)
    assert log.compile(rephrase_embeddings=model).examples == ()
    assert log.compile(rephrase_embeddings=model, rephrase_cosine_min=-1).pairs


def test_what_words_find_the_same_needs_no_model(log, model, monkeypatch):
    monkeypatch.setattr(rephrases, "cosine", None)
    asked_twice(log, "How long is the warranty on boots?", "How many years is the warranty on boots?")
    assert log.compile(rephrase_embeddings=model).pairs


def test_what_shares_no_words_is_never_shown_to_the_model(log, model, monkeypatch):
    monkeypatch.setattr(rephrases, "cosine", None)
    asked_twice(log, FIRST, "Is shipping fast enough tomorrow morning?")
    assert log.compile(rephrase_embeddings=model, rephrase_proposal_min=60).examples == ()


def test_equal_questions_are_no_rephrasing(log, model):
    asked_twice(log, FIRST, FIRST.lower())
    assert log.compile(rephrase_embeddings=model, rephrase_cosine_min=-1).examples == ()


def test_a_text_without_a_known_word_is_like_no_other(model):
    assert embeddings.cosine(model, "", FIRST) == 0.0
    assert embeddings.cosine(model, FIRST, FIRST) == pytest.approx(1.0)


def test_a_missing_extra_says_which(log, monkeypatch):
    embeddings._model.cache_clear()
    monkeypatch.setitem(sys.modules, "model2vec", None)
    asked_twice(log, FIRST, AGAIN)
    with pytest.raises(InputError, match=r"pip install 'incremental_llm\[embeddings\]'"):
        log.compile(rephrase_embeddings="somewhere")


def test_a_name_is_not_looked_for_on_the_network(log, tmp_path: Path):
    asked_twice(log, FIRST, AGAIN)
    with pytest.raises(InputError, match="expected a folder with a model2vec model, found none"):
        log.compile(rephrase_embeddings=str(tmp_path / "minishlab"))


def test_one_reply_to_questions_of_one_meaning_is_one_example(log, model):
    log.corrected("k1", log.served("i1", FIRST), "It costs 9 EUR.", "r1")
    log.corrected("k2", log.served("i2", AGAIN), "It costs 9 EUR", "r2")
    log.corrected("k3", log.served("i3", OTHER), "It costs 9 EUR.", "r2")
    apart = log.compile()
    assert [e.sources for e in apart.sft] == [("i1", "k1"), ("i2", "k2"), ("i3", "k3")]
    dataset = log.compile(duplicate_embeddings=model)
    assert [(e.sources, e.users, e.weight) for e in dataset.sft] == [
        (("i1", "k1", "i2", "k2"), ("r1", "r2"), 1.25),
        (("i3", "k3"), ("r2",), 1.0),
    ]
    assert dataset.drop_counts() == {"semantic_duplicate": 2}
    assert set(dataset.account.values()) == {"used"} and len(dataset.corrections) == 3
    assert len(log.compile(duplicate_embeddings=model, duplicate_cosine_min=-1).sft) == 1


def test_another_reply_number_or_earlier_turn_is_another_example(log, model):
    before = [{"role": "user", "content": "Hello, I live in Norway"}, {"role": "assistant", "content": "Nice."}]
    log.corrected("k1", log.served("i1", FIRST), "It costs 9 EUR.", "r1")
    log.corrected("k2", log.served("i2", AGAIN), "It costs 12 EUR.", "r1")
    log.corrected("k3", log.served("i3", AGAIN.replace("to", "to 2 in")), "It costs 9 EUR.", "r1")
    log.corrected(
        "k4", log.served("i4", messages=[*before, {"role": "user", "content": AGAIN}]), "It costs 9 EUR.", "r1"
    )
    assert len(log.compile(duplicate_embeddings=model, duplicate_cosine_min=-1).sft) == 4


def test_the_first_that_stands_for_itself_is_the_one_that_is_repeated(model):
    texts = ["delivery", "norway", "shipping", "cost", "delivery delivery"]
    assert embeddings.first_alike(model, texts, 0.9) == [0, 1, 0, 1, 0]
    assert embeddings.first_alike(model, texts, 1.01) == [0, 1, 2, 3, 4]
