"""Canaries on file formats: what a damaged file is taken for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file


def test_safetensors_notice_a_cut_and_no_flipped_bit(tmp_path: Path) -> None:
    """A file that lost its end is refused; one with a flipped bit loads, and a weight of 1 is 3e38.

    Ours: artifacts.py writes the sha256 of every file into a folder's manifest and compares it before use.
    If it fails: with a checksum inside, the manifest still covers the files beside it.
    """
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(4)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(SafetensorError, match="incomplete"):
        load_file(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 0x40]))
    assert load_file(path)["x"].max() > 1e38
