"""From messages to the token ids that a model sees, and back from the ids that it wrote.

What was sampled is never tokenized again: an episode's next prompt is its last prompt, the sampled
ids and the ids of the new messages, as long as the chat template only appends. Where the template
rewrites what stood before (Qwen3 drops earlier thoughts), the prompt is made from the messages.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.dialects import begins_thoughts, dialect_of, needed, read_message
from stages.errors import InputError
from stages.worlds.world import Message

# How many episodes may be under way at once; those that have waited longest are forgotten.
LIVE = 4096


@dataclass(frozen=True)
class Prompt:
    """What a model is to see."""

    ids: list[int]
    appended: bool  # it starts with the episode's last prompt and all that was sampled then


@dataclass
class _Transcript:
    """What an episode's model last saw and wrote."""

    text: str  # the prompt as the template wrote it
    ids: list[int]  # the prompt, and what was sampled
    count: int  # messages in the prompt
    answer: Message | None = None


class Chat:
    """The chat template and the tokenizer of one model, with a memory of each episode.

    Args:
        tokenizer: of transformers, with a chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._dialect = dialect_of(tokenizer.chat_template)
        self._end: str = tokenizer.eos_token  # ends a message; others may end a text
        self._end_id: int = tokenizer.eos_token_id
        self._frame = _frame_ids(tokenizer, self._dialect)
        self._transcripts: OrderedDict[str, _Transcript] = OrderedDict()

    def prompt(
        self, episode_id: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
    ) -> Prompt:
        """Return the ids of the conversation so far, up to where the model is to write."""
        told = [shown(message, self._dialect == "xml") for message in messages]
        text = self._render(told, tools, True)
        last = self._transcripts.pop(episode_id, None)
        added = None
        if last and len(messages) > last.count and messages[last.count] == last.answer:
            added = self._added(last, text, self._render(told[: last.count + 1], tools, False))
        if last is None or added is None:
            ids = self._encode(text)
        else:
            ids = last.ids + self._encode(added)
        self._transcripts[episode_id] = _Transcript(text, ids, len(messages))
        if len(self._transcripts) > LIVE:
            self._transcripts.popitem(last=False)
        return Prompt(list(ids), added is not None)

    def answer(
        self, episode_id: str, token_ids: list[int], tools: Sequence[Mapping[str, Any]]
    ) -> Message:
        """Return the message that was sampled for an episode's last prompt."""
        transcript = self._transcripts[episode_id]
        written = token_ids[:-1] if token_ids[-1:] == [self._end_id] else token_ids
        # Calls of Llama, Mistral, DeepSeek and others begin with special tokens.
        kept = [token for token in written if token not in self._frame]
        text = self._tokenizer.decode(kept, skip_special_tokens=False)
        thinking = begins_thoughts(transcript.text)
        call_id = f"call_{transcript.count}"
        message = read_message(text, self._dialect, tools, call_id, thinking)
        transcript.ids = transcript.ids + token_ids
        transcript.answer = message
        return message

    def recorded(
        self, episode_id: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        """Return the ids of a message as if it had been sampled for the episode's last prompt.

        Args:
            episode_id: whose prompt was made from all messages but the last.
            messages: the conversation; the last message is the assistant's.
            tools: as for the prompt.

        Raises:
            InputError: the template does not write the prompt, the message and its end in a row.
        """
        transcript = self._transcripts[episode_id]
        told = [shown(message, self._dialect == "xml") for message in messages]
        text = self._render(told, tools, False)
        written, end, _ = text.removeprefix(transcript.text).rpartition(self._end)
        if not (end and text.startswith(transcript.text)):
            what = "the chat template writes a message otherwise than its prompt begins it"
            todo = "choose a model whose template goes on from its prompt and ends messages"
            raise InputError(f"episode '{episode_id}'", what, todo)
        ids = self._encode(written + end)
        transcript.ids = transcript.ids + ids
        transcript.answer = messages[-1]
        return ids

    def _added(self, last: _Transcript, text: str, answered: str) -> str | None:
        """Return what follows the last sampled token, or None if the template rewrote something.

        Args:
            last: the transcript up to the answer.
            text: the new prompt.
            answered: the conversation up to the answer, with nothing after it.
        """
        if not (text.startswith(answered) and answered.startswith(last.text) and last.answer):
            return None
        written, end, tail = answered[len(last.text) :].rpartition(self._end)
        if not end or last.answer.get("reasoning_content", "") not in written:
            return None
        added = tail + text[len(answered) :]
        return added if last.ids[-1] == self._end_id else end + added  # it was cut by a limit

    def _render(
        self, messages: list[Message], tools: Sequence[Mapping[str, Any]], prompt: bool
    ) -> str:
        rendered: str = self._tokenizer.apply_chat_template(
            messages,
            tools=list(tools) or None,
            add_generation_prompt=prompt,
            tokenize=False,
        )
        return rendered

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


def _frame_ids(tokenizer: Any, dialect: str) -> frozenset[int]:
    """Return the ids of the special tokens that are no part of what a message says."""
    special = [item for item in tokenizer.added_tokens_decoder.items() if item[1].special]
    return frozenset(place for place, token in special if not needed(token.content, dialect))


def shown(message: Message, only_mappings: bool = False) -> Message:
    """Return a message as templates take it: with arguments as an object, where they are one.

    Args:
        message: in OpenAI's form.
        only_mappings: the template fails on arguments that are a text, as broken ones are.
    """
    calls = message.get("tool_calls")
    if not calls:
        return message
    shown = []
    for call in calls:
        function = call["function"]
        arguments = _object(function["arguments"])
        if arguments is None:
            raw = function["arguments"]
            arguments = {"arguments": raw} if only_mappings else raw
        shown.append({**call, "function": {**function, "arguments": arguments}})
    return {**message, "tool_calls": shown}


def _object(text: Any) -> dict[str, Any] | None:
    if isinstance(text, dict):
        return text
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
