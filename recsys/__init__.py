"""An open ad-recommendation engine that keeps the books on AI."""

__version__ = "0.1.0"
