"""Stage 1, binding: text towers of several dual encoders aligned in one space (Eq. 1-6)."""
