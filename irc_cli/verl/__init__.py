"""What verl trains with: our estimator, the tier scorer as its reward function, our envs."""
