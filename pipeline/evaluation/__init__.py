"""Embeddings of a model, retrieval figures, search and zero-shot classification."""
