"""What `train` is made of: sequences of tokens, packed passes, the loss, and state on disk."""
