"""The certificate that reports quote: which run measured the interval methods, and whether they are still those."""

from __future__ import annotations

import ast
import io
import json
import tokenize
from functools import lru_cache
from pathlib import Path
from typing import Any

from recsys.stage import sha256_bytes, sha256_json

METHODS = ("intervals.py", "betting.py", "likelihood.py")  # of recsys/evaluation: the code that is certified
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


@lru_cache(maxsize=1)
def methods_sha256() -> dict[str, str]:
    """Module -> hash of its code, of the interval methods as they are now."""
    folder = Path(__file__).parents[1]
    return {name: code_sha256((folder / name).read_text()) for name in METHODS}


def certificate_of(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Id and hashes of a run: the id is the hash of its cells and of the methods' code."""
    methods = methods_sha256()
    return {"id": sha256_json({"cells": cells, "methods": methods}), "methods": methods}


def certificate() -> dict[str, Any] | None:
    """What a report quotes: {"id", "methods_match"}; None where the package ships no certificate.

    ``methods_match`` is false where the interval code has changed since the run that the id names.
    """
    if not SHIPPED.is_file():
        return None
    shipped = json.loads(SHIPPED.read_text())
    return {"id": shipped["id"], "methods_match": shipped["methods"] == methods_sha256()}
