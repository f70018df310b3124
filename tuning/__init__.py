"""The search for a better model."""
