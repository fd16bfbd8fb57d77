"""Training of airline-mini's seed policy."""
