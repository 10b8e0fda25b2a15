"""Certification: do the interval methods, the A/B analysis and the refusals do what they say? (docs/certification.md)

``worlds`` simulates logs whose truth is known; ``measure`` counts how often each method covers it; ``uniformity`` looks
at p-values where there is no effect; ``traps`` hands in what must be refused; ``run`` does all of it, resumably;
``certificate`` is what reports quote.
"""

from __future__ import annotations

from recsys.lazy import on_first_use

_WHERE = {
    "run": ("certify",),
    "traps": ("run_traps",),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(_MODULE)
__getattr__ = on_first_use(__name__, _MODULE)
