"""Episodes as rollouts of NeMo Gym, with a reward for each of the assistant's turns.

NeMo Gym 0.7 has no rewards per step. `step_rewards` has the form that NVIDIA-NeMo/Gym#1298
proposes: a list aligned with the assistant's turns. `reward` stays the outcome.

Layout: `nemo_gym.{base_resources_server,openai_utils}` of 0.7.0; `stages.traces.nemo_gym` reads it
back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from stages.core.statuses import LEFT_OUT
from stages.exports.credits import Earned, check_sum, check_turn_count
from stages.exports.links import Links
from stages.exports.messages import arguments_text, openai_messages
from stages.traces.nemo_gym import messages_of

OURS = "irc_cli"  # key of the tiers, the raw rewards and the total

Row = dict[str, Any]


def rollout(row: Row, gains: Earned | None, notes: Counter[str]) -> Row:
    """Return the rollout of one conversation.

    Args:
        row: row of `messages.message_rows`.
        gains: rewards of its turns; None: it does not count, or has no outcome.
        notes: counts content that a rollout can't hold.

    Returns:
        A line of rollouts.jsonl.

    Raises:
        InputError: the messages are of another form than OpenAI's, or the rewards do not fit them.
    """
    messages = openai_messages(row, "export nemo-gym")
    links = Links()
    asked = next((n for n, message in enumerate(messages) if _is_turn(message)), len(messages))
    params: Row = {"input": list(_items(messages[:asked], links, notes))}
    items = list(_items(messages[asked:], links, notes))
    if tools := row.get("tools"):
        params["tools"] = [{"type": "function", **tool.get("function", tool)} for tool in tools]
    status = row.get("status", "ok")
    made: Row = {
        "_ng_task_id": row["task_id"],
        "_ng_rollout_index": row["trial"],
        "_ng_rollout_id": row["episode_id"],
        "agent_ref": {"name": row.get("env") or row.get("domain") or "unknown"},
        "responses_create_params": params,
        "response": {"model": row.get("policy") or "unknown", "output": items} | _response(row),
        "reward": row.get("outcome"),
        "mask_sample": status in LEFT_OUT,
    }
    if status == "truncated":
        made["truncated"] = True
    if "rewards" in row and made["reward"] is not None:
        made["reward_components"] = row["rewards"]
    if row.get("gold_actions"):
        made["ground_truth"] = [_expected(action) for action in row["gold_actions"]]
    return made if gains is None else made | _steps(row["episode_id"], items, gains)


def _steps(episode: str, items: list[Row], gains: Earned) -> Row:
    """Return the rewards of the steps, and the tiers and raw rewards beside them."""
    turns = sum(message.get("role") == "assistant" for message in messages_of(items))
    check_turn_count(turns, gains, episode, "a rollout")
    check_sum(gains.shaped, gains.total, episode)
    earned = {"tiers": gains.tiers, "raw_rewards": gains.raw, "total": gains.total}
    return {"step_rewards": gains.shaped, OURS: earned}


def _response(row: Row) -> Row:
    if row.get("status") == "error":
        return {"status": "failed", "error": {"code": row.get("stop") or "error", "message": ""}}
    return {"status": "completed"}


def _is_turn(message: Row) -> bool:
    return message["role"] == "assistant" and message.get("sampled") is not False


def _items(messages: Iterable[Row], links: Links, notes: Counter[str]) -> Iterator[Row]:
    """Yield messages as items of the Responses API; the last item of a turn has its tokens."""
    for message in messages:
        if message["role"] == "tool":
            if message.get("error") is not None:
                notes["flag of a tool result, which a rollout has no field for"] += 1
            output = message.get("content") or ""
            call_id, _ = links.answered(message) or (message.get("tool_call_id") or "", None)
            yield {"type": "function_call_output", "call_id": call_id, "output": output}
        elif message["role"] == "assistant":
            written = list(_written(message, links))
            yield from (*written[:-1], written[-1] | _tokens(message))
        else:
            if message.get("tool_calls"):
                notes["calls of the user, which a rollout has no field for"] += 1
            said = {"role": message["role"], "content": message.get("content") or ""}
            yield {"type": "message", **said}


def _written(message: Row, links: Links) -> Iterator[Row]:
    """Yield a turn's reasoning, text and calls; without text and calls, an empty text."""
    calls = message.get("tool_calls") or []
    if thoughts := message.get("reasoning_content"):
        yield {"type": "reasoning", "summary": [{"type": "summary_text", "text": thoughts}]}
    if message.get("content") or not calls:
        part: Row = {"type": "output_text", "text": message.get("content") or "", "annotations": []}
        yield {"type": "message", "role": "assistant", "content": [part]}
    for call, call_id in zip(calls, links.ids(calls, message), strict=True):
        function = call["function"]
        called = {
            "name": function["name"],
            "arguments": arguments_text(function["arguments"]),
        }
        yield {"type": "function_call", "call_id": call_id, **called}


def _tokens(message: Row) -> Row:
    """Return the recorded tokens of a turn; the prompt only if it is recorded whole."""
    names = {"token_ids": "generation_token_ids", "logprobs": "generation_log_probs"}
    known = {names[key]: message[key] for key in names if message.get(key) is not None}
    if "prompt_ids" in message and not message.get("appended"):
        known["prompt_token_ids"] = message["prompt_ids"]
    return known


def _expected(action: Row) -> Row:
    return {"name": action["name"], "arguments": action["arguments"]}
