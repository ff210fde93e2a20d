"""A whole model as one GGUF file, and back through transformers."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from incremental_llm.handoff.llamacpp.architecture import architecture_of, write_hyperparameters
from incremental_llm.handoff.llamacpp.tensors import FILE_TYPES, write_tensors
from incremental_llm.handoff.llamacpp.vocabulary import write_vocabulary

_ROPE_DIVISORS = f"{gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS]}.weight"


def write_model(path: Path, model: Any, tokenizer_folder: Path, *, dtype: str, name: str) -> None:
    """Write a transformers model with the tokenizer and chat template of a folder, one tensor in memory at a time.

    Vectors (norms and biases) stay float32, as llama.cpp expects them.

    Args:
        dtype: of the matrices: float32, float16 or bfloat16.
        name: what the file calls the model.

    Raises:
        InputError: an architecture or a tokenizer that is not written.
        IntegrityError: a weight that `dtype` cannot hold.
    """
    architecture = architecture_of(model.config)
    writer = gguf.GGUFWriter(path, architecture.name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[dtype])
    write_hyperparameters(writer, architecture)
    write_vocabulary(writer, tokenizer_folder, model.config.vocab_size)
    # A tied head is not named a second time here, and llama.cpp takes the embedding where it finds none.
    parameters = dict(model.named_parameters())
    places = {architecture.tensor_name(parameter): parameter for parameter in parameters}

    def prepared(place: str) -> torch.Tensor:
        order = architecture.row_order(places.get(place, place))
        weight: torch.Tensor = tensors[place]
        return weight if order is None else weight[order.to(weight.device)]

    tensors = {place: parameters[parameter] for place, parameter in places.items()}
    if (divisors := architecture.rope_divisors()) is not None:
        tensors[_ROPE_DIVISORS] = divisors
    types = {place: (tensor, dtype if tensor.ndim > 1 else "float32") for place, tensor in tensors.items()}
    write_tensors(writer, types, prepared=prepared)


def read_model(path: Path, config: Any, *, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """Model and tokenizer as transformers reads them from a GGUF file, the way a stranger would.

    Transformers' reader knows nothing of divided frequencies: only where `config`, the base's, has them is it given.
    """
    known = {"config": config} if architecture_of(config).rope_divisors() is not None else {}
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its tqdm bar has no switch
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=dtype, attn_implementation="sdpa", **known
            )
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    finally:
        transformers.logging.set_verbosity(verbosity)
    return model.to(device).eval(), tokenizer
