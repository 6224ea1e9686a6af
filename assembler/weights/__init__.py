"""Checkpoints on disk, the maps of their weights onto a model, and the loading that follows."""
