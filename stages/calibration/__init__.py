"""Calibration: sums, shards, online sums and the calibration file."""
