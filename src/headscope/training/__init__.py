"""Training: what a user trains, and how it is watched."""
