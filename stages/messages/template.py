"""What a chat template shows of a conversation, and the form of it that the template shows whole.

Many small models have a template that ignores tools, calls or the system message, or fails on
them. Each of these is found by rendering a probe: a made-up conversation of words that stand
nowhere else. A template that loses one of them gets the conversation in another form:

    tools, calls and results    as text in Hermes form, where the template does not show all three
    the system message          at the start of the first user message
    content null beside calls   as ""; null elsewhere always is
    arguments of calls          as the text that they were written as, instead of an object
    ids of calls                nine digits, as Mistral's templates demand
    several calls at once       one after the other
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Literal

from stages.errors import InputError
from stages.messages.message import Message, Told
from stages.messages.probe import PROBE_TOOLS, SAID, SYSTEM, Shape, Tools, probes, words
from stages.messages.tool_parser import tool_parser_of

# In a template: its model was trained without the tools in its prompt, and knows them by heart.
IN_WEIGHTS = "{#- irc-cli: the tools are in the weights -#}"
ANOTHER = "write a template for talks with tools to 'chat_template.jinja' in the model's folder"
TOOLS_TEXT = """\
# Tools

You can call these functions. Each line describes one of them:
<tools>
{tools}
</tools>

To call a function, write its name and its arguments as one JSON object between two tags:
<tool_call>
{{"name": "NAME", "arguments": {{"ARGUMENT": "VALUE"}}}}
</tool_call>
Several calls stand one below the other. The next message holds each result between
<tool_response> and </tool_response>."""


@dataclass(frozen=True)
class Form:
    """How messages are given to a template; as they are, by default."""

    native: bool = True  # the template writes tools, calls and results; else they are text
    folded: bool = False  # the system message opens the first user message
    null: bool = True  # content beside calls may be null
    arguments: Literal["object", "object only", "text"] = "object"  # only: broken ones, too
    own_ids: bool = True  # calls keep their ids; else they get nine digits
    parallel: bool = True  # a message may hold several calls


class Template:
    """A tokenizer's chat template, and the form of conversations that it takes.

    Args:
        tokenizer: of transformers, with a chat template.

    Raises:
        InputError: there is no template, or no token that ends a message.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.name = tokenizer.name_or_path or "the tokenizer"
        self._forms: dict[Shape, Form] = {}
        if tokenizer.chat_template and (end := self._end()):
            self.end: str = end
            self.end_id: int = tokenizer.convert_tokens_to_ids(end)
            return
        what = "its tokenizer has no chat template, or no token that ends a message"
        raise InputError(self.name, what, ANOTHER)

    def render(self, messages: Sequence[Message], tools: Tools, *, prompt: bool) -> str:
        """Return a conversation as the model sees it.

        Args:
            messages: in OpenAI's form.
            tools: OpenAI definitions.
            prompt: whether the assistant is to go on.

        Raises:
            InputError: the template does not take the conversation.
        """
        form = self.form(Shape.of(messages, tools))
        try:
            return self._render(form, messages, tools, prompt)
        except Exception as error:  # a template is a program of its own, and may raise anything
            what = f"its chat template refuses the conversation: {_line(error)}"
            todo = "give a model whose template takes such messages"
            raise InputError(self.name, what, todo) from None

    def form(self, shape: Shape) -> Form:
        """Return the form that comes closest to the messages and is shown whole.

        Raises:
            InputError: there is none.
        """
        if shape not in self._forms:
            self._forms[shape] = self._find(shape)
        return self._forms[shape]

    def tool_parser(self, messages: Sequence[Message], tools: Tools) -> str:
        """Return the dialect in which the model is told to write calls."""
        native = self.form(Shape.of(messages, tools)).native
        return tool_parser_of(self._text) if native else "hermes"

    def told(self, tools: Tools) -> Told:
        """Return where the model finds its tools and the system message of a conversation.

        Returns:
            A record of `tools`: "template", "messages" (as text in Hermes form) or "weights"; and
            of `system`: "system", or "user" where it opens the first user message.
        """
        form = self.form(Shape(tools=bool(tools), calls=bool(tools)))
        by_template = "weights" if self.in_weights else "template"
        record = {
            "tools": by_template if form.native else "messages",
            "system": "user" if form.folded else "system",
        }
        where = "first user message" if form.folded else "system message"
        notes = []
        if not form.native:
            notes = [f"does not show tools and calls; the {where} describes them in Hermes form"]
        elif form.folded:
            notes = ["has no system message; its text opens the first user message"]
        return Told(record, [f"{self.name}: its chat template {note}" for note in notes])

    @cached_property
    def in_weights(self) -> bool:
        """Whether the model knows its tools and instructions without being told."""
        return IN_WEIGHTS in self._text

    @cached_property
    def _text(self) -> str:
        """The template's text: of several, the one for conversations with tools."""
        text: str = self._tokenizer.get_chat_template(tools=PROBE_TOOLS)
        return text

    def _find(self, shape: Shape) -> Form:
        reasons = []
        for form in _forms(shape):
            try:
                lost = self._lost(form, shape)
            except Exception as error:  # see `render`
                reasons.append(_line(error))
                continue
            if lost is None:
                return self._without_none(form, shape)
            reasons.append(f"it does not show {lost}")
        # The last form asks least of the template.
        what = f"its chat template can't hold such a conversation: {reasons[-1]}"
        raise InputError(self.name, what, ANOTHER)

    def _lost(self, form: Form, shape: Shape) -> str | None:
        """Return what the template loses of a probe in this form, if anything."""
        tools = PROBE_TOOLS if shape.tools else []
        for messages in probes(shape):
            text = self._render(form, messages, tools, True)
            for word, what in words(messages, tools, by_heart=self.in_weights):
                if word not in text:
                    return what
        return None

    def _without_none(self, form: Form, shape: Shape) -> Form:
        """Return the form with "" for null, where the template writes null as a word."""
        other = replace(form, null=False)
        if not (shape.calls and form.native and form.null):
            return form
        messages, tools = probes(shape)[-1], PROBE_TOOLS if shape.tools else []
        try:
            texts = [self._render(candidate, messages, tools, True) for candidate in (form, other)]
        except Exception:  # "" fails, as with templates that tell calls by their null
            return form
        return other if texts[0].count("None") > texts[1].count("None") else form

    def _render(self, form: Form, messages: Sequence[Message], tools: Tools, prompt: bool) -> str:
        rendered: str = self._tokenizer.apply_chat_template(
            formed(form, messages, tools),
            tools=(list(tools) or None) if form.native else None,
            add_generation_prompt=prompt,
            tokenize=False,
        )
        return rendered

    def _end(self) -> str | None:
        """Return the token that ends a message; None: there is none.

        It is the first special token after an answer, which need not be the end of a text: Gemma
        and Phi have one of each.
        """
        eos: str | None = self._tokenizer.eos_token
        messages = [{"role": "user", "content": "zquser"}, {"role": "assistant", "content": SAID}]
        try:
            text = self._render(Form(), messages, [], False)
        except Exception:  # told when it is to show a conversation
            return eos
        tail = text.rpartition(SAID)[2].lstrip()
        known = [token for token in self._tokenizer.get_added_vocab() if tail.startswith(token)]
        return max(known, key=len, default=eos)


