"""A small example trace, and what writes it."""
