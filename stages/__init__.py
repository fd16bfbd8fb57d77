"""The work of irc-cli: stages are functions from tables to tables over `stages.core`."""
