"""For training in verl: our estimator, the tier scorer as reward function, our environments."""
