from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import InputError
from stages.tiers.domains import load_domain
from stages.tiers.failures import default_failures

# The texts are of the forms that frameworks write: tau-bench, both SDKs of MCP, LangChain,
# the OpenAI SDKs, smolagents, inspect, pydantic, requests, shells.
FAILED_TEXTS = {
    "text starts with Error": [
        "Error",
        "Error: User not found",
        "  Error: User not found",
        "Error executing tool search: no such index",
        "Error calling API",
        "Error when executing tool x with arguments {}",
        "Error invoking tool 'x' with kwargs {} with error:\n no\n Please fix the error.",
        "ERROR: bad",
        "error: bad id",
        "[ERROR] no such file",
        "<error>bad</error>",
        "**Error:** no",
        "❌ Error: no",
        "<tool_use_error>File does not exist</tool_use_error>",
        "Error code: 400 - {'error': {'message': 'x'}}",
        "Error 404: page missing",
        "Error (exit code 2): ls failed",
        "Error in tool lookup: bad id",
        "Error order W1 cannot be cancelled",
        "Error - timeout",
        "Error: foo is not a valid tool, try one of [a, b].",
        "Input validation error: 'x' is required",
        "Validation error: x",
        '{"result": "Error: no such order"}',
        '{"message": "Error: no"}',
        '[{"type": "text", "text": "Error: no"}]',
    ],
    "text says that an error occurred": [
        "An error occurred while running the tool. Please try again. Error: x",
        "An unexpected error occurred.",
        "An error has occurred",
        "Sorry, an internal error occurred",
        "There was an error processing your request.",
        "I encountered an error while trying to use the tool. This was the error: x.",
        "Something went wrong, please retry.",
    ],
    "traceback": [
        "Traceback (most recent call last):",
        'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nValueError: x',
        'hello\nTraceback (most recent call last):\n  File "a", line 1\nmod.BadError: x\n',
        '{"output": "Traceback (most recent call last):\\n  File"}',
    ],
    "exception": [
        "ValueError: bad",
        "requests.exceptions.HTTPError: 404 Client Error",
        "KeyError('x')",
        "Exception: no",
        "Uncaught exception: no",
        "Exception in thread main",
        "NullPointerException",
        "2 validation errors for Order",
    ],
    "http status": [
        "HTTP 500",
        "HTTP/1.1 503 Service Unavailable",
        "404 Not Found",
        "500 Internal Server Error: x",
        "403 Forbidden",
        "404 Client Error: Not Found for url: http",
    ],
    "mcp error": ["MCP error -32602: Invalid arguments"],
    "text starts with Failed": [
        "Failed to log verification: Record may already exist.",
        "Failed: no",
        "FAILED",
        "Unable to process the refund.",
    ],
    "tool failed": [
        "Tool execution failed",
        "Tool call failed: timeout",
        "Request failed with status code 404",
        "Request timed out",
        "Command failed with exit code 1",
    ],
    "call refused": [
        "Unknown tool: foo",
        "Unknown function 'x'",
        "No such tool: x",
        "Tool foo not found",
        "Tool 'foo' does not exist.",
        "foo is not a valid tool, try one of [a, b].",
        "Invalid arguments for tool x: missing y",
        "Invalid JSON in arguments: x",
        "Missing required parameter: user_id",
        "Permission denied",
        "Access denied: you may not",
    ],
    "json error": [
        '{"error": "order is already delivered"}',
        '  {"error": "order is already delivered", "order_id": "W1"}',
        '{"Error": "not found"}',
        '{"error": true, "message": "x"}',
        '{"error": {"code": 404, "message": "x"}}',
        '{"errors": ["x"]}',
        '{"errors": [{"message": "x"}], "data": null}',
        '{"isError": true, "content": [{"type": "text", "text": "x"}]}',
        '{"is_error": true, "content": "x"}',
        "{'error': 'x'}",
        '{"result": {"error": "x"}}',
        '{"error_message": "bad id"}',
        '{"exception": "ValueError"}',
        '{"error": 404, "message": "Not Found"}',
        '{"status": "error", "error": "x", "result": []}',
        '[{"type": "text", "text": "{\\"error\\": \\"x\\"}"}]',
    ],
    "json success false": [
        '{"success": false}',
        '{"success": false, "message": "x", "order_id": "W1"}',
        '{"success": "false"}',
        '{"ok": false, "description": "x"}',
        "{'success': False, 'message': 'no'}",
        '{"data": {"success": false}}',
    ],
    "json status error": [
        '{"status": "error"}',
        '{"status": "error", "message": "already delivered"}',
        '{"status": "failed", "order_id": "W1", "message": "x"}',
        '{"status": "FAILURE", "reason": "x"}',
        "{'status': 'error', 'msg': None}",
        '{"type": "error", "message": "x"}',
        '{"response": {"status": "error", "message": "x"}}',
    ],
    "json status code": ['{"status_code": 404, "message": "Not Found"}', '{"statusCode": 500}'],
}
FAILED_TEXTS["text starts with Error"] += [
    "Server error: x",
    "Error\uff1a x",
    "错误\uff1a x",
    "fatal: not a git repository",
    "bash: foo: command not found",
]
FAILED_TEXTS["tool failed"] += [
    "Timed out after 30 s",
    "Timeout: no answer",
    "Rate limit exceeded",
    "Cannot cancel order W1: delivered",
    "Could not cancel order W1",
]
FAILED_TEXTS["http status"] += ["Unauthorized", "Status code: 404"]
FAILED_TEXTS["json error"] += ['{"err": "x"}', '[{"error": "x"}]', '{"detail": "Not found"}']
FAILED_TEXTS["json status code"] += [
    '{"code": 404, "message": "Not Found"}',
    '{"status": 404, "title": "Not Found", "detail": "x", "instance": "/x", "type": "y"}',
]
FAILED_TEXTS["json success false"] += ['{"status": false, "message": "no"}']
WORKED = [
    "Error: none",
    "Error: 0",
    "HTTP 404 means that a page is missing",
    "Cannot be combined with other offers",
    "Could not find any flights",
    "Timeout: 30 s",
    '{"order_id": "W1", "status": "failed"}',
    '{"id": "pay_1", "state": "failed", "amount": 5}',
    '{"code": 404, "city": "Atlanta"}',
    '{"detail": "Not found in aisle 3"}',
    '[{"id": 1, "status": "error"}]',
    *("", "ok", "null", "[]", "{}", "errors: 0", "0 errors found", "Errors", "No errors."),
    "Error codes: E1 means low ink, E2 means no paper",
    "Errors and refunds policy",
    "Error-free guarantee",
    "Error Fare Finder, $10",
    "ErrorProof lock",
    "Error handling guide",
    "Error messages explained",
    "Error Reporting Guidelines",
    "Error correction in memory modules",
    "Error 404 T-shirt, size M",
    "404 Not Found T-Shirt",
    "Failed payments are retried after 3 days.",
    "Failed to receive your parcel? Contact us.",
    "Exceptions to the refund policy",
    "Exception requests are handled by the team",
    "Invalid tickets are not refunded",
    "Unable to find any flights",
    "Tool set, 42 pieces",
    "The traceback module prints errors.",
    "Permission slips are needed",
    "Function rooms are available",
    "500 Server racks in stock",
    "Order cancelled. No error occurred.",
    "If an error occurred, call us.",
    "Speed test failed: No Connection.",
    *('{"errors": []}', '{"error": null}', '{"error": false}', '{"error": ""}', '{"error": 0}'),
    *('{"error": "none"}', '{"error": "None", "result": 3}', '{"error": {}}'),
    *('{"error": "no error"}', '{"error_count": 0}', '{"errors": 0, "passed": 3}'),
    '{"error": {"code": 0, "message": ""}}',
    '{"error": 0.05, "value": 3}',
    '{"status": "error_free"}',
    '{"status": "ok", "error": null}',
    '{"success": true, "error": "none"}',
    '{"success": true, "data": {"error": "the text of a log entry"}}',
    '{"ok": true}',
    '{"isError": false, "content": [{"type": "text", "text": "Error: an entry of the log"}]}',
    '{"payment_id": "p9", "status": "failed", "amount": 12.5}',
    '{"order_id": "W1", "status": "error", "items": [1], "user_id": "u"}',
    '{"id": 1, "name": "run 7", "started": "x", "error": "timeout", "host": "b"}',
    '{"title": "Error codes", "body": "Error: what it means"}',
    '{"error_code": "E1", "meaning": "low ink"}',
    '{"results": [{"error": "x"}]}',
    '[{"id": 1, "status": "failed"}, {"id": 2, "status": "ok"}]',
    "{'error': None}",
    "{'errors': [], 'ok': True}",
    '{"last_error": null, "x": 1}',
    '{"failed": 0, "passed": 10}',
    '{"code": 404, "name": "Blue"}',
    '{"error": "cut off',
]


