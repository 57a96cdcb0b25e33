"""Emergence: the tracker's record over the checkpoints of a run."""