def formed(form: Form, messages: Sequence[Message], tools: Tools) -> list[Message]:
    """Return messages as a template takes them.

    Args:
        form: that the template needs.
        messages: in OpenAI's form.
        tools: OpenAI definitions; they go into the messages where the form is not native.
    """
    messages = [_whole(message) for message in messages]
    if form.native:
        told = [shown(message, form) for message in messages]
        told = told if form.parallel else _one_by_one(told)
        told = told if form.own_ids else _numbered(told)
    else:
        told = in_hermes(messages, tools)
    return _folded(told) if form.folded else told


def _whole(message: Message) -> Message:
    """Return a message as every template can read it: null, or parts that are text, is a text.

    Beside calls null stays, for some templates tell calls by it. A list of no calls goes.
    """
    calls, content = message.get("tool_calls"), message.get("content")
    rest = message if calls else {k: v for k, v in message.items() if k != "tool_calls"}
    if (content is None and not calls) or (content and _is_text_parts(content)):
        return {**rest, "content": text_of(content)}
    return rest


def _is_text_parts(content: Any) -> bool:
    texts = (isinstance(part, dict) and part.get("type") == "text" for part in content)
    return isinstance(content, list) and all(texts)


def in_hermes(messages: Iterable[Message], tools: Tools) -> list[Message]:
    """Return messages in which tools, calls and results are text, as Hermes models take them."""
    told: list[Message] = []
    for message in messages:
        plain = _plain(message)
        if told and plain["role"] == told[-1]["role"] == "user":
            # Most templates that don't know tools want user and assistant in turns.
            said = f"{text_of(told[-1]['content'])}\n{text_of(plain['content'])}"
            told[-1] = {**told[-1], "content": said}
        else:
            told.append(plain)
    if not tools:
        return told
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = TOOLS_TEXT.format(tools=lines)
    if told and told[0]["role"] in SYSTEM:
        system = f"{text_of(told[0]['content'])}\n\n{text}"
        return [{**told[0], "content": system}, *told[1:]]
    return [{"role": "system", "content": text}, *told]


