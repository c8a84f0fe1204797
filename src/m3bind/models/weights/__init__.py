"""Checkpoints: recognised, converted without executing anything, renamed to our keys, checked against references."""
