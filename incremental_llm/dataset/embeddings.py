"""How near two texts are in meaning, by a static embedding model in a local folder (extra `embeddings`)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

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


@lru_cache(maxsize=1)
def _model(folder: str) -> Any:
    try:
        from model2vec import StaticModel
    except ImportError as error:
        raise InputError(
            "compile.rephrase_embeddings: expected the library model2vec, found none. "
            "Install the extra: pip install 'incremental_llm[embeddings]'."
        ) from error
    if not (Path(folder) / "model.safetensors").is_file():  # it would look for any other name on the network
        raise InputError(
            f"compile.rephrase_embeddings: expected a folder with a model2vec model, found none in {folder!r}. "
            "Give the folder that StaticModel.save_pretrained wrote, or remove the key."
        )
    return StaticModel.from_pretrained(folder)