def shown(message: Message, form: Form | None = None) -> Message:
    """Return a message as templates take it: arguments of calls are an object, if they are one.

    Args:
        message: in OpenAI's form.
        form: says what else the template needs; None: nothing.
    """
    form = form or Form()
    if not (calls := message.get("tool_calls")):
        return message
    made = []
    for call in calls:
        function = call["function"]
        arguments = _arguments(function["arguments"], form.arguments)
        made.append({**call, "function": {**function, "arguments": arguments}})
    content = message.get("content")
    if content is None and not form.null:
        return {**message, "content": "", "tool_calls": made}
    return {**message, "tool_calls": made}


def text_of(content: Any) -> str:
    """Return content as text: it may be null, or a list of parts."""
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, dict) else part for part in content)
        return "\n".join(str(part) for part in parts if part)
    return "" if content is None else str(content)


def _arguments(given: Any, wanted: str) -> Any:
    value = _object(given)
    if wanted == "text":
        return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    if value is None:
        return {"arguments": given} if wanted == "object only" else given
    return value


def _object(text: Any) -> dict[str, Any] | None:
    if isinstance(text, dict):
        return text
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _plain(message: Message) -> Message:
    """Return a message whose calls, or whose result, is text."""
    if message["role"] == "tool":
        text = f"<tool_response>\n{text_of(message.get('content'))}\n</tool_response>"
        return {"role": "user", "content": text}
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    said = [text] if (text := text_of(message.get("content"))) else []
    calls = [_written(call["function"]) for call in message.get("tool_calls") or ()]
    whole = "\n".join([*said, *calls])
    return {
        **rest,
        "content": whole if calls or message.get("content") is None else rest["content"],
    }


def _written(function: Mapping[str, Any]) -> str:
    """Return a call as a model writes it: arguments that are no object stay as they are."""
    given = function["arguments"]
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    name = json.dumps(function["name"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {text}}}\n</tool_call>'


def _folded(messages: list[Message]) -> list[Message]:
    """Return messages whose system message opens the first user message."""
    if not (messages and messages[0]["role"] in SYSTEM):
        return messages
    text, rest = text_of(messages[0]["content"]), messages[1:]
    if rest and rest[0]["role"] == "user":
        content = f"{text}\n\n{text_of(rest[0]['content'])}"
        return [{**rest[0], "content": content}, *rest[1:]]
    return [{"role": "user", "content": text}, *rest]


def _one_by_one(messages: list[Message]) -> list[Message]:
    """Return messages of one call each, followed by its result where that is known."""
    told: list[Message] = []
    waiting: list[Message] = []  # calls whose results come next
    for message in messages:
        if message["role"] == "tool":
            told += [message, *waiting[:1]]
            waiting = waiting[1:]
            continue
        calls = message.get("tool_calls") or []
        first = {**message, "tool_calls": calls[:1]} if calls else message
        told += [*waiting, first]
        waiting = [{**message, "content": "", "tool_calls": [call]} for call in calls[1:]]
    return told + waiting


def _numbered(messages: list[Message]) -> list[Message]:
    """Return messages whose calls have nine digits as their ids."""
    ids: dict[Any, str] = {}
    told = []
    for message in messages:
        calls = message.get("tool_calls") or ()
        ids |= {call.get("id"): f"{len(ids) + n:09d}" for n, call in enumerate(calls)}
        made = [{**call, "id": ids[call.get("id")]} for call in calls]
        message = {**message, "tool_calls": made} if made else message
        if message["role"] == "tool":
            name = message.get("tool_call_id")
            message = {**message, "tool_call_id": ids.get(name, f"{len(ids):09d}")}
        told.append(message)
    return told


def _forms(shape: Shape) -> Iterator[Form]:
    """Yield forms, those that change least first."""
    folds = (False, True) if shape.system or shape.tools else (False,)
    nulls, ids, parallel = (True, False), (True, False), (True, False)
    kinds: tuple[Literal["object", "object only", "text"], ...] = ("object", "object only", "text")
    for folded in folds if shape.system else (False,):
        if not shape.calls:
            yield Form(folded=folded)
            continue
        for null, kind, own, many in product(nulls, kinds, ids, parallel):
            yield Form(True, folded, null, kind, own, many)
    if shape.calls:
        yield from (Form(native=False, folded=folded) for folded in folds)


def _line(error: Exception) -> str:
    """Return what an error says, as one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
