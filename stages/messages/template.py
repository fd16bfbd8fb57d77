"""Find the form of a conversation that a chat template shows completely.

Many small models have a template that ignores tools, calls or the system message, or fails on
them. Rendering a probe, a made-up conversation of words that occur nowhere else, shows what a
template loses. Such a template gets the conversation in another form:

    tools, calls and results    as text in Hermes form, if the template does not show all three
    the system message          at the start of the first user message
    content null beside calls   as ""; without calls, null is always ""
    arguments of calls          as the text that was written, instead of an object
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

# Marks the template of a model that was trained without tools in its prompt and knows them anyway.
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
    """The form of messages for a template; by default, they stay unchanged."""

    native: bool = True  # the template shows tools, calls and results; else they are text
    folded: bool = False  # the system message opens the first user message
    null: bool = True  # content beside calls may be null
    arguments: Literal["object", "object only", "text"] = "object"  # only: broken ones too
    own_ids: bool = True  # calls keep their ids; else they get nine digits
    parallel: bool = True  # a message may hold several calls


class Template:
    """A tokenizer's chat template, and the form of conversations that it needs.

    Args:
        tokenizer: tokenizer of transformers, with a chat template.

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
            messages: messages in OpenAI's form.
            tools: OpenAI definitions.
            prompt: whether to open the assistant's next message.

        Raises:
            InputError: the template refuses the conversation.
        """
        form = self.form(Shape.of(messages, tools))
        try:
            return self._render(form, messages, tools, prompt)
        except Exception as error:  # a template is a program and may raise anything
            what = f"its chat template refuses the conversation: {_line(error)}"
            todo = "give a model whose template takes such messages"
            raise InputError(self.name, what, todo) from None

    def form(self, shape: Shape) -> Form:
        """Return the form with the fewest changes that the template shows completely.

        Raises:
            InputError: there is none.
        """
        if shape not in self._forms:
            self._forms[shape] = self._find(shape)
        return self._forms[shape]

    def tool_parser(self, messages: Sequence[Message], tools: Tools) -> str:
        """Return the dialect of calls that the prompt asks for."""
        native = self.form(Shape.of(messages, tools)).native
        return tool_parser_of(self._text) if native else "hermes"

    def told(self, tools: Tools) -> Told:
        """Return how the prompt presents the tools and the system message.

        Returns:
            A record of `tools`: "template", "messages" (as text in Hermes form) or "weights"; and
            of `system`: "system", or "user" if it opens the first user message.
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
        """Whether the model knows its tools and instructions without seeing them."""
        return IN_WEIGHTS in self._text

    @cached_property
    def _text(self) -> str:
        """The template's text; if there are several, the one for conversations with tools."""
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
        # The last form requires least of the template.
        what = f"its chat template can't hold such a conversation: {reasons[-1]}"
        raise InputError(self.name, what, ANOTHER)

    def _lost(self, form: Form, shape: Shape) -> str | None:
        """Return what the template loses of a probe in this form, or None."""
        tools = PROBE_TOOLS if shape.tools else []
        for messages in probes(shape):
            text = self._render(form, messages, tools, True)
            for word, what in words(messages, tools, by_heart=self.in_weights):
                if word not in text:
                    return what
        return None

    def _without_none(self, form: Form, shape: Shape) -> Form:
        """Return the form with "" for null if the template writes null as a word."""
        other = replace(form, null=False)
        if not (shape.calls and form.native and form.null):
            return form
        messages, tools = probes(shape)[-1], PROBE_TOOLS if shape.tools else []
        try:
            texts = [self._render(candidate, messages, tools, True) for candidate in (form, other)]
        except Exception:  # templates that recognise calls by null content fail on ""
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

        It is the first special token after an answer, which may differ from the end of a text:
        Gemma and Phi have both.
        """
        eos: str | None = self._tokenizer.eos_token
        messages = [{"role": "user", "content": "zquser"}, {"role": "assistant", "content": SAID}]
        try:
            text = self._render(Form(), messages, [], False)
        except Exception:  # `render` reports it
            return eos
        tail = text.rpartition(SAID)[2].lstrip()
        known = [token for token in self._tokenizer.get_added_vocab() if tail.startswith(token)]
        return max(known, key=len, default=eos)


def formed(form: Form, messages: Sequence[Message], tools: Tools) -> list[Message]:
    """Return messages in the form that a template needs.

    Args:
        form: form that the template needs.
        messages: messages in OpenAI's form.
        tools: OpenAI definitions; they go into the messages if the form is not native.
    """
    messages = [_whole(message) for message in messages]
    if form.native:
        made = [shown(message, form) for message in messages]
        made = made if form.parallel else _one_by_one(made)
        made = made if form.own_ids else _numbered(made)
    else:
        made = in_hermes(messages, tools)
    return _folded(made) if form.folded else made


def _whole(message: Message) -> Message:
    """Return a message for any template: null content, and parts that are text, become a text.

    Null stays beside calls, because some templates recognise calls by it. An empty list of calls is
    dropped.
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
    """Return messages with tools, calls and results as text in Hermes form."""
    made: list[Message] = []
    for message in messages:
        plain = _plain(message)
        if made and plain["role"] == made[-1]["role"] == "user":
            # Most templates without tools require user and assistant to alternate.
            said = f"{text_of(made[-1]['content'])}\n{text_of(plain['content'])}"
            made[-1] = {**made[-1], "content": said}
        else:
            made.append(plain)
    if not tools:
        return made
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = TOOLS_TEXT.format(tools=lines)
    if made and made[0]["role"] in SYSTEM:
        system = f"{text_of(made[0]['content'])}\n\n{text}"
        return [{**made[0], "content": system}, *made[1:]]
    return [{"role": "system", "content": text}, *made]


