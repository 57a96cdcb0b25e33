"""Behaviour heads: which heads carry a behaviour, and what speaks against it."""
