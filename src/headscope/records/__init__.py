"""Records: what every result carries, and its way to JSON and back."""