def shown(message: Message, form: Form | None = None) -> Message:
    """Return a message with the arguments of calls as objects, if they are JSON objects.

    Args:
        message: a message in OpenAI's form.
        form: form that the template needs; None: the default.
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
    """Return a message with its calls, or its tool result, as text."""
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
    """Return a call as text in Hermes form; arguments that are text stay unchanged."""
    given = function["arguments"]
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    name = json.dumps(function["name"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {text}}}\n</tool_call>'


def _folded(messages: list[Message]) -> list[Message]:
    """Return messages with the system message at the start of the first user message."""
    if not (messages and messages[0]["role"] in SYSTEM):
        return messages
    text, rest = text_of(messages[0]["content"]), messages[1:]
    if rest and rest[0]["role"] == "user":
        content = f"{text}\n\n{text_of(rest[0]['content'])}"
        return [{**rest[0], "content": content}, *rest[1:]]
    return [{"role": "user", "content": text}, *rest]


def _one_by_one(messages: list[Message]) -> list[Message]:
    """Return messages of one call each, followed by its result if that is known."""
    made: list[Message] = []
    waiting: list[Message] = []  # calls whose results come next
    for message in messages:
        if message["role"] == "tool":
            made += [message, *waiting[:1]]
            waiting = waiting[1:]
            continue
        calls = message.get("tool_calls") or []
        first = {**message, "tool_calls": calls[:1]} if calls else message
        made += [*waiting, first]
        waiting = [{**message, "content": "", "tool_calls": [call]} for call in calls[1:]]
    return made + waiting


def _numbered(messages: list[Message]) -> list[Message]:
    """Return messages whose calls have nine digits as their ids."""
    ids: dict[Any, str] = {}
    made = []
    for message in messages:
        calls = message.get("tool_calls") or ()
        ids |= {call.get("id"): f"{len(ids) + n:09d}" for n, call in enumerate(calls)}
        numbered = [{**call, "id": ids[call.get("id")]} for call in calls]
        message = {**message, "tool_calls": numbered} if numbered else message
        if message["role"] == "tool":
            name = message.get("tool_call_id")
            message = {**message, "tool_call_id": ids.get(name, f"{len(ids):09d}")}
        made.append(message)
    return made


def _forms(shape: Shape) -> Iterator[Form]:
    """Yield forms, those with the fewest changes first."""
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
    """Return the first line of an error's message, or the error's type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
