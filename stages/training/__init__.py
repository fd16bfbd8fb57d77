"""The parts of `train`: token sequences, packed passes, the loss, and state on disk."""
