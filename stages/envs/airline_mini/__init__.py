"""The embedded domain `airline-mini`: an airline small enough for a model of a few million weights.

names: pieces of ids. database, tools: what an agent can read and write. rules: policy.md as code.
session: one episode. env: the domain as a whole. tables, families, requests: draw a database and a
task on it. generate: writes data/airline-mini. fresh: generated train tasks, without end.
vocabulary: every piece of text that can occur.
"""

from stages.envs.airline_mini.env import AirlineMini, airline_mini, phrase_book

__all__ = ["AirlineMini", "airline_mini", "phrase_book"]
