"""Parse the tool calls and thoughts that models write as text into OpenAI's form of a message.

Parsing never fails. A call that breaks its dialect becomes a call with arguments that are not valid
JSON, so that the environment answers with an error that the model sees.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from stages.messages.message import Message, definitions
from stages.messages.tool_parsers.bare import bare_calls, unfenced, wrapped_calls
from stages.messages.tool_parsers.calls import TextCall, Tools
from stages.messages.tool_parsers.families import FAMILIES, Grammar, any_grammar, grammar_of
from stages.messages.tool_parsers.signs import THOUGHTS, may_hold_calls

__all__ = [
    "TextCall",
    "may_hold_calls",
    "needed",
    "read_message",
    "recorded_calls",
    "tool_parser_of",
]

# Tokens that end a message. A harness that decodes special tokens leaves them in the text.
MESSAGE_END = re.compile(
    r"(?:<\|(?:im_end|eom_id|eot_id|eot|endoftext|end_of_text|end_of_role|return|user"
    r"|observation)\|>|</s>|<｜end▁of▁sentence｜>|<end_of_turn>|<eos>|\[e~\[)\Z"
)
# Parts of the prompt that a harness may leave at the beginning of a message.
MESSAGE_START = re.compile(
    r"\s*(?:<\|start_header_id\|>assistant<\|end_header_id\|>|<\|im_start\|>assistant"
    r"|<\|(?:begin_of_text|assistant|start_of_role\|>assistant<\|end_of_role)\|>"
    r"|<start_of_turn>model|<｜Assistant｜>|\[/INST\])\s*"
)
FENCE = re.compile("```|~~~")
HARMONY = re.compile(r"<\|(?:start|channel|constrain|message|end|call|return)\|>")
# Special tokens that are part of calls and thoughts; others only frame a message.
NEEDED = re.compile(
    r"</?(?:minimax:|seed:|longcat_)?(?:think|tool_calls?|function_calls?|arg_key|arg_value)>"
    r"|<\|/?(?:python_(?:tag|start|end)|tool_call\w*|action_(?:start|end)|plugin"
    r"|tools_(?:prefix|suffix)|START_ACTION|END_ACTION|role_sep|\")\|?>"
    r"|<tool_call\|>|<(?:start|end)_function_call>|<escape>|\[/?(?:TOOL_CALLS|ARGS|CALL_ID|THINK)\]"
    r"|<｜tool[▁_][\w▁]+｜>|</?｜DSML｜.*|｜DSML｜|◁/?think▷"
)


def tool_parser_of(template: str) -> str:
    """Return the dialect of a chat template; Hermes if it shows none."""
    for name, family in FAMILIES.items():
        if any(sign in template for sign in family.signs):
            return name
    return "hermes"


def needed(token: str, tool_parser: str) -> bool:
    """Return whether a special token is part of a call or of thoughts, and not only of a frame."""
    in_harmony = tool_parser == "harmony" and HARMONY.fullmatch(token)
    return bool(in_harmony or NEEDED.fullmatch(token))


def begins_thoughts(prompt: str) -> bool:
    """Return whether a prompt opens the thoughts, so that the model continues them."""
    return prompt.rstrip().endswith(tuple(THOUGHTS))


def read_message(
    text: str,
    tool_parser: str = "hermes",
    tools: Tools = (),
    call_id: str = "call",
    thinking: bool = False,
) -> Message:
    """Parse a model's text, without its end token, as an assistant message.

    Args:
        text: content, thoughts and calls, in any order.
        tool_parser: dialect of the calls.
        tools: OpenAI definitions; notations without types take the types from them.
        call_id: prefix of the ids of calls.
        thinking: whether the prompt has opened the thoughts.

    Returns:
        The message: `content` (null beside calls if nothing else was written), `tool_calls` with
        arguments as text, and `reasoning_content`, if there are any. JSON arguments stay verbatim.
    """
    thoughts, rest = _split_thoughts(text, thinking)
    grammar = grammar_of(tool_parser)
    calls, content, more = _scan(rest, grammar, tools)
    if grammar.bare and not calls and (calls := bare_calls(rest, ())):
        content = ""
    thoughts = "\n".join(part.strip() for part in (thoughts, more) if part.strip())
    message: Message = {"role": "assistant", "content": content or (None if calls else "")}
    if thoughts:
        message["reasoning_content"] = thoughts
    return _with_calls(message, calls, call_id)


def recorded_calls(text: str, tools: Tools = ()) -> list[TextCall]:
    """Parse the calls in a recorded text of an unknown model, each in its own dialect.

    Calls without markers count only if the whole text is calls. Quoted calls do not count. A call
    written as a Python dict is read too, because a harness may have printed it.

    Args:
        text: content, thoughts and calls; thoughts that end without a beginning were begun by the
            prompt.
        tools: OpenAI definitions; empty: unknown.
    """
    if not may_hold_calls(text):
        return []
    begun = any(end in text.partition(begin)[0] for begin, end in THOUGHTS.items())
    _, rest = _split_thoughts(text, begun)
    start = MESSAGE_START.match(rest)
    rest = unfenced(_without_end(rest[start.end() :] if start else rest))
    calls, _, _ = _scan(rest, any_grammar(), tools, quotes=True)
    names = definitions(tools)
    return calls or bare_calls(rest, names) or wrapped_calls(rest, names)


def _without_end(text: str) -> str:
    text = text.rstrip()
    while end := MESSAGE_END.search(text, max(0, len(text) - 40)):  # longer than any such token
        text = text[: end.start()].rstrip()
    return text


def _scan(
    text: str, grammar: Grammar, tools: Tools, quotes: bool = False
) -> tuple[list[TextCall], str, str]:
    """Return the calls of a text, the text around them, and thoughts of harmony.

    Args:
        text: text without leading thoughts.
        grammar: grammar of the calls.
        tools: OpenAI definitions.
        quotes: whether to skip calls in inline code and in fences.
    """
    calls: list[TextCall] = []
    content: list[str] = []
    thoughts: list[str] = []
    at = start = 0
    is_fenced = False
    while opening := grammar.opening.search(text, at):
        place = opening.start()
        before = text[at:place]
        is_fenced ^= len(FENCE.findall(before)) % 2 == 1
        if quotes and (end := _end_of_thought(text, start, place)):
            at = end
            continue
        marked = quotes and text[place - 1 : place] == "`" and not before.endswith("```")
        if marked or (quotes and is_fenced):
            stop = text.find("`", opening.end()) if marked else -1
            at = stop + 1 if stop >= 0 else opening.end()
            continue
        name = opening.lastgroup or ""
        reading = grammar.readers[name](text, opening, tools)
        if reading is None:
            at = opening.end()
            continue
        content += text[start:place], reading.content
        thoughts.append(reading.thoughts)
        calls += reading.calls
        at = start = max(reading.end, opening.end())
    content.append(text[start:])
    return calls, "".join(content).strip(), "\n".join(filter(None, thoughts))


def _end_of_thought(text: str, start: int, place: int) -> int:
    """Return the end of the thought around a place; 0 if there is none that ends."""
    for begin, end in THOUGHTS.items():
        begun = text.rfind(begin, start, place)
        if begun >= 0 and text.find(end, begun, place) < 0:
            return text.find(end, place) + 1
    return 0


def _split_thoughts(text: str, thinking: bool) -> tuple[str, str]:
    """Return the thoughts and the rest; thoughts that never end leave no rest."""
    inner = text.lstrip()
    begin = next((begin for begin in THOUGHTS if inner.startswith(begin)), None)
    if begin is None and not thinking:
        return "", text
    inner = inner.removeprefix(begin or "")
    ends = [THOUGHTS[begin]] if begin else list(THOUGHTS.values())
    end = min((end for end in ends if end in inner), key=inner.index, default=ends[0])
    thoughts, _, rest = inner.partition(end)
    return thoughts.strip(), rest


def _with_calls(message: Message, calls: Iterable[TextCall], call_id: str) -> Message:
    made = [
        {
            "id": f"{call_id}_{place}",
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": call.arguments or ("" if call.broken else "{}"),
            },
        }
        for place, call in enumerate(calls)
    ]
    return {**message, "tool_calls": made} if made else message
