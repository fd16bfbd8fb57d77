"""Models of many kinds learn, or are refused; adapters merge to what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("accelerate", reason="needs irc-cli[train]")

import torch
import transformers

from stages.errors import InputError
from stages.train import Known, TierCodes, token_logprobs, train
from stages.training.config import TrainConfig
from stages.training.folder import RunFolder
from stages.training.model import learner, load_model, packable, trained
from stages.training.tiny_model import tiny_tokenizer
from tests.builders import line_of
from tests.learning import PIECES, VOCABULARY, small_model, some_examples, trainer_of

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
}
BATCH = some_examples()


def made(name: str, **more: Any) -> Any:
    """Return a model of an architecture, with weights large enough to tell capped logits."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **more})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(5 if weights.ndim > 1 else 1)
    return model


LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
KINDS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "qwen3": ("Qwen3", {}, True),
    "qwen2, biases": ("Qwen2", {}, True),
    "llama": ("Llama", {}, True),
    "gpt2, learnt positions": ("GPT2", {"vocab_size": VOCABULARY, "n_embd": 32, "n_head": 2}, True),
    "mixture of experts": (
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        True,
    ),
    "sliding window": ("Mistral", {"sliding_window": 4}, False),
    "some layers slide": (
        "Qwen3",
        {
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 4,
            "use_sliding_window": True,
        },
        False,
    ),
    "linear layers": ("Qwen3_5Text", LINEAR, False),
    "no attention": ("Mamba", {"state_size": 4}, False),
}


@pytest.mark.parametrize("name", KINDS)
def test_models_of_many_kinds_give_their_own_log_probabilities(name: str) -> None:
    kind, more, packs = KINDS[name]
    model, same = made(kind, **more), made(kind, **more)
    assert packable(model) == packs
    trainer = trainer_of(model)
    config = TrainConfig(pack_tokens=60)
    shares = [len(chosen) for chosen, _ in trainer.passes(BATCH, config)]
    assert (max(shares) > 1) == packs
    for one, found in zip(BATCH, token_logprobs(trainer, BATCH, config), strict=True):
        with torch.no_grad():
            logits = same(input_ids=torch.from_numpy(one.sequence.token_ids)[None]).logits[0]
        logps = torch.log_softmax(logits[one.at - 1] / one.temperature, -1)
        wanted = logps[range(len(one.at)), one.sequence.token_ids[one.at]]
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    fresh = Known([None] * len(BATCH), None)
    [step] = train(trainer, BATCH, fresh, TierCodes([], {}), TrainConfig(pack_tokens=60))
    assert np.isfinite(step.log["grad_norm"]) and step.log["grad_norm"] > 0


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("Gemma2", {"final_logit_softcapping": 5.0, "layer_types": ["full_attention"] * 2}),
        ("Granite", {"logits_scaling": 3.0}),
        ("Cohere", {"logit_scale": 0.5}),
    ],
)
def test_logits_that_are_not_the_heads_are_refused(kind: str, more: dict[str, Any]) -> None:
    model = made(kind, **more)
    model.config.name_or_path = "the/model"
    with pytest.raises(InputError) as caught:
        learner(model)
    assert line_of(caught) == (
        f"the/model: a {kind}ForCausalLM does not compute as irc-cli train expects; "
        "choose a model whose logits are its output layer's, unscaled"
    )


def test_adapters_alone_are_trained_and_merge_to_the_same_logits(tmp_path: Path) -> None:
    config = TrainConfig(lr=1e-2, epochs=3, batch_size=2)
    torch.manual_seed(0)
    trainer = trainer_of(small_model(), config, lora_rank=2)
    assert trained(trainer.bare) and all("lora_" in name for name in trained(trainer.bare))
    start = token_logprobs(trainer, BATCH, config)
    base = {name: one.clone() for name, one in trainer.bare.named_parameters()}
    known = Known([*start], None)
    folder = RunFolder(str(tmp_path / "out"), main=True, keep=2)
    folder.begin(trainer, {}, resume=False)
    assert len(list(train(trainer, BATCH, known, TierCodes([], {}), config))) == 6
    adapted = token_logprobs(trainer, BATCH, config)
    assert max((a - b).abs().max() for a, b in zip(adapted, start, strict=True)) > 0.1
    for name, one in trainer.bare.named_parameters():
        assert "lora" in name or torch.equal(one, base[name])
    folder.finish(trainer, tiny_tokenizer(PIECES), {})
    merged, _ = load_model(str(tmp_path / "out"))
    assert merged.state_dict().keys() == small_model().state_dict().keys()
    for found, wanted in zip(
        token_logprobs(trainer_of(merged), BATCH, config), adapted, strict=True
    ):
        assert torch.allclose(found, wanted, rtol=0, atol=1e-4)
