"""Programs that use the package: the study, the seed policy, the example trace, Ray."""
