"""What importing the package does."""

from __future__ import annotations

import logging
import os

import pytest

import incremental_llm


def test_every_public_name_is_there() -> None:
    for name in incremental_llm.__all__:
        assert getattr(incremental_llm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        incremental_llm.nothing  # noqa: B018


def test_telemetry_is_off() -> None:
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_only_the_missing_kernel_is_not_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "no module")
    logger.warning("something else: %s", "kept")
    assert [record.getMessage() for record in caplog.records] == ["something else: kept"]
