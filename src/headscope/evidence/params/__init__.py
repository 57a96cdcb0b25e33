"""Parameters of a head and of a circuit."""
