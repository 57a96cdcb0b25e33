"""Scan: what each head attends to."""
