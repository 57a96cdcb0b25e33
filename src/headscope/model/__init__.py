"""A language model seen head by head."""
