"""Checkpoints: found, recognised, converted without executing code from them, loaded under m3bind's keys, checked."""
