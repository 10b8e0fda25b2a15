"""The certificate that reports quote: which run measured the interval methods, and whether they are still those."""

from __future__ import annotations

import ast
import io
import json
import tokenize
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from recsys.stage import sha256_bytes, sha256_json

_SHARED = ("intervals.py", "betting.py", "likelihood.py", "sequential.py")
_REPORT = ("comparison.py", "growth.py", "segments.py", "shrinkage.py")
METHODS = {
    "offpolicy": (*_SHARED, *_REPORT, "beyond.py", *(f"offpolicy/{name}.py" for name in (
        "answer", "estimators", "evidence", "rows", "slate", "support", "totals", "tuning"))),
    "randomized": (*_SHARED, *_REPORT, "randomized.py"),
    "ab": (*_SHARED, *_REPORT, "welch.py", *(f"ab/{name}.py" for name in ("analysis", "breakdown", "contrast"))),
}
"""Design -> the modules of recsys/evaluation that decide which interval is published, and its ends: what is certified.
A change of one asks for a certificate of its own (CONTRIBUTING.md)."""
MODULES = tuple(sorted({name for names in METHODS.values() for name in names}))
SHIPPED = Path(__file__).with_name("certificate.json")


def code_sha256(source: str) -> str:
    """Hex SHA-256 of a module's code: comments, docstrings and blank lines do not count."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            text = node.body[0]
            for row in range(text.lineno, (text.end_lineno or text.lineno) + 1):
                lines[row - 1] = ""
    return sha256_bytes("\n".join(line.rstrip() for line in lines if line.strip()).encode())


@lru_cache
def _module_sha256(name: str) -> str:
    return code_sha256((Path(__file__).parents[1] / name).read_text())


def methods_sha256(modules: Iterable[str] = MODULES) -> dict[str, str]:
    """Module -> hash of its code, of the interval methods as they are now."""
    return {name: _module_sha256(name) for name in modules}


def certificate_of(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Id and hashes of a run: the id is the hash of its cells and of the methods' code."""
    methods = methods_sha256()
    return {"id": sha256_json({"cells": cells, "methods": methods}), "methods": methods}


def certificate(design: str) -> dict[str, Any] | None:
    """What a report quotes; None where the package ships no certificate.

    Args:
        design: ``offpolicy``, ``randomized`` (choices among randomised candidates) or ``ab`` (randomised users).

    Returns:
        {"id", "design", "methods_match": false where code that decides intervals of that design has changed since the
        run that the id names, "unmet": what was required of that design and not reached}.
    """
    if not SHIPPED.is_file():
        return None
    shipped, now = json.loads(SHIPPED.read_text()), methods_sha256(METHODS[design])
    return {"id": shipped["id"], "design": design,
            "methods_match": all(shipped["methods"].get(name) == now[name] for name in METHODS[design]),
            "unmet": [f"{line['requirement']} ({line['failed']} of {line['checked']} failed)"
                      for line in shipped["requirements"] if design in line["designs"] and not line["met"]]}


def shipped_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the package ships of a run of the whole certification."""
    return {**result["certificate"], "seed": result["seed"], "replications": result["replications"], "requirements": [
        {"requirement": r["requirement"], "designs": r["designs"], "met": r["met"], "checked": r["checked"],
         "failed": len(r["failures"])} for r in result["requirements"]]}
