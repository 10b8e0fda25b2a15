"""The published JSON Schemas: the files follow the models, and the models know every key that reports have."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from recsys.report.schema import FILES, MODELS, schema_text
from tests.report import samples


def unknown(value: Any, path: str = "") -> list[str]:
    """Keys of a validated report that its schema does not name."""
    if isinstance(value, BaseModel):
        found = [f"{path}.{key}" for key in value.model_extra or {}]
        return found + [u for key in type(value).model_fields for u in unknown(getattr(value, key), f"{path}.{key}")]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [u for item in items for u in unknown(item, f"{path}[]")]


def check(name: str, value: dict[str, Any]) -> None:
    assert unknown(MODELS[name].model_validate(value)) == []


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_shipped_schema_is_the_models(name: str) -> None:
    shipped = (resources.files("recsys.report") / FILES[name]).read_text()
    assert shipped == schema_text(name), "run python -m recsys.report.schema"
    assert json.loads(shipped)["$schema"].endswith("2020-12/schema")
    assert "arms" in json.loads(shipped)["required"]


def test_books_are_valid_and_a_changed_key_is_not() -> None:
    books = json.loads(json.dumps(samples.money_on_clouds(samples.decided())))
    check("statement", books)
    arm = books["arms"]["minilm"]
    for change in ({"net_per_mille": None}, {"model_revenue": 1.0}, {"seconds": "12"}, {"roi": {"estimate": 1.0}}):
        with pytest.raises(ValidationError):
            check("statement", {**books, "arms": {"minilm": {**arm, **change}}})
    del arm["break_even_lift"]
    with pytest.raises(ValidationError, match="break_even_lift"):
        check("statement", books)
