"""The study: which rewards help, and why naive ones hurt."""
