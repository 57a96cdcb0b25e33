"""What is changed in a forward pass: heads ablated, activations patched, paths."""
