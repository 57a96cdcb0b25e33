"""Check: agreement with the model's own forward pass."""
