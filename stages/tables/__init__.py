"""Tables: their declarations, reading and writing, paths and YAML."""
