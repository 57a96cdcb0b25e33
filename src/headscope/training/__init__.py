"""Following a model while it learns: the tracker, the phase change, and a run's checkpoints."""
