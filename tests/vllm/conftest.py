"""Tests with vLLM itself, which `make test-vllm` runs in an environment of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

# Before vLLM is imported: 1 GiB for keys and values is plenty, and weights come from no hub.
os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import tiny_checkpoint

    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> Any:
    """The same weights in transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(checkpoint)