@pytest.mark.parametrize(
    ("rule", "text"), [(rule, text) for rule, texts in FAILED_TEXTS.items() for text in texts]
)
def test_failures_and_their_rules(rule: str, text: str) -> None:
    assert default_failures().rule(None, text) == rule


@pytest.mark.parametrize("text", WORKED)
def test_what_is_no_failure(text: str) -> None:
    assert default_failures().rule(None, text) is None


def test_the_records_own_flag_beats_the_text_both_ways() -> None:
    failures = default_failures()
    texts = [text for texts in FAILED_TEXTS.values() for text in texts] + WORKED
    assert {failures.rule(True, text) for text in texts} == {"flag"}
    assert {failures.rule(False, text) for text in texts} == {None}
    assert (failures.rule(True, None), failures.rule(None, None)) == ("flag", None)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=4)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(values, st.text(max_size=30))
def test_any_result_has_a_verdict_and_json_is_read_like_python(value: object, text: str) -> None:
    failures = default_failures()
    failures.rule(None, text)
    failures.rule(None, json.dumps(value))
    wrapped = {"error": value}
    expected = failures.rule(None, json.dumps(wrapped))
    assert failures.rule(None, repr(wrapped)) == expected
    assert failures.rule(None, json.dumps({"result": wrapped})) == expected
    # As one field of a record it is data.
    assert failures.rule(None, json.dumps({"id": 1, "name": "a", "size": 2} | wrapped)) is None


