"""Policies: each maps the messages so far to the next assistant message."""
