"""Parsers of the tool calls that families of models write as text, one module per notation."""
