"""Circuit: which heads feed the key of an induction head."""
