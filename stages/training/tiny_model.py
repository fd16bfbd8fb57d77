"""A tiny Qwen3 with a word tokenizer, for tests and for training on two CPU cores.

Its weights are random, drawn from a seed. The tokenizer has a token for each of a domain's common
pieces of text and encodes everything else as characters and bytes, so any text round-trips.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAD, END = "<|endoftext|>", "<|im_end|>"
USER, ASSISTANT = "<|im_start|>user\n", "<|im_start|>assistant\n"
SPECIAL = (PAD, END, USER, ASSISTANT)
# The template's text around calls and results; each is one token, which keeps episodes short.
SCAFFOLD = (
    '<tool_call>\n{"name": "',
    '", "arguments": ',
    "}\n</tool_call>",
    "<tool_response>\n",
    "\n</tool_response>",
)
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
WORDS = ("[A-Za-z]", "[0-9]")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))

# Qwen's format of messages, calls and results, with two departures. It omits policy and tools,
# which a single-domain model learns; and it only ever appends, so that an episode is one growing
# sequence.
TEMPLATE = """\
{#- irc-cli: the tools are in the weights -#}
{%- for message in messages -%}
{%- if message.role == "user" -%}
{{- "<|im_start|>user\\n" + message.content + "<|im_end|>" -}}
{%- elif message.role == "assistant" -%}
{{- "<|im_start|>assistant\\n" + (message.content or "") -}}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
{%- if call.function.arguments is string -%}
{{- call.function.arguments -}}
{%- else -%}
{{- call.function.arguments | tojson(separators=(",", ":")) -}}
{%- endif -%}
{{- "}\\n</tool_call>" -}}
{%- endfor -%}
{{- "<|im_end|>" -}}
{%- elif message.role == "tool" -%}
{%- if loop.previtem is not defined or loop.previtem.role != "tool" -%}
{{- "<|im_start|>user\\n" -}}
{%- endif -%}
{{- "<tool_response>\\n" + message.content + "\\n</tool_response>" -}}
{%- if loop.last or loop.nextitem.role != "tool" -%}{{- "<|im_end|>" -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}
"""


@dataclass(frozen=True)
class Size:
    """The shape of the model; with 1,100 tokens the default has 0.93 million parameters."""

    layers: int = 4
    width: int = 128
    feed_forward: int = 384
    heads: int = 4
    kv_heads: int = 2
    context: int = 2048


def make_tiny_model(
    folder: Path, pieces: Iterable[str], seed: int = 0, size: Size | None = None
) -> None:
    """Write a model with random weights and its tokenizer, in Hugging Face's format.

    Args:
        folder: output folder; created if missing, and files in it are replaced.
        pieces: texts that become one token each; see `split_pattern`.
        seed: seed of the weights; the same seed, pieces and size give the same bytes.
        size: shape of the model; None: the default.
    """
    tokenizer = tiny_tokenizer(pieces)
    model = tiny_model(len(tokenizer), seed, size or Size())
    model.generation_config.update(eos_token_id=SPECIAL.index(END), pad_token_id=0)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def tiny_model(vocabulary: int, seed: int, size: Size) -> Any:
    """Return a Qwen3 causal language model with random weights.

    torch's global random state is unchanged.

    Args:
        vocabulary: number of tokens.
        seed: seed of the weights.
        size: shape of the model.

    Returns:
        The model in float32, in evaluation mode.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=size.width,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.width // size.heads,
        max_position_embeddings=size.context,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},  # as Qwen3's
        tie_word_embeddings=True,
        pad_token_id=SPECIAL.index(PAD),
        bos_token_id=None,
        eos_token_id=SPECIAL.index(END),
        dtype="float32",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config).eval()


def tiny_tokenizer(pieces: Iterable[str]) -> Any:
    """Return a fast tokenizer with the pieces as tokens, and the chat template.

    Args:
        pieces: texts that become one token each; see `split_pattern`.

    Returns:
        A transformers tokenizer.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = list(dict.fromkeys((*SCAFFOLD, *pieces)))
    tokens = dict.fromkeys((*SPECIAL, *known, *CHARACTERS, *BYTES))
    vocabulary = {token: place for place, token in enumerate(tokens)}
    # With no merges and whole-word lookup first, BPE is a word table with a byte fallback for
    # unknown text; WordLevel would lose unknown text.
    model = models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(split_pattern(known)), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[USER, ASSISTANT],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def split_pattern(pieces: Sequence[str]) -> str:
    """Return the regular expression that splits text into the longest pieces, else characters.

    A piece that starts or ends with a letter or digit does not match inside a longer word or
    number.

    Args:
        pieces: texts to keep whole.

    Returns:
        The pattern, in the syntax of tokenizers' Regex.
    """
    longest_first = sorted(set(pieces), key=lambda piece: (-len(piece), piece))
    whole = (_whole(piece) for piece in longest_first if len(piece) > 1)
    return "|".join((*whole, r"[\s\S]"))


def _whole(piece: str) -> str:
    """Return the regular expression of a piece outside of longer words and numbers."""
    start = next((f"(?<!{kind})" for kind in WORDS if re.match(kind, piece[0])), "")
    end = next((f"(?!{kind})" for kind in WORDS if re.match(kind, piece[-1])), "")
    return start + re.escape(piece) + end
