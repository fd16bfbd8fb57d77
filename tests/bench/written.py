"""The example's conversations as lines of each trace format, for `tests.bench.reading`.

Logs of calls and spans hold the whole history with each call of the model, as real logs do.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from examples.trace.generate import TRACE
from stages.exports.atif import trajectory
from stages.exports.nemo_gym import rollout
from stages.exports.verifiers import traced
from tests.bench.scoring import POLICY
from tests.test_otel import otlp, span

Json = dict[str, Any]
Write = Callable[[Json], Iterator[Json]]

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"To {name.replace('_', ' ')}.",
            "parameters": {"type": "object", "properties": {"id": {"type": "string"}}},
        },
    }
    for name in ("get_user_details", "get_reservation_details", "cancel_reservation")
]
BYTES_PER_TOKEN = 4


def conversations() -> Iterator[Json]:
    """Yield copies of the example's conversations without end, each under new ids."""
    lines = (orjson.loads(line) for line in TRACE.read_bytes().splitlines())
    rows = [row for row in lines if len(row["messages"]) > 1 and all(map(has_json, calls_in(row)))]
    copy = 0
    while True:
        for row in rows:
            named = {key: f"{row[key]}-{copy}" for key in ("episode_id", "task_id", "group_id")}
            system, user, *rest = row["messages"]
            system = system | {"content": POLICY}
            user = user | {"content": f"{user['content']} ({copy})"}
            yield row | named | {"policy": "p", "tools": TOOLS, "messages": [system, user, *rest]}
        copy += 1


def calls_in(row: Json) -> list[Json]:
    """Return the functions called in a conversation, with their arguments."""
    return [call["function"] for m in row["messages"] for call in m.get("tool_calls", [])]


def has_json(function: Json) -> bool:
    """Return whether arguments are a JSON object, as some formats require."""
    try:
        return isinstance(json.loads(function["arguments"]), dict)
    except ValueError:
        return False


def calls_of(row: Json) -> Iterator[tuple[list[Json], Json]]:
    """Yield (all messages before it, the message) of each turn."""
    for place, message in enumerate(row["messages"]):
        if message["role"] == "assistant":
            yield row["messages"][:place], message


