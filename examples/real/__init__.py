"""A real language model, from demonstrations to reinforcement learning."""
