"""Dataset recipes and dated price cards."""
