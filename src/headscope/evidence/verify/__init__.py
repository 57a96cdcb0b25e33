"""Verify: which heads matter, and a verdict for each."""
