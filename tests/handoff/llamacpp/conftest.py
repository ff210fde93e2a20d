"""llama.cpp itself, where it is installed (the package xllamacpp carries it)."""

from __future__ import annotations

import copy
import json
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM, Qwen2Config


class LlamaCpp:
    """A server of llama.cpp in this process, on one thread."""

    def __init__(self, model: Path, lora: Path | None = None) -> None:
        xllamacpp = pytest.importorskip("xllamacpp", reason="runs the real llama.cpp: pip install xllamacpp")
        given = xllamacpp.CommonParams()
        given.model.path = str(model)
        given.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)] if lora else []
        given.n_ctx, given.n_parallel, given.n_gpu_layers, given.port, given.verbosity = 512, 1, 0, 0, 0
        given.warmup = given.fit_params = given.cache_prompt = False
        given.use_jinja = True
        given.cache_type_k = given.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # fp16 unless told otherwise
        given.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        given.cpuparams.n_threads = given.cpuparams_batch.n_threads = 1
        self._server = xllamacpp.Server(given)

    def log_probabilities(self, ids: Sequence[int], vocabulary: int) -> torch.Tensor:
        """Of every token to follow `ids`.

        They are those before sampling, which here has to draw a letter: of half a character nothing is told.
        """
        letter = self.tokenize("a")[0]
        asked = {"prompt": list(ids), "n_predict": 1, "n_probs": vocabulary, "logit_bias": [[letter, 1e6]]}
        (first,) = self.post("completion", asked)["completion_probabilities"]
        found = torch.full((vocabulary,), float("nan"))
        for token in first["top_logprobs"]:
            found[token["id"]] = token["logprob"]
        return found

    def greedy(self, ids: Sequence[int], tokens: int) -> list[int]:
        """The most likely tokens to follow `ids`."""
        asked = {
            "prompt": list(ids),
            "n_predict": tokens,
            "temperature": 0.0,
            "return_tokens": True,
            "ignore_eos": True,
        }
        return list(self.post("completion", asked)["tokens"])

    def chat(self, messages: list[dict[str, str]], tokens: int) -> str:
        """The greedy answer to a conversation, through the template in the file."""
        asked = {"messages": messages, "max_tokens": tokens, "temperature": 0.0}
        return str(self._server.handle_chat_completions(asked)["choices"][0]["message"]["content"])

    def post(self, endpoint: str, body: dict[str, Any]) -> Any:
        """The answer of the HTTP server."""
        request = urllib.request.Request(
            f"{self._server.listening_address}/{endpoint}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def tokenize(self, text: str) -> list[int]:
        """Text as tokens, special ones by their names."""
        return list(self.post("tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"])

    def templated(self, messages: list[dict[str, str]]) -> str:
        """A conversation through the template in the file, with the opening of the reply."""
        return str(self.post("apply-template", {"messages": messages})["prompt"])


Serve = Callable[..., LlamaCpp]


@pytest.fixture
def serve() -> Serve:
    """Start llama.cpp on a model, with an adapter where one is given."""
    return LlamaCpp


WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _level(**options: Any) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **options)


def _split(pattern: str) -> Any:
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated"), _level(use_regex=False)]
    return pre_tokenizers.Sequence(steps)


SPLITTINGS = {
    "gpt-2": _level(),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _level()]),
    "llama-bpe": _split(rf"{WORDS}|\p{{N}}{{1,3}}|{REST}"),
    "qwen2": _split(rf"{WORDS}|\p{{N}}|{REST}"),
}


@pytest.fixture(params=SPLITTINGS)
def splitting(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """How a tokenizer splits text before merging, and the name that llama.cpp has for it."""
    return request.param, SPLITTINGS[request.param]


@pytest.fixture
def llama3(tiny_model: Any) -> Any:
    """A random Llama whose slow rotations are slower still, as from Llama 3.1 on."""
    config = copy.deepcopy(tiny_model.config)
    config.rope_parameters = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = type(tiny_model)(config).eval()
    model.load_state_dict(tiny_model.state_dict())
    return model


@pytest.fixture
def qwen2(tiny_tokenizer: Any) -> Any:
    """A random Qwen 2: biases on queries, keys and values, a head of its own, halves rotated as in transformers."""
    config = Qwen2Config(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    return model
