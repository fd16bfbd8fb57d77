"""The page of `irc-cli report`: its template, its style, its script, and what fills them."""
