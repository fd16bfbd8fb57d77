"""Command line of irc-cli: parse, read, call one stage, write, report."""

__version__ = "0.1.0"
