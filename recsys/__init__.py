"""An open ad-recommendation engine that keeps the books on AI."""

import os

# Threads that wait sleep instead of spinning: on cores shared with other work, spinning made training ten times slower.
# Read when torch loads OpenMP, hence before everything else.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
