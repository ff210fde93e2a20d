"""How near two texts are in meaning, by a static embedding model in a local folder (extra `embeddings`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from incremental_llm.errors import InputError


@lru_cache(maxsize=100_000)
def cosine(folder: str, first: str, second: str) -> float:
    """Cosine of two texts' embeddings, -1 to 1; 0 where the model knows no word of one of them.

    Raises:
        InputError: the extra is not installed, or the folder holds no model.
    """
    one, other = _model(folder).encode([first, second], use_multiprocessing=False)
    length = float((one @ one) * (other @ other)) ** 0.5
    return float(one @ other) / length if length else 0.0


def first_alike(folder: str, texts: Sequence[str], least: float) -> list[int]:
    """For each text the first that stands for itself and is alike by a cosine of at least `least`; its own where none.

    Raises:
        InputError: as for `cosine`.
    """
    vectors = np.asarray(_model(folder).encode(list(texts), use_multiprocessing=False), dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    kept: list[int] = []
    own = np.empty_like(vectors)  # of the kept ones, in their order
    first = []
    for place, vector in enumerate(vectors):
        alike = own[: len(kept)] @ vector >= least
        at = int(alike.argmax()) if len(alike) else 0
        if len(alike) and alike[at]:
            first.append(kept[at])
        else:
            own[len(kept)] = vector
            kept.append(place)
            first.append(place)
    return first


@lru_cache(maxsize=1)
def _model(folder: str) -> Any:
    try:
        from model2vec import StaticModel
    except ImportError as error:
        raise InputError(
            "compile.rephrase_embeddings and compile.duplicate_embeddings: expected the library model2vec, found none. "
            "Install the extra: pip install 'incremental_llm[embeddings]'."
        ) from error
    if not (Path(folder) / "model.safetensors").is_file():  # it would look for any other name on the network
        raise InputError(
            f"compile.rephrase_embeddings and compile.duplicate_embeddings: expected a folder with a model2vec model, "
            f"found none in {folder!r}. "
            "Give the folder that StaticModel.save_pretrained wrote, or remove the key."
        )
    return StaticModel.from_pretrained(folder)
