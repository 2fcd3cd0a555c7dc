"""How a model is judged: what it hears of a test clip, and the retrieval figures of what it answers."""
