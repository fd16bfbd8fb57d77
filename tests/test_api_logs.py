"""Requests, responses, logs and batches of the vendors' APIs, and data sets of conversations."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.arguments import parse_arguments
from stages.traces import (
    adk,
    anthropic,
    batch,
    chat,
    gemini,
    message_list,
    responses,
    sharegpt,
)
from stages.traces.clean import Writer, clean_messages
from stages.traces.episode import GoldAction
from stages.traces.fields import BadItemError
from stages.traces.histories import History, ModelCall, conversation
from stages.traces.turns import read_turns, text_of
from tests import trace_writers
from tests.builders import SHARED
from tests.trace_writers import Talk, talks
from tests.translated import clean, episodes, takers, told

Json = dict[str, Any]

USER = {"role": "user", "content": "Weather in Paris?"}
CALL = ("get_weather", {"city": "Paris"})
FUNCTION = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
DEFINITION = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}

# --- Anthropic ------------------------------------------------------------------------------------

TOOL_USE = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
TOOL_RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no", "is_error": True}
CLAUDE_TOOL = {"name": "get_weather", "input_schema": SCHEMA}


def claude_says(*content: Json, stop: str = "end_turn") -> Json:
    said: Json = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x"}
    usage = {"input_tokens": 1, "output_tokens": 7}
    return said | {"content": list(content), "stop_reason": stop, "usage": usage}


def text(value: str) -> Json:
    return {"type": "text", "text": value}


FIRST = {"model": "claude-x", "max_tokens": 99, "system": "Help.", "tools": [CLAUDE_TOOL]}
FIRST |= {"messages": [USER]}
SECOND = FIRST | {
    "messages": [
        USER,
        {"role": "assistant", "content": [text("I look."), TOOL_USE]},
        {"role": "user", "content": [TOOL_RESULT]},
    ]
}
ASKED = claude_says(text("I look."), TOOL_USE, stop="tool_use")
DONE = claude_says(text("No idea."))
SPOKEN = [("I look.", [(*CALL, "no", True)]), ("No idea.", [])]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda request, response: {**request, "response": response},
        lambda request, response: {"request": request, "response": response},
        lambda request, response: {"request": {"body": request}, "response": {"body": response}},
        lambda request, response: {"input": json.dumps(request), "output": json.dumps(response)},
    ],
)
def test_calls_that_go_on_from_one_another_are_one_conversation(wrap: Any) -> None:
    notes = Counter[str]()
    other = {**FIRST, "messages": [{"role": "user", "content": "Hi"}]}
    log = [wrap(FIRST, ASKED), wrap(other, claude_says(text("Hello."))), wrap(SECOND, DONE)]
    talk, greeting = episodes(anthropic, *log, notes=notes)
    assert told(talk) == SPOKEN and told(greeting) == [("Hello.", [])]
    assert (talk.policy, talk.tools, talk.opening) == ("claude-x", [DEFINITION], USER["content"])


def test_a_request_alone_is_the_conversation() -> None:
    [episode] = episodes(anthropic, SECOND)
    assert told(episode) == SPOKEN[:1]


def test_thoughts_are_kept_beside_what_was_said() -> None:
    thinking = {"type": "thinking", "thinking": "hm", "signature": ""}
    [record] = clean(anthropic, {**FIRST, "response": claude_says(thinking, text("Rain."))})
    assert record["messages"][-1] == {
        "role": "assistant",
        "content": "Rain.",
        "n_tokens": 7,
        "reasoning_content": "hm",
    }


def test_server_tools_are_calls_with_results() -> None:
    use = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "x"}}
    failed = {"type": "web_search_tool_result_error", "error_code": "unavailable"}
    result = {"type": "web_search_tool_result", "tool_use_id": "s1", "content": failed}
    [episode] = episodes(anthropic, {**FIRST, "response": claude_says(use, result, text("So."))})
    [call] = episode.turns[0].calls
    assert (call.name, call.flagged) == ("web_search", True) and episode.turns[0].text == "So."


def test_an_answer_cut_by_its_limit_is_truncated() -> None:
    response = claude_says(text("It is"), stop="max_tokens")
    [episode] = episodes(anthropic, {**FIRST, "response": response})
    assert (episode.status, episode.outcome) == ("truncated", None)


def test_results_of_a_batch_find_their_requests() -> None:
    lines: list[Json] = [
        {"custom_id": "b", "result": {"type": "succeeded", "message": DONE}},
        {"custom_id": "a", "result": {"type": "errored", "error": {"type": "overloaded"}}},
        {"custom_id": "a", "params": FIRST},
        {"custom_id": "b", "params": SECOND},
    ]
    right, wrong = episodes(batch, *lines)
    assert (told(right), right.task_id, right.status) == (SPOKEN, "b", "ok")
    assert (told(wrong), wrong.task_id, wrong.status) == ([], "a", "error")


def test_results_of_a_batch_alone_are_read() -> None:
    [episode] = episodes(
        batch, {"custom_id": "b", "result": {"type": "succeeded", "message": DONE}}
    )
    assert told(episode) == SPOKEN[1:]


def test_requests_of_a_batch_alone_are_refused() -> None:
    with pytest.raises(BadItemError, match="is a request of a batch without its result"):
        clean(batch, {"custom_id": "b", "params": FIRST})


# --- OpenAI ---------------------------------------------------------------------------------------


def choice(message: Json, reason: str = "stop") -> Json:
    return {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}


def completion(*choices: Json) -> Json:
    return {"id": "c", "object": "chat.completion", "model": "gpt-x", "choices": list(choices)}


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "tool_calls": [{"id": "x", "type": "function", "function": FUNCTION}]},
        {"content": None, "function_call": FUNCTION},
    ],
)
def test_a_logged_chat_completion(message: Json) -> None:
    request = {"model": "gpt-x", "messages": [USER], "tools": [DEFINITION]}
    record = {"request": request, "response": completion(choice(message, "tool_calls"))}
    [episode] = episodes(chat, record | {"task_id": "t1", "outcome": 0.5})
    assert told(episode) == [("", [(*CALL, None, None)])]
    assert (episode.task_id, episode.outcome, episode.policy) == ("t1", 0.5, "gpt-x")
    assert episode.tools == [DEFINITION]


def test_a_log_of_bare_messages() -> None:
    answer = {"role": "assistant", "content": "Hi"}
    [episode] = episodes(chat, {"messages": [USER], "response": answer})
    assert told(episode) == [("Hi", [])]


def test_choices_are_samples_of_one_task() -> None:
    answers = completion(choice({"content": "a"}), choice({"content": "b"}, "length"))
    both = episodes(chat, {"messages": [USER], "response": answers, "task_id": 3})
    assert [(e.task_id, e.trial, e.status) for e in both] == [
        ("3", 0, "ok"),
        ("3", 1, "truncated"),
    ]


def test_a_batch_of_chat_completions() -> None:
    body = {"model": "gpt-x", "messages": [USER]}
    request = {"custom_id": "r", "method": "POST", "url": "/v1/chat/completions", "body": body}
    answer = {"status_code": 200, "request_id": "q", "body": completion(choice({"content": "Hi"}))}
    result = {"id": "batch_req_1", "custom_id": "r", "response": answer, "error": None}
    [episode] = episodes(batch, request, result)
    assert (told(episode), episode.opening) == ([("Hi", [])], USER["content"])
    failed = {**result, "response": {"status_code": 429, "body": {"error": {"code": "slow"}}}}
    [episode] = episodes(batch, request, failed)
    assert episode.status == "error"


ITEMS: list[Json] = [
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "x", **FUNCTION},
]
OUTPUT = {"type": "function_call_output", "call_id": "x", "output": "rain"}
SAID = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Wet."}],
}


@pytest.mark.parametrize("system", [{"instructions": "Help."}, {}])
def test_responses_with_their_input(system: Json) -> None:
    tools = [{"type": "function", "name": "get_weather", "parameters": SCHEMA}]
    record = {**system, "input": [USER, *ITEMS, OUTPUT], "output": [SAID], "tools": tools}
    [episode] = episodes(responses, record)
    assert told(episode) == [("", [(*CALL, "rain", None)]), ("Wet.", [])]
    assert episode.tools == [DEFINITION]
    [record] = clean(responses, record)
    assert record["messages"][-3]["reasoning_content"] == "hm"


@pytest.mark.parametrize(
    ("status", "details", "read"),
    [
        ("completed", None, "ok"),
        ("incomplete", {"reason": "max_output_tokens"}, "truncated"),
        ("failed", None, "error"),
    ],
)
def test_a_stored_response(status: str, details: Any, read: str) -> None:
    response = {"object": "response", "id": "r", "status": status, "incomplete_details": details}
    response |= {"model": "gpt-x", "output": [SAID], "error": None}
    for record in (response, {"type": f"response.{status}", "response": response}):
        [episode] = episodes(responses, record)
        assert (told(episode), episode.status) == ([("Wet.", [])], read)


def test_a_stream_is_the_response_at_its_end() -> None:
    begun = {"object": "response", "status": "in_progress", "output": []}
    events: list[Json] = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_text.delta", "delta": "Wet."},
        {"type": "response.completed", "response": {**begun, "output": [SAID]}},
    ]
    [episode] = episodes(responses, *events)
    assert told(episode) == [("Wet.", [])]


def test_a_response_whose_history_is_on_the_server_is_refused() -> None:
    response = {"object": "response", "output": [SAID], "previous_response_id": "r0"}
    with pytest.raises(BadItemError, match="previous_response_id"):
        clean(responses, response)


# --- Gemini ---------------------------------------------------------------------------------------

CONTENTS: list[Json] = [
    {"role": "user", "parts": [{"text": "Weather in Paris?"}]},
    {"role": "model", "parts": [{"functionCall": {"name": CALL[0], "args": CALL[1]}}] * 2},
    {
        "role": "user",
        "parts": [
            {"functionResponse": {"name": CALL[0], "response": {"result": "rain"}}},
            {"functionResponse": {"name": CALL[0], "response": {"error": "no"}}},
        ],
    },
]
WET = {"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": "Wet."}]}
CALLED = [("", [(*CALL, "rain", None), (*CALL, '{"error": "no"}', None)]), ("Wet.", [])]


@pytest.mark.parametrize(
    "record",
    [
        {"contents": [*CONTENTS, WET], "systemInstruction": {"parts": [{"text": "Help."}]}},
        {"contents": [*CONTENTS, WET], "system_instruction": "Help."},
        {"request": {"contents": CONTENTS}, "response": {"candidates": [{"content": WET}]}},
    ],
)
def test_contents_of_gemini(record: Json) -> None:
    declarations = [{"functionDeclarations": [{"name": "get_weather", "parameters": SCHEMA}]}]
    place = record.get("request", record)
    place["tools"] = declarations
    notes = Counter[str]()
    [episode] = episodes(gemini, record, notes=notes)
    assert told(episode) == CALLED and "call id missing" not in notes
    assert episode.tools == [DEFINITION]


BARE = {"contents": [CONTENTS[0], {"role": "model", "parts": [{"functionCall": {"name": "look"}}]}]}
CUT = {"candidates": [{"finishReason": "MAX_TOKENS"}]}
ROLELESS = {"candidates": [{"content": {"parts": [{"text": "Wet."}]}}]}


@pytest.mark.parametrize(
    ("record", "right"),
    [
        (BARE, [("", [("look", {}, None, None)])]),
        ({"request": {"contents": CONTENTS[:1]}, "response": CUT}, [("", [])]),
        ({"request": {"contents": CONTENTS[:1]}, "response": ROLELESS}, [("Wet.", [])]),
    ],
)
def test_what_gemini_leaves_out(record: Json, right: list[Any]) -> None:
    [episode] = episodes(gemini, record)
    assert told(episode) == right


def test_sessions_of_the_agent_development_kit() -> None:
    events: list[Json] = [
        {"author": "a" if place else "user", "content": c} for place, c in enumerate(CONTENTS)
    ]
    events += [{"author": "a", "content": WET, "partial": True}, {"author": "a", "content": WET}]
    [episode] = episodes(adk, {"id": "s", "appName": "weather", "events": events})
    assert (told(episode), episode.episode_id, episode.policy) == (CALLED, "s", "weather")


USE = {"id": "x", "name": CALL[0], "args": CALL[1]}
INVOCATION = {
    "user_content": CONTENTS[0],
    "intermediate_data": {
        "tool_uses": [USE],
        "tool_responses": [{"id": "x", "name": CALL[0], "response": {"result": "rain"}}],
    },
    "final_response": {"role": "model", "parts": [{"text": "Wet."}]},
}


def test_eval_sets_and_their_results() -> None:
    case = {"eval_id": "e1", "conversation": [INVOCATION]}
    [episode] = episodes(adk, {"eval_set_id": "s", "eval_cases": [case]})
    right = [("", [(*CALL, "rain", None)]), ("Wet.", [])]
    assert (told(episode), episode.task_id, episode.gold) == (right, "e1", None)
    for status, outcome in ((1, 1.0), (2, 0.0), (3, None)):
        result = {"eval_id": "e1", "final_eval_status": status, "session_id": "s1"}
        both = {"actual_invocation": INVOCATION, "expected_invocation": INVOCATION}
        result["eval_metric_result_per_invocation"] = [both]
        [episode] = episodes(adk, {"eval_set_result_id": "r", "eval_case_results": [result]})
        assert (told(episode), episode.outcome) == (right, outcome)
        assert episode.gold == (GoldAction(*CALL),)


# --- data sets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        {
            "conversations": [
                {"from": "human", "value": "Weather in Paris?"},
                {"from": "function_call", "value": json.dumps(FUNCTION)},
                {"from": "observation", "value": "rain"},
                {"from": "gpt", "value": "Wet."},
            ],
            "tools": json.dumps([DEFINITION["function"]]),
        },
        {
            "conversations": [
                {"from": "system", "value": "You call tools."},
                {"from": "human", "value": "Weather in Paris?"},
                {"from": "gpt", "value": f"<tool_call>\n{json.dumps(FUNCTION)}\n</tool_call>"},
                {"from": "tool", "value": "<tool_response>\nrain\n</tool_response>"},
                {"from": "gpt", "value": "Wet."},
            ]
        },
        {
            "system": "You compose functions.",
            "conversations": [
                {"from": "user", "value": "Weather in Paris?"},
                {"from": "assistant", "value": '[get_weather(city="Paris")]'},
                {"from": "tool", "value": "rain"},
                {"from": "assistant", "value": "Wet."},
            ],
        },
        {
            "system": "SYSTEM: You are a helpful assistant",
            "chat": "USER: Weather in Paris?\n\n\nASSISTANT: <functioncall> "
            '{"name": "get_weather", "arguments": \'{"city": "Paris"}\'} <|endoftext|>\n\n\n'
            "FUNCTION RESPONSE: rain\n\n\nASSISTANT: Wet. <|endoftext|>",
        },
    ],
    ids=["llama-factory", "hermes", "toolace", "glaive"],
)
def test_data_sets_of_conversations(record: Json) -> None:
    [episode] = episodes(sharegpt, record)
    [first, last] = told(episode)
    assert first[1] == [(*CALL, "rain", None)] and last == ("Wet.", [])
    assert episode.opening == "Weather in Paris?"
    if "tools" in record:
        assert episode.tools == [DEFINITION]


def test_toolace_calls_tools_with_spaces_in_their_names() -> None:
    value = "[Market Trends API(kind=\"a)b\", n=[1, true]), get_weather(city='Paris')]"
    results = [{"name": "get_weather", "results": 1}, {"name": "Market Trends API", "results": 2}]
    spoken = [
        {"from": "user", "value": "Both."},
        {"from": "assistant", "value": value},
        {"from": "tool", "value": json.dumps(results)},
    ]
    [episode] = episodes(sharegpt, {"system": "", "conversations": spoken})
    [(_, calls)] = told(episode)
    assert [call[:2] for call in calls] == [
        ("Market Trends API", {"kind": "a)b", "n": [1, True]}),
        CALL,
    ]
    assert [json.loads(call[2])["results"] for call in calls] == [2, 1]


def test_prose_in_brackets_is_no_call() -> None:
    spoken = [{"from": "user", "value": "?"}, {"from": "assistant", "value": "[As of (2024)]"}]
    [episode] = episodes(sharegpt, {"conversations": spoken})
    assert told(episode) == [("[As of (2024)]", [])]


def test_xlam_calls_are_one_turn() -> None:
    calls = [{"name": "get_weather", "arguments": {"city": c}} for c in ("Paris", "Rome")]
    tools = [{"name": "get_weather", "description": "d", "parameters": {"city": {"type": "str"}}}]
    record = {"id": 1, "query": "?", "answers": json.dumps(calls), "tools": json.dumps(tools)}
    [episode] = episodes(sharegpt, record)
    assert [call[1] for call in told(episode)[0][1]] == [{"city": "Paris"}, {"city": "Rome"}]


def test_the_first_sharegpt_data_set() -> None:
    items = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    [episode] = episodes(sharegpt, {"id": "x", "items": items})
    assert told(episode) == [("hello", [])]


# --- lists of messages ----------------------------------------------------------------------------

LANGCHAIN = [
    ("human", {"content": "Weather in Paris?"}),
    ("ai", {"content": "", "tool_calls": [{"id": "x", "name": CALL[0], "args": CALL[1]}]}),
    ("tool", {"content": "rain", "tool_call_id": "x", "status": "error"}),
    ("ai", {"content": "Wet."}),
]
CLASSES = {"human": "HumanMessage", "ai": "AIMessage", "tool": "ToolMessage"}
PATH = ["langchain", "schema", "messages"]


@pytest.mark.parametrize(
    "dump",
    [
        lambda kind, data: {"type": kind, **data},
        lambda kind, data: {"type": kind, "data": {"type": kind, **data}},
        lambda kind, data: {
            "lc": 1,
            "type": "constructor",
            "id": [*PATH, CLASSES[kind]],
            "kwargs": data,
        },
    ],
)
def test_dumps_of_langchain_messages(dump: Any) -> None:
    [episode] = episodes(message_list, *(dump(kind, data) for kind, data in LANGCHAIN))
    assert told(episode) == [("", [(*CALL, "rain", True)]), ("Wet.", [])]


def test_items_alone_are_one_conversation() -> None:
    [episode] = episodes(message_list, USER, ITEMS[1], OUTPUT, SAID)
    assert told(episode) == [("", [(*CALL, "rain", None)]), ("Wet.", [])]


# --- all forms ------------------------------------------------------------------------------------


def spoken(messages: list[Any]) -> list[Any]:
    turns, _ = read_turns(messages, Counter())
    return [
        (
            turn.n_tokens,
            text_of(turn.text),
            [(c.name, parse_arguments(c.arguments).value, c.result, c.flagged) for c in turn.calls],
        )
        for turn in turns
    ]


@settings(max_examples=60, deadline=None)
@given(talks())
def test_clean_messages_say_the_same(talk: Talk) -> None:
    """What any form says is said by its clean messages, too; those are clean already."""
    for form in set(trace_writers.FORMS.values()) - {trace_writers.react}:  # one call a turn
        messages = form(talk)
        cleaned = clean_messages(messages, Counter())
        assert spoken(cleaned) == spoken(messages)
        assert clean_messages(cleaned, Counter()) == cleaned


ENTRY = {"id": "c", "type": "function", "function": FUNCTION}
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer"])},
    optional={
        "content": st.none() | st.sampled_from(["x", "", '{"a": 1}']),
        "tool_calls": st.none() | st.lists(st.sampled_from([ENTRY, FUNCTION, {}]), max_size=2),
        "tool_call_id": st.none() | st.sampled_from(["c", ""]),
        "name": st.none() | st.just("f"),
        "n_tokens": st.none() | st.just(3),
        "refusal": st.none() | st.just("no"),
        "error": st.booleans(),
    },
)


def cleaned(messages: list[Any]) -> Any:
    notes = Counter[str]()
    try:
        return clean_messages(messages, notes), notes
    except BadItemError as bad:
        return bad.what


@settings(max_examples=200, deadline=None)
@given(st.lists(MESSAGES, max_size=4))
def test_plain_messages_are_copied_as_a_closer_look_reads_them(messages: list[Json]) -> None:
    copied = cleaned(messages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "_copy_plain", lambda self, message: False)
        assert cleaned(messages) == copied


@settings(max_examples=40, deadline=None)
@given(talks())
def test_what_histories_share_is_cleaned_once(talk: Talk) -> None:
    """Merging calls gives the same as where each history is cleaned as a whole."""
    for form in trace_writers.FORMS.values():
        recorded = form(talk)
        calls = [ModelCall(recorded[:n], recorded[n : n + 1]) for n in range(len(recorded))]
        notes, slow_notes = Counter[str](), Counter[str]()
        merged = conversation(calls, [], notes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(History, "begins", lambda self, heard: not self.messages)
            assert conversation(calls, [], slow_notes) == merged
        assert notes == slow_notes


@pytest.mark.parametrize("record", [{"messages": [USER], "outcome": 1, "tools": [DEFINITION]}, {}])
def test_plain_messages_are_of_none_of_them(record: Json) -> None:
    assert not takers(record)


def test_a_tool_whose_input_is_plain_text() -> None:
    call = {"id": "c", "type": "custom", "custom": {"name": "run", "input": "ls"}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    response = {"object": "chat.completion", "choices": [{"index": 0, "message": asked}]}
    [episode] = episodes(chat, {"request": {"messages": [USER]}, "response": response})
    [turn] = episode.turns
    assert [(made.name, made.arguments) for made in turn.calls] == [("run", "ls")]


@pytest.mark.parametrize("kind", ["custom_tool_call", "mcp_call"])
def test_calls_alone_are_items(kind: str) -> None:
    item = {"type": kind, "id": "i", "call_id": "c", "name": "run", "input": "ls"}
    [episode] = episodes(responses, {"input": "hi", "output": [item], "model": "m"})
    assert [call.name for turn in episode.turns for call in turn.calls] == ["run"]


def test_a_hosted_call_is_refused_as_one() -> None:
    item = {"type": "web_search_call", "id": "w", "action": {"type": "search"}}
    with pytest.raises(BadItemError, match="message 2 has a call of the kind 'web_search_call'"):
        episodes(responses, {"input": "hi", "output": [item], "model": "m"})


def test_a_broken_call_is_refused_with_its_place() -> None:
    broken = {"type": "tool_use", "id": "x", "name": "get"}
    with pytest.raises(BadItemError, match="message 3 has a call of 'get' without arguments"):
        clean(anthropic, {**FIRST, "response": claude_says(broken)})


# --- public files and the vendors' packages -------------------------------------------------------


@pytest.mark.skipif(not SHARED.exists(), reason="the shared files are not here")
def test_the_public_file_of_llama_factory() -> None:
    data = gzip.decompress(
        (SHARED / "data/formats/llamafactory_reason_tool_use_50.jsonl.gz").read_bytes()
    )
    rows = [orjson.loads(line) for line in data.splitlines()]
    turns = [read_turns(clean_messages(row["messages"], Counter()), Counter())[0] for row in rows]
    assert (len(turns), sum(len(t.calls) for several in turns for t in several)) == (50, 68)
    assert all(turn.text or turn.calls for several in turns for turn in several)


def test_messages_that_anthropics_package_dumps() -> None:
    types = pytest.importorskip("anthropic.types")
    message = types.Message.model_validate(ASKED)
    [episode] = episodes(anthropic, {**FIRST, "response": message.model_dump(mode="json")})
    assert told(episode) == [("I look.", [(*CALL, None, None)])]


def test_responses_that_openais_package_dumps() -> None:
    chats = pytest.importorskip("openai.types.chat")
    stores = pytest.importorskip("openai.types.responses")
    said = {**SAID, "id": "m", "status": "completed"}
    said["content"] = [{"type": "output_text", "text": "Wet.", "annotations": []}]
    stored = {"id": "r", "object": "response", "created_at": 1, "model": "gpt-x", "tools": []}
    stored |= {"output": [said], "parallel_tool_calls": True, "tool_choice": "auto"}
    dumped = stores.Response.model_validate(stored).model_dump(mode="json")
    [episode] = episodes(responses, {"input": "?", "response": dumped})
    assert told(episode) == [("Wet.", [])]
    call = {"id": "x", "type": "function", "function": FUNCTION}
    answer = completion(choice({"content": None, "tool_calls": [call]}, "tool_calls"))
    dumped = chats.ChatCompletion.model_validate({**answer, "created": 1}).model_dump(mode="json")
    [episode] = episodes(chat, {"messages": [USER], "response": dumped})
    assert told(episode) == [("", [(*CALL, None, None)])]


def test_messages_that_langchain_dumps() -> None:
    dumpd = pytest.importorskip("langchain_core.load").dumpd
    core = pytest.importorskip("langchain_core.messages")
    calls = [{"id": "x", "name": CALL[0], "args": CALL[1], "type": "tool_call"}]
    history = [
        core.HumanMessage("Weather in Paris?"),
        core.AIMessage("", tool_calls=calls),
        core.ToolMessage("rain", tool_call_id="x", status="error"),
        core.AIMessage("Wet."),
    ]
    for dump in (core.messages_to_dict(history), [dumpd(m) for m in history],
                 [m.model_dump() for m in history]):  # fmt: skip
        [episode] = episodes(message_list, *dump)
        assert told(episode) == [("", [(*CALL, "rain", True)]), ("Wet.", [])]


def test_contents_that_googles_package_dumps() -> None:
    types = pytest.importorskip("google.genai.types")
    contents = [types.Content.model_validate(content) for content in [*CONTENTS, WET]]
    for by_alias in (True, False):
        dumped = [c.model_dump(mode="json", exclude_none=True, by_alias=by_alias) for c in contents]
        [episode] = episodes(gemini, {"contents": dumped})
        assert told(episode) == CALLED
