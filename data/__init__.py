"""Data shipped with irc-cli: tiers, domains, an example trace."""
