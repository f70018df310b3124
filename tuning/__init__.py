"""Searches for better models and learning rates."""
