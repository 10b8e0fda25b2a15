"""Randomised experiments with arms: from a log of exposures to lifts, their intervals and what they cannot say.

``units`` reads rows into one line per randomised unit; ``contrast`` compares two arms; ``analysis`` puts health
checks, contrasts and the policies on multiplicity and peeking together; ``design`` plans sample sizes and proves
the standard errors by A/A tests.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "units": ("Metric", "Units", "parse_metric", "read_units"),
    "contrast": ("always_valid", "compare"),
    "analysis": ("Plan", "analyse", "beta_binomial"),
    "design": ("aa_test", "detectable_lift", "units_per_arm"),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    """Import the module of a public name when it is first asked for: importing this package stays cheap."""
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)
