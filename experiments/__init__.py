"""Experiment files that users copy."""