def with_tokens(row: Json) -> Json:
    """Return a row with as many token ids and logprobs as the text of its messages may have."""
    draw = random.Random(row["episode_id"])
    messages, prompt = list[Json](), list[int]()
    for message in row["messages"]:
        ids = [draw.randrange(150_000) for _ in range(len(str(message)) // BYTES_PER_TOKEN)]
        if message["role"] != "assistant":
            prompt += ids
        else:
            logprobs = [round(-draw.expovariate(3), 4) for _ in ids]
            tokens = {"prompt_ids": prompt, "token_ids": ids, "logprobs": logprobs}
            message = message | tokens | {"n_tokens": len(ids), "appended": bool(messages[2:])}
            prompt = []
        messages.append(message)
    return row | {"messages": messages}


def verifiers(row: Json) -> Iterator[Json]:
    yield traced(row, None, Counter())


def verifiers_v0(row: Json) -> Iterator[Json]:
    yield {
        "example_id": row["task_id"],
        "task": "airline",
        "prompt": row["messages"][:2],
        "completion": row["messages"][2:],
        "reward": float(row["outcome"] or 0),
        "info": {},
    }


def nemo_gym(row: Json) -> Iterator[Json]:
    yield rollout(row, None, Counter())


def atif(row: Json) -> Iterator[Json]:
    yield trajectory(row, (), {}, Counter())


def tau2(row: Json) -> Iterator[Json]:
    yield {
        "id": row["episode_id"],
        "task_id": row["task_id"],
        "trial": row["trial"],
        "termination_reason": "user_stop",
        "reward_info": {"reward": float(row["outcome"] or 0), "action_checks": []},
        "messages": row["messages"],
    }


def inspect(row: Json) -> Iterator[Json]:
    messages = [message | {"id": str(n)} for n, message in enumerate(row["messages"])]
    for message in messages:
        if message["role"] == "tool":
            message["function"] = "f"
        if calls := message.get("tool_calls"):
            made = [(call["id"], call["function"]) for call in calls]
            message["tool_calls"] = [
                {"id": name, "function": f["name"], "arguments": json.loads(f["arguments"])}
                for name, f in made
            ]
    tools = [tool["function"] for tool in TOOLS]
    events = [
        {
            "event": "model",
            "tools": tools,
            "output": {"choices": [{"message": message}], "usage": {"output_tokens": 9}},
        }
        for message in messages
        if message["role"] == "assistant"
    ]
    yield {
        "id": row["task_id"],
        "epoch": row["trial"] + 1,
        "input": "",
        "target": "",
        "messages": messages,
        "events": events,
        "scores": {"solved": {"value": row["outcome"]}},
    }


def parts_of(message: Json) -> Json:
    """Return a message in the form of the GenAI conventions."""
    if message["role"] == "tool":
        kind, call_id = "tool_call_response", message["tool_call_id"]
        return {
            "role": "tool",
            "parts": [{"type": kind, "id": call_id, "response": message["content"]}],
        }
    text = {"type": "text", "content": message["content"]}
    parts = [text] if message["content"] else []
    parts += [
        {
            "type": "tool_call",
            "id": call["id"],
            "name": call["function"]["name"],
            "arguments": json.loads(call["function"]["arguments"]),
        }
        for call in message.get("tool_calls", [])
    ]
    return {"role": message["role"], "parts": parts}


def otel(row: Json) -> Iterator[Json]:
    """Yield one line per trace, a batch of spans."""
    trace = row["episode_id"]
    root = {"gen_ai.operation.name": "invoke_agent"}
    spans = [span("root", 1, root, trace=trace)]
    for heard, said in calls_of(row):
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "p",
            "gen_ai.usage.output_tokens": 9,
            "gen_ai.tool.definitions": json.dumps(TOOLS),
            "gen_ai.input.messages": json.dumps([parts_of(m) for m in heard]),
            "gen_ai.output.messages": json.dumps([parts_of(said)]),
        }
        spans.append(span(f"chat{len(heard)}", 10 * len(heard), attributes, trace=trace))
        for call in said.get("tool_calls", []):
            attributes = {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.call.id": call["id"],
                "gen_ai.tool.name": call["function"]["name"],
            }
            spans.append(span(call["id"], 10 * len(heard) + 1, attributes, trace=trace))
    yield otlp(*spans)


def langsmith(row: Json) -> Iterator[Json]:
    trace = row["episode_id"]
    shared = {"trace_id": trace, "parent_run_id": trace}
    stats = {"solved": {"avg": row["outcome"], "n": 1}}
    root = {"id": trace, "trace_id": trace, "run_type": "chain", "feedback_stats": stats}
    yield root | {"inputs": {}, "outputs": {"messages": row["messages"][-1:]}}
    for heard, said in calls_of(row):
        named = {"id": f"{trace}-{len(heard)}", "run_type": "llm", "start_time": f"{len(heard):04}"}
        data = {"inputs": {"messages": heard}, "outputs": {"choices": [{"message": said}]}}
        yield shared | named | data


def langfuse(row: Json) -> Iterator[Json]:
    for heard, said in calls_of(row):
        named = {"id": f"{row['episode_id']}-{len(heard)}", "startTime": f"{len(heard):04}"}
        named |= {"traceId": row["episode_id"], "type": "GENERATION", "model": "p"}
        yield named | {"input": {"messages": heard, "tools": TOOLS}, "output": said}


def agents_sdk(row: Json) -> Iterator[Json]:
    trace = row["episode_id"]
    yield {"object": "trace", "id": trace, "metadata": {"outcome": row["outcome"]}}
    for heard, said in calls_of(row):
        data = {"type": "generation", "input": heard, "output": [said], "model": "p"}
        named = {"object": "trace.span", "trace_id": trace, "started_at": f"{len(heard):04}"}
        yield named | {"id": f"{trace}-{len(heard)}", "span_data": data}


def chat(row: Json) -> Iterator[Json]:
    for heard, said in calls_of(row):
        choice = {"index": 0, "message": said, "finish_reason": "stop"}
        response = {"object": "chat.completion", "choices": [choice]}
        yield {"request": {"messages": heard, "tools": TOOLS}, "response": response}


def batch(row: Json) -> Iterator[Json]:
    for number, record in enumerate(chat(row)):
        name = f"{row['episode_id']}-{number}"
        yield {"custom_id": name, "url": "/v1/chat/completions", "body": record["request"]}
        body = {"status_code": 200, "body": record["response"]}
        yield {"custom_id": name, "response": body, "error": None}


def responses(row: Json) -> Iterator[Json]:
    tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
    for heard, said in calls_of(row):
        given = [item for message in heard for item in items_of(message)]
        response = {"object": "response", "status": "completed", "output": items_of(said)}
        yield {"request": {"input": given, "tools": tools}, "response": response}


def items_of(message: Json) -> list[Json]:
    """Return a message as items of the Responses API."""
    if message["role"] == "tool":
        kind, call_id = "function_call_output", message["tool_call_id"]
        return [{"type": kind, "call_id": call_id, "output": message["content"]}]
    if message["role"] != "assistant":
        return [{"type": "message", "role": message["role"], "content": message["content"]}]
    text = [{"type": "output_text", "text": message["content"], "annotations": []}]
    items: list[Json] = []
    if message["content"]:
        items = [{"type": "message", "role": "assistant", "content": text}]
    for call in message.get("tool_calls", []):
        items.append({"type": "function_call", "call_id": call["id"], **call["function"]})
    return items


def anthropic(row: Json) -> Iterator[Json]:
    tools = [
        {"name": t["function"]["name"], "input_schema": t["function"]["parameters"]} for t in TOOLS
    ]
    system = row["messages"][0]["content"]
    for heard, said in calls_of(row):
        request = {"system": system, "tools": tools, "messages": [*map(blocks_of, heard[1:])]}
        answer = {"type": "message", "stop_reason": "end_turn", **blocks_of(said)}
        yield {"request": request, "response": answer}


def blocks_of(message: Json) -> Json:
    """Return a message in Anthropic's form."""
    if message["role"] == "tool":
        kind, call_id = "tool_result", message["tool_call_id"]
        result = {"type": kind, "tool_use_id": call_id, "content": message["content"]}
        return {"role": "user", "content": [result]}
    if message["role"] == "user":
        return {"role": "user", "content": message["content"]}
    blocks = [{"type": "text", "text": message["content"]}] if message["content"] else []
    for call in message.get("tool_calls", []):
        name, given = call["function"]["name"], json.loads(call["function"]["arguments"])
        blocks.append({"type": "tool_use", "id": call["id"], "name": name, "input": given})
    return {"role": "assistant", "content": blocks}


def gemini(row: Json) -> Iterator[Json]:
    for heard, said in calls_of(row):
        system, *rest = contents_of([*heard, said])
        request = {"systemInstruction": system, "contents": rest[:-1]}
        candidate = {"content": rest[-1], "finishReason": "STOP"}
        yield {"request": request, "response": {"candidates": [candidate]}}


def adk(row: Json) -> Iterator[Json]:
    events = [
        {"author": "a" if content["role"] == "model" else "user", "content": content}
        for content in contents_of(row["messages"][1:])
    ]
    yield {"id": row["episode_id"], "appName": "a", "events": events}


def contents_of(messages: list[Json]) -> list[Json]:
    """Return messages in Gemini's form."""
    contents, names = list[Json](), dict[str, str]()
    for message in messages:
        role = "model" if message["role"] == "assistant" else "user"
        parts: list[Json] = [{"text": message["content"]}] if message["content"] else []
        if message["role"] == "tool":
            name, answer = names[message["tool_call_id"]], {"result": message["content"]}
            parts = [{"functionResponse": {"name": name, "response": answer}}]
        for call in message.get("tool_calls", []):
            name, given = call["function"]["name"], json.loads(call["function"]["arguments"])
            names[call["id"]] = name
            parts.append({"functionCall": {"name": name, "args": given}})
        contents.append({"role": role, "parts": parts})
    return contents


def sharegpt(row: Json) -> Iterator[Json]:
    said = []
    for message in row["messages"]:
        speaker = {"user": "human", "assistant": "gpt", "tool": "observation"}.get(message["role"])
        if message["content"] and speaker:
            said.append({"from": speaker, "value": message["content"]})
        if calls := [call["function"] for call in message.get("tool_calls", [])]:
            made = [c | {"arguments": json.loads(c["arguments"])} for c in calls]
            said.append({"from": "function_call", "value": json.dumps(made)})
    yield {"conversations": said, "system": row["messages"][0]["content"], "tools": "[]"}


def messages(row: Json) -> Iterator[Json]:
    yield row


def traj(row: Json) -> Iterator[Json]:
    info = {"task": {"actions": row["gold_actions"]}}
    named = {"task_id": row["task_id"], "trial": row["trial"], "info": info}
    yield named | {"reward": float(row["outcome"] or 0), "traj": row["messages"]}


# By the format's name in `detect`; formats that hold tokens also with them.
FORMATS: dict[str, Write] = {
    "messages": messages,
    "tau-bench": traj,
    "tau2": tau2,
    "verifiers": verifiers,
    "verifiers, tokens": lambda row: verifiers(with_tokens(row)),
    "verifiers-v0": verifiers_v0,
    "nemo-gym": nemo_gym,
    "nemo-gym, tokens": lambda row: nemo_gym(with_tokens(row)),
    "atif": atif,
    "atif, tokens": lambda row: atif(with_tokens(row)),
    "inspect": inspect,
    "opentelemetry": otel,
    "langsmith": langsmith,
    "langfuse": langfuse,
    "openai-agents": agents_sdk,
    "batch": batch,
    "responses": responses,
    "gemini": gemini,
    "adk": adk,
    "anthropic": anthropic,
    "chat completions": chat,
    "sharegpt": sharegpt,
}


def lines(name: str, size: int) -> Iterator[bytes]:
    """Yield JSON lines of a format, about `size` bytes."""
    written = 0
    for row in conversations():
        for record in FORMATS[name](row):
            line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
            written += len(line)
            yield line
        if written >= size:
            return
