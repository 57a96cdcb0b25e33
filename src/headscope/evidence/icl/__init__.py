"""In-context learning: the loss late in the context minus the loss early in it."""
