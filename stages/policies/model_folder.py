"""Loading of transformers models for policies and training: complete weights, safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from stages.errors import InputError
from stages.messages.loading import loading
from stages.messages.tokenizer import load_tokenizer

TODO = "give a folder that holds a model"


def load_causal_model(folder: str | Path, **settings: Any) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer.

    Args:
        folder: a checkpoint in Hugging Face's format, or the name of a hub model.
        settings: further arguments of transformers' `from_pretrained`.

    Returns:
        The model and its tokenizer.

    Raises:
        InputError: the model is missing, a file is damaged, or weights are missing.
    """
    tokenizer = load_tokenizer(str(folder), TODO)
    with loading(folder, TODO):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, in one line
            output_loading_info=True,
            **settings,
        )
    # transformers would use random weights instead.
    if absent := sorted(info["missing_keys"]) + [name for name, *_ in info["mismatched_keys"]]:
        what = f"its weights lack '{absent[0]}' of the shape that config.json says"
        raise InputError(str(folder), what, "use a complete checkpoint")
    return model, tokenizer
