"""Many models: plan the jobs, run them here or on Ray, keep every result in a store, ask it questions."""
