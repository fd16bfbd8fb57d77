"""One module per format of `irc-cli export`."""
