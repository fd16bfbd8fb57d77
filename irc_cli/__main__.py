"""`python -m irc_cli`."""

from irc_cli.app import main

main()
