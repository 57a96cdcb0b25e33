"""The atlas: every head's known roles, each with its control, its causal tests, and the look-alike excluded."""
