"""Comparing a model with its reference: logits, then layer by layer, block by block, and why."""
