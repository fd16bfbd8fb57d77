"""What plays an episode: each policy maps the messages so far to the next assistant message."""
