"""What must hold for a long time and for every damaged input: `python -m soak`, or `make soak`."""
