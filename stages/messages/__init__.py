"""Messages: tool calls in text, and rendering by chat template."""