def test_a_domains_own_rules_come_first(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\n"
        "tools: {buy: {kind: write}}\n"
        "failures:\n"
        "  - {rule: fault list, text: 'Error: see', worked: true}\n"
        "  - {rule: sold out, text: SOLD OUT}\n"
        "  - {rule: no stock, key: stock, values: [0, none], beside: 3}\n",
        encoding="utf-8",
    )
    failures = load_domain(str(path)).failures
    assert failures.rule(None, "Error: see below") is None
    assert failures.rule(None, "Error: no") == "text starts with Error"
    assert failures.rule(None, "SOLD OUT today") == "sold out"
    assert failures.rule(None, '{"stock": 0, "a": 1, "b": 1, "c": 1}') == "no stock"
    assert failures.rule(None, '{"stock": 0, "a": 1, "b": 1, "c": 1, "d": 1}') is None
    # They come before the flag, too: a domain whose flags are wrong says so.
    assert failures.rule(False, "SOLD OUT") == "sold out"
    assert default_failures().rule(None, "SOLD OUT") is None


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("{text: x}", "5: rule without a name; give it one under 'rule'"),
        ("{rule: a}", "5: a rule has one of 'flag', 'text' and 'key'; give exactly one"),
        (
            "{rule: a, text: x, key: y}",
            "5: a rule has one of 'flag', 'text' and 'key'; give exactly one",
        ),
        ("{rule: a, text: x, beside: 1}", "32: 'beside' belongs to a 'key'; remove it"),
        (
            "{rule: a, text: '('}",
            "21: bad regular expression (missing ), unterminated subpattern at position LAST); "
            "correct the file",
        ),
        ("{rule: a, texts: x}", "15: unknown key 'texts'; did you mean 'text'?"),
        (
            "{rule: a, flag: false}",
            "5: a flag says by itself what happened; write 'flag: true' alone",
        ),
        ("{rule: a, key: k, worked: 1}", "31: expected true or false, found '1'; correct the file"),
        ("{rule: a, key: k, beside: x}", "31: expected a number, found 'x'; correct the file"),
    ],
)
def test_a_bad_rule(tmp_path: Path, rule: str, line: str) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(f"name: x\ntools: {{}}\nfailures:\n  - {rule}\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_domain(str(path))
    position = str(caught.value).partition("position ")[2].partition(")")[0]
    assert str(caught.value) == f"{path}:4:{line}".replace("LAST", position)
