"""Convert tool definitions of any vendor to OpenAI's form."""

from __future__ import annotations

from typing import Any

from stages.traces.calls import object_in

# Keys of the schema of a tool's arguments, by vendor; Bedrock nests it once more, under `json`.
SCHEMAS = ("parameters", "input_schema", "inputSchema", "parametersJsonSchema", "args_schema")
SEVERAL = ("functionDeclarations", "function_declarations")  # Gemini: several per tool


def tool_definitions(tools: Any) -> list[dict[str, Any]] | None:
    """Convert the tool definitions in any vendor's request to OpenAI's form.

    Args:
        tools: a definition or a list of definitions, or its JSON text; other values define nothing.

    Returns:
        `{"type": "function", "function": {name, description, parameters}}` for each tool with a
        name; None if there are none. A vendor's hosted tools have no schema.
    """
    tools = object_in(tools)
    if isinstance(tools, dict):
        tools = [tools]
    if not isinstance(tools, list):
        return None
    return [definition for tool in tools for definition in _definitions(object_in(tool))] or None


def _definitions(tool: Any) -> list[dict[str, Any]]:
    if not isinstance(tool, dict):
        return []
    for key in SEVERAL:
        if isinstance(declarations := tool.get(key), list):
            return [known for declared in declarations for known in _definitions(declared)]
    inner = tool
    for key in ("function", "toolSpec"):
        if isinstance(tool.get(key), dict):
            inner = tool[key]
            break
    name = inner.get("name")
    if not isinstance(name, str) or not name:
        return []
    function: dict[str, Any] = {"name": name}
    if isinstance(inner.get("description"), str):
        function["description"] = inner["description"]
    for key in SCHEMAS:
        schema = object_in(inner.get(key))
        if isinstance(schema, dict):
            inner_schema = schema.get("json")
            function["parameters"] = inner_schema if isinstance(inner_schema, dict) else schema
            break
    return [{"type": "function", "function": function}]
