"""Convert messages to the token ids that a model sees, and sampled ids back to messages.

Sampled ids are never tokenized again: an episode's next prompt is its last prompt, the sampled ids
and the ids of the new messages, if the chat template only appends. If the template rewrites history
(Qwen3 drops earlier thoughts), the prompt is tokenized from the messages.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from stages.errors import InputError
from stages.messages.message import Message
from stages.messages.template import Template
from stages.messages.tool_parser import begins_thoughts, needed, read_message

# Most episodes in progress at once; the least recently used ones are forgotten.
LIVE = 4096


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids."""

    ids: list[int]
    appended: bool  # it starts with the episode's last prompt and the ids sampled for it


@dataclass
class _Transcript:
    """The last prompt of an episode, and the answer."""

    text: str  # the prompt as the template wrote it
    ids: list[int]  # of the prompt, then of the answer
    count: int  # messages in the prompt
    tool_parser: str  # dialect of calls that the prompt asks for
    answer: Message | None = None


class Renderer:
    """The chat template and the tokenizer of one model, with the state of each episode.

    Args:
        tokenizer: tokenizer of transformers, with a chat template.

    Attributes:
        template: the chat template.
        end_id: id of the token that ends a message.
        vocabulary: number of token ids; every id is smaller.

    Raises:
        InputError: the tokenizer has no template, or no such token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.template = Template(tokenizer)
        self._end, self.end_id = self.template.end, self.template.end_id
        self.vocabulary: int = 1 + max(tokenizer.get_vocab().values())
        self._frames: dict[str, frozenset[int]] = {}  # special tokens to drop, by dialect
        self._transcripts: OrderedDict[str, _Transcript] = OrderedDict()
        self._opening: tuple[Any, list[int]] = (None, [])  # system message and tools, and ids

    def prompt(
        self, episode_id: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
    ) -> Prompt:
        """Return the prompt of the conversation so far, up to where the model writes."""
        text = self.template.render(messages, tools, prompt=True)
        last = self._transcripts.pop(episode_id, None)
        added = None
        if last and len(messages) > last.count and messages[last.count] == last.answer:
            before = self.template.render(messages[: last.count + 1], tools, prompt=False)
            added = self._added(last, text, before)
        if last is None or added is None:
            ids = self._encode(text)
        else:
            ids = last.ids + self._encode(added)
        tool_parser = self.template.tool_parser(messages, tools)
        self._transcripts[episode_id] = _Transcript(text, ids, len(messages), tool_parser)
        if len(self._transcripts) > LIVE:
            self._transcripts.popitem(last=False)
        return Prompt(list(ids), added is not None)

    def opening(
        self, prompt: Sequence[int], messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
    ) -> int:
        """Return how many ids of a prompt hold instructions and tools, which episodes share.

        Args:
            prompt: ids of the prompt of these messages.
            messages: the conversation so far.
            tools: the tools of the prompt.

        Returns:
            The number of leading ids that the prompt shares with one of the same instructions and
            tools and an empty user message; 0 if no user message comes next.
        """
        system = [message for message in messages[:1] if message["role"] == "system"]
        if [message["role"] for message in messages[len(system) :][:1]] != ["user"]:
            return 0
        if self._opening[0] != (system, tools):
            silent = [*system, {"role": "user", "content": ""}]
            ids = self._encode(self.template.render(silent, tools, prompt=True))
            self._opening = (system, tools), ids
        pairs = zip(prompt, self._opening[1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def answer(
        self, episode_id: str, token_ids: list[int], tools: Sequence[Mapping[str, Any]]
    ) -> Message:
        """Return the sampled answer to an episode's last prompt, as a message."""
        transcript = self._transcripts[episode_id]
        written = token_ids[:-1] if token_ids[-1:] == [self.end_id] else token_ids
        # Calls of Llama, Mistral, DeepSeek and others begin with special tokens.
        frame = self._frame(transcript.tool_parser)
        text = self._tokenizer.decode(
            [token for token in written if token not in frame], skip_special_tokens=False
        )
        thinking = begins_thoughts(transcript.text)
        call_id = f"call_{transcript.count}"
        message = read_message(text, transcript.tool_parser, tools, call_id, thinking)
        transcript.ids = transcript.ids + token_ids
        transcript.answer = message
        return message

    def recorded(
        self, episode_id: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        """Return the ids of a message as if it had been sampled for the episode's last prompt.

        Args:
            episode_id: episode whose last prompt holds all messages but the last.
            messages: the conversation; the last message is the assistant's.
            tools: the tools of the prompt.

        Raises:
            InputError: the template does not write prompt, message and end token in sequence.
        """
        transcript = self._transcripts[episode_id]
        text = self.template.render(messages, tools, prompt=False)
        written, end, _ = text.removeprefix(transcript.text).rpartition(self._end)
        if not end:
            what = "the chat template ends the message with no token that the tokenizer knows"
            todo = "give the tokenizer that the template was made for"
            raise InputError(f"episode '{episode_id}'", what, todo)
        if not text.startswith(transcript.text) or self._end in written:
            what = "the chat template writes a message that does not continue its prompt"
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
        if not text.startswith(answered):  # Phi adds an end of text, which ends no message
            answered = answered.removesuffix(self._tokenizer.eos_token or "")
        if not (text.startswith(answered) and answered.startswith(last.text) and last.answer):
            return None
        written, end, tail = answered[len(last.text) :].rpartition(self._end)
        if not end or last.answer.get("reasoning_content", "") not in written:
            return None
        added = tail + text[len(answered) :]
        return added if last.ids[-1] == self.end_id else end + added  # else a limit cut it

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _frame(self, tool_parser: str) -> frozenset[int]:
        """Return the ids of the special tokens that are not content of a message."""
        if tool_parser not in self._frames:
            tokens = self._tokenizer.added_tokens_decoder.items()
            self._frames[tool_parser] = frozenset(
                place
                for place, token in tokens
                if token.special and not needed(token.content, tool_parser)
            )
        return self._frames[tool_parser]
