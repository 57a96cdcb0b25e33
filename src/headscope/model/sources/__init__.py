"""Where models come from: one file for each kind of object that can be opened."""
