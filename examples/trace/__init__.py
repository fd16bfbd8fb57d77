"""The generator of the example trace."""
