"""Kinds of evidence about a head: one folder for each, with its measurement, result, terminal view and `KIND`."""
