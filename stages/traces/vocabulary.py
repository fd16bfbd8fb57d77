"""The names that APIs and frameworks use for roles, content blocks and message fields."""

from __future__ import annotations

from stages.traces.calls import ERRORS, FLAGS

ROLES = {
    **dict.fromkeys(("assistant", "ai", "model", "gpt", "chatbot", "bot"), "assistant"),
    **dict.fromkeys(("aimessage", "aimessagechunk", "assistantmessage"), "assistant"),
    **dict.fromkeys(("user", "human", "humanmessage", "humanmessagechunk", "usermessage"), "user"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "toolmessage"), "tool"),
    **dict.fromkeys(("toolmessagechunk", "functionmessage", "functionmessagechunk"), "tool"),
    **dict.fromkeys(("tool_response", "tool_result", "function_response"), "tool"),
    **dict.fromkeys(("system", "developer", "systemmessage", "systemmessagechunk"), "system"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),  # ShareGPT: the content is the call
}
CALL_TYPES = frozenset(
    [
        "function",
        "tool_use",
        "tool_call",
        "server_tool_use",
        "mcp_tool_use",
        "function_call",
        "functioncall",
        "custom_tool_call",
        "mcp_call",
        "tooluse",
    ]
)
RESULT_TYPES = frozenset(
    [
        "tool_result",
        "tool_response",
        "tool_call_response",
        "tool_call_output",
        "function_response",
        "functionresponse",
        "function_call_output",
        "custom_tool_call_output",
        "toolresult",
    ]
)
# Blocks and items that are neither calls nor results.
SILENT_TYPES = frozenset(
    [
        "text",
        "input_text",
        "output_text",
        "summary_text",
        "reasoning",
        "reasoning_text",
        "thinking",
        "redacted_thinking",
        "thought",
        "refusal",
        "image",
        "image_url",
        "input_image",
        "audio",
        "input_audio",
        "video",
        "video_url",
        "file",
        "input_file",
        "media",
        "document",
        "search_result",
        "citation",
        "blob",
        "uri",
        "file_data",
        "inline_data",
        "guard_content",
        "json",
        "container_upload",
        "item_reference",
        "compaction",
        "non_standard",
    ]
)
ITEM_TYPES = (
    CALL_TYPES
    | RESULT_TYPES
    | {"reasoning", "compaction", "item_reference", "mcp_list_tools", "mcp_approval_request"}
)
NO_CALLS = frozenset({"", "null", "none", "nan"})  # how a text column states that there are none
CALL_KEYS = ("tool_calls", "toolCalls", "function_calls")
# Keys of a message that are read, or that are known to hold neither calls nor results.
KEYS = frozenset(
    [
        "role",
        "from",
        "type",
        "content",
        "value",
        "parts",
        "text",
        "message",
        "id",
        "name",
        "requestor",
        "error",
        "is_error",
        "isError",
        "status",
        "success",
        "ok",
        "n_tokens",
        "usage",
        "usage_metadata",
        "turn_idx",
        "timestamp",
        "cost",
        "raw_data",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "errors",
        "refusal",
        "annotations",
        "audio",
        "logprobs",
        "model",
        "finish_reason",
        "stop_reason",
        "stopReason",
        "tool_call_id",
        "call_id",
        "tool_use_id",
        "toolCallId",
        "toolUseId",
        "tool_calls",
        "toolCalls",
        "function_calls",
        "function_call",
        "invalid_tool_calls",
        "additional_kwargs",
        "response_metadata",
        "artifact",
        "example",
        "output",
        "result",
        "response",
        "token_ids",
        "prompt_ids",
        "phase",
        "thinking",
        "thinking_blocks",
        "provider_specific_fields",
        "tools",
        "tool_call_chunks",
        "state",
        "tool_plan",
        "citations",
        *FLAGS,
        *ERRORS,
    ]
)
CODE_PARTS = ("executableCode", "executable_code", "codeExecutionResult", "code_execution_result")
STOP_KEYS = ("finish_reason", "stop_reason", "stopReason")
STOPS_FOR_CALLS = frozenset({"tool_calls", "tool_use", "function_call", "tool_call"})
TEXT_KEYS = ("text", "value", "content")  # keys of the text in a text block
RESULT_KEYS = ("content", "output", "result", "response", "value", "text", "parts")
