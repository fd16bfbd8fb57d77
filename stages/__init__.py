"""The stages of irc-cli: functions from tables to tables, built on `stages.core`."""
