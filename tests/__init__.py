"""Tests and benches of irc-cli."""
