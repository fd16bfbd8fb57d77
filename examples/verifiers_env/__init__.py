"""The environment package, and a server to try it with."""
