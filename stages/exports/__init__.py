"""The formats of other training libraries, one module each."""
