"""Batches from loaders, and calls of a model on them."""
