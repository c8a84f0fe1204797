"""Shared by all stages: the training loop, checkpoints, several processes, the contrastive loss, the pairs."""
