"""Stage 1, binding: text towers of several dual encoders brought into one space (Eq. 1-6)."""
