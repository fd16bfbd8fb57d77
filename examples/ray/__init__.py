"""irc-cli on Ray."""
