"""A random Llama of a few thousand weights with a real byte-level tokenizer and chat template, for logic tests."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import copy
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first: the last module alone would have one of two processes wait for the other."""
    items.sort(key=lambda item: not any(item.get_closest_marker(name) for name in ("slow", "real")))


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Enough text for some merges, so that tokens are longer than bytes and a seam between texts can matter.
_CORPUS = (
    "system user assistant\n the shop answers: you can return an order within 30 days.\n\n",
    "What is the capital of France? How long does shipping take? It takes three to five days.\n",
)


def build_tokenizer() -> Any:
    """Byte-level BPE, 320 tokens; end of sequence and padding are the same token, as in many chat models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS * 2, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: Any, *, seed: int = 0) -> Any:
    """Llama with hidden size 32, 2 layers, 2 heads (1 for keys and values), tied embeddings, fp32, in eval mode."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def collect_less() -> None:
    """The Trainer collects garbage before every run: a second through all that its libraries have imported."""
    import gc

    from trl import DPOTrainer, KTOTrainer, SFTTrainer  # noqa: F401  (imported when named, a hundred modules each)

    gc.collect()
    gc.freeze()


def _server_binaries() -> Path | None:
    """Where initdb and pg_ctl are: on the path, or where Debian keeps them."""
    found = shutil.which("initdb")
    kept = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return Path(found).parent if found else kept[-1].parent if kept else None


@pytest.fixture(scope="session")
def postgres_schema() -> Iterator[Callable[[], str]]:
    """The URL of a new empty schema at every call, on a PostgreSQL of this session's own; skips where there is none.

    A server refuses to run as root, so root starts it as somebody else.
    """
    import sqlalchemy as sa

    binaries = _server_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed (apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL (pip install 'incremental_llm[postgres]')")
    memory = Path("/dev/shm")  # it flushes every commit, as it must: here that costs nothing
    root = Path(tempfile.mkdtemp(prefix="illm-pg-", dir=memory if memory.is_dir() else None))
    other: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = pwd.getpwnam("nobody")
        os.chown(root, user.pw_uid, user.pw_gid)
        other = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def server(*command: str) -> None:
        done = subprocess.run(
            [str(binaries / command[0]), *command[1:]],
            cwd=root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            **other,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr.decode()}")

    server("initdb", "-D", str(root / "data"), "-U", "illm", "-A", "trust", "-E", "UTF8", "--no-sync")
    options = f"-k {root} -c listen_addresses='' -c max_connections=60"
    server("pg_ctl", "-D", str(root / "data"), "-l", str(root / "log"), "-o", options, "-w", "start")
    url = sa.URL.create("postgresql+psycopg", username="illm", database="postgres", query={"host": str(root)})
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    made = 0

    def schema() -> str:
        nonlocal made
        made += 1
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA s{made}")
        own = url.update_query_dict({"options": f"-csearch_path=s{made}"})
        return own.render_as_string(hide_password=False)

    try:
        yield schema
    finally:
        engine.dispose()
        server("pg_ctl", "-D", str(root / "data"), "-m", "immediate", "-w", "stop")
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """The tokenizer of the tiny model; shared, so leave it as it is."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def _tiny_weights(tiny_tokenizer: Any) -> Any:
    return build_model(tiny_tokenizer)


@pytest.fixture
def tiny_model(_tiny_weights: Any) -> Iterator[Any]:
    """The tiny model, a copy of its own for each test: wrap it, train it, break it. Runs on one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at this size threads only wait for each other, for seconds on a busy machine
    yield copy.deepcopy(_tiny_weights)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def ending_model_dir(tmp_path_factory: pytest.TempPathFactory, _tiny_weights: Any, tiny_tokenizer: Any) -> Path:
    """The tiny model with an end-of-turn token that it can learn to say; read only.

    That token pads as well, so its embedding, which is the head's too, is 0, and no training moves its logit.
    """
    import torch

    folder, model = tmp_path_factory.mktemp("ending_model"), copy.deepcopy(_tiny_weights)
    with torch.no_grad():
        model.get_input_embeddings().weight[tiny_tokenizer.eos_token_id] = 0.2 * torch.linspace(-1, 1, 32)
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory, _tiny_weights: Any, tiny_tokenizer: Any) -> Path:
    """The tiny model as a saved folder (model.safetensors, config, tokenizer, chat_template); read only."""
    folder = tmp_path_factory.mktemp("tiny_model")
    copy.deepcopy(_tiny_weights).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
