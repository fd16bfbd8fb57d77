"""The page of `irc-cli report`: templates, styles, scripts, and their rendering."""
