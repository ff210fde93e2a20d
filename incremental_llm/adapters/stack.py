"""What a stack is, as data: an ordered list of adapters over a base model, each pinned by digest. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from incremental_llm.artifacts import verify_folder
from incremental_llm.chat import json_digest
from incremental_llm.errors import IntegrityError


class BaseRef(BaseModel):
    """A base model pinned by content: `digest` covers weights and config, `template_digest` the chat template."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    digest: str
    template_digest: str


class Stack(BaseModel):
    """Ordered adapters (digests, oldest first) over a base; `dtype` is what it is served and measured in.

    So is `quantization`: in 4 bits the base is another model, and a decision about one says nothing of the other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: BaseRef
    adapters: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    quantization: Literal["none", "nf4"] = "none"

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """An unquantised stack is written, and so hashed, without the word."""
        written: dict[str, Any] = handler(self)
        return written if self.quantization != "none" else {k: v for k, v in written.items() if k != "quantization"}

    @property
    def digest(self) -> str:
        """Equal for equal base, template, dtype, quantisation and adapters in equal order."""
        return json_digest(self.model_dump(mode="json"))

    def plus(self, adapter: str, replacing: int = 0) -> Stack:
        """This stack with one more adapter on top, in the place of its last `replacing` ones."""
        return self.model_copy(update={"adapters": (*self.adapters[: len(self.adapters) - replacing], adapter)})


def adapter_paths(stack: Stack, objects: Path) -> tuple[Path, ...]:
    """Folders of the stack's adapters below an object folder, oldest first; each is read and compared with its digest.

    Raises:
        IntegrityError: one is missing or damaged: a flipped bit in safetensors loads without a word; or it was erased.
    """
    for digest in stack.adapters:
        if (objects / f"{digest}.erased.json").is_file():
            raise IntegrityError(
                f"adapter {digest[:12]}: expected its weights, found that they were erased with a person they had been "
                "trained on. Use a later version, or one from before: illm registry list."
            )
        if (found := verify_folder(objects / digest)) != digest:
            raise IntegrityError(
                f"{objects / digest}: expected the adapter of this digest, found {found[:12]}. Restore it from a copy."
            )
    return tuple(objects / digest for digest in stack.adapters)
