"""Kinds of evidence about a head, one file each."""
