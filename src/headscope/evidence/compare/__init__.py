"""What differs between models: heads, roles, verdicts and edges, side by side."""
