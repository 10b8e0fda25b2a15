"""Randomised experiments with arms: from a log of exposures to lifts, their intervals and what they cannot say.

``units`` reads rows into one line per randomised unit; ``contrast`` compares two arms; ``analysis`` puts health
checks, contrasts and the policies on multiplicity and peeking together; ``design`` plans sample sizes and proves
the standard errors by A/A tests.
"""

from __future__ import annotations

from recsys.lazy import on_first_use

_WHERE = {
    "units": ("Metric", "Units", "parse_metric", "read_units"),
    "contrast": ("always_valid", "compare"),
    "analysis": ("Plan", "analyse"),
    "bayes": ("beta_binomial",),
    "design": ("aa_test", "detectable_lift", "units_per_arm"),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(_MODULE)
__getattr__ = on_first_use(__name__, _MODULE)
