"""A modality and a model for m3bind, from a distribution of their own."""
