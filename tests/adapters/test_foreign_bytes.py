"""Flipped, cut and spliced bytes: the file is refused, or what comes out of it is finite and plain."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import incremental_llm.adapters.foreign as foreign
from incremental_llm.adapters.foreign import check_foreign
from incremental_llm.adapters.lora import CONFIG_FILE, WEIGHTS_FILE
from incremental_llm.errors import InputError, IntegrityError

_MODULES = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
_EXAMPLES = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good adapter; the base is looked at once, as it stays the same."""
    base = foreign.base_layers(tiny_model_dir)
    monkeypatch.setattr(foreign, "base_layers", lambda folder: base)
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for module in _MODULES:
        for factor, shape in (("A", (2, 32)), ("B", (32, 2))):
            name = f"base_model.model.{module}.lora_{factor}.weight"
            tensors[name] = torch.randn(shape, generator=generator) * 0.05
    save_file(tensors, tmp_path / WEIGHTS_FILE, metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    return tmp_path


def outcome(folder: Path, base_folder: Path) -> foreign.ForeignAdapter | None:
    """What passed, which must then be finite and bounded; None where it was refused by one of our errors."""
    try:
        found = check_foreign(folder, base_folder)
    except (InputError, IntegrityError):
        return None
    assert set(found.adapter.modules) == set(_MODULES)
    for a_RI, b_OR in found.adapter.modules.values():
        assert a_RI.shape == (2, 32) and b_OR.shape == (32, 2)
        assert bool(torch.isfinite(a_RI).all()) and bool(torch.isfinite(b_OR).all())
    assert all(0 <= module.relative_norm <= foreign.MAX_RELATIVE_NORM for module in found.report.modules)
    return found


@_EXAMPLES
@given(data=st.data())
def test_flipped_bits(data: Any, folder: Path, tiny_model_dir: Path, pristine: bytes) -> None:
    end = 8 + struct.unpack("<Q", pristine[:8])[0]
    places = st.integers(0, len(pristine) - 1)
    spoiled = bytearray(pristine)
    flips = data.draw(st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=4))
    for at, bits in flips:
        spoiled[at] ^= bits
    (folder / WEIGHTS_FILE).write_bytes(spoiled)
    found = outcome(folder, tiny_model_dir)
    if found is not None and spoiled[:end] != pristine[:end]:  # such as a letter of the notes, or two equal shapes
        entries = json.loads(spoiled[8:end])
        assert {name for name in entries if name != "__metadata__"} == {
            f"base_model.model.{module}.lora_{factor}.weight" for module in _MODULES for factor in "AB"
        }


@_EXAMPLES
@given(data=st.data())
def test_cut_or_spliced_files_are_refused(data: Any, folder: Path, tiny_model_dir: Path, pristine: bytes) -> None:
    at = data.draw(st.integers(0, len(pristine)))
    removed = data.draw(st.integers(0, len(pristine) - at))
    inserted = data.draw(st.binary(max_size=64))
    spliced = pristine[:at] + inserted + pristine[at + removed :]
    (folder / WEIGHTS_FILE).write_bytes(spliced)
    found = outcome(folder, tiny_model_dir)
    assert found is None or len(spliced) >= len(pristine) - 200, "a payload that is cut can never pass"


@_EXAMPLES
@given(
    header=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=20,
    ),
    payload=st.binary(max_size=64),
)
def test_any_header_is_refused_by_our_own_errors(
    header: Any, payload: bytes, folder: Path, tiny_model_dir: Path
) -> None:
    text = json.dumps(header).encode()
    (folder / WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(text)) + text + payload)
    assert outcome(folder, tiny_model_dir) is None


@_EXAMPLES
@given(
    config=st.dictionaries(
        st.sampled_from(
            (
                *("peft_type", "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora"),
                *("bias", "layers_to_transform", "exclude_modules", "init_lora_weights", "modules_to_save", "x"),
            )
        ),
        st.recursive(
            st.sampled_from([None, True, False, 0, 2, -1, 1e308, "LORA", "q_proj", "none", "all-linear", "", "(a+)+"]),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["q_proj", "^"]), inner),
            max_leaves=4,
        ),
    )
)
def test_any_config_is_judged_by_our_own_errors(config: dict[str, Any], folder: Path, tiny_model_dir: Path) -> None:
    good = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / CONFIG_FILE).write_text(json.dumps({**good, **config}))
    outcome(folder, tiny_model_dir)


@pytest.fixture
def pristine(folder: Path) -> bytes:
    """The good file's bytes, read before an example spoils them."""
    return (folder / WEIGHTS_FILE).read_bytes()
