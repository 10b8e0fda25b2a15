"""Encoded features and feature-major batches."""
