"""Embeddings and scores: what a checkpoint says of them, and how a vector becomes one."""
