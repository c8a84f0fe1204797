"""What every stage shares: one loop, its checkpoints, several processes, the contrastive loss, the pairs."""
