"""Stage 0: a dual encoder trained on its own modality's image-text pairs."""
