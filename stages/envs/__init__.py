"""Environments: a domain's tools, database, policy and tasks, and a simulated user."""
