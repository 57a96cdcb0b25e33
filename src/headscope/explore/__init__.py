"""The page live on a user's own prompt: a server on this machine alone, and what it computes."""
