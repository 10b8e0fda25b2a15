from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from recsys.datasets.recipe import ColumnRule, Recipe, list_recipes, load_recipe
from recsys.errors import InputError

GOOD = {
    "name": "toy", "tables": {"impressions": {"file": "x.csv"}},
    "columns": {"impression_id": {"row_id": True}, "request_id": {"row_id": True}, "ad_id": "ad", "click": "clicked"},
    "label": {"click": {"kind": "binary", "column": "click"}},
}


def write(folder: Path, value: dict[str, object], name: str = "toy.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(value))
    return path


def test_every_shipped_recipe_loads_and_says_where_it_is_from() -> None:
    recipes = {r.name: r for r in list_recipes()}
    expected = {"criteo_attribution", "criteo_kaggle", "hillstrom", "ipinyou", "ipinyou_theta", "movielens",
                "open_bandit", "open_bandit_bts", "upworthy"}
    assert expected <= set(recipes)
    for recipe in recipes.values():
        assert recipe.title
        if isinstance(recipe, Recipe):
            assert recipe.published.startswith("https://")
            assert recipe.licence
            assert recipe.citation


def test_extends_lays_keys_over_another_recipe(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    over = {"extends": "toy.yaml", "name": "child", "columns": {"policy_id": {"constant": "b"}}}
    path = write(tmp_path, over, "c.yaml")
    child = load_recipe(path)
    assert isinstance(child, Recipe)
    assert child.name == "child"
    assert set(child.columns) == {*GOOD["columns"], "policy_id"}  # type: ignore[misc]
    path = write(tmp_path, {"extends": "loop.yaml"}, "loop.yaml")
    with pytest.raises(InputError, match="extends itself"):
        load_recipe(path)


@pytest.mark.parametrize(("change", "message"), [
    ({"colums": {}}, "unknown key; got 'colums'; expected a known key (did you mean 'columns'?)"),
    ({"columns": {"ad_id": "ad"}}, "a rule for impression_id is needed"),
    ({"label": {"click": {"kind": "binary", "column": "clik"}}}, "a rule for the label clik is needed"),
    ({"columns": {**GOOD["columns"], "slot": {"from": "a", "constant": 1}}}, "exactly one of from, constant"),  # type: ignore[dict-item]
    ({"columns": {**GOOD["columns"], "candidates": {"all_ads": True}}}, "all_ads needs an ads file"),  # type: ignore[dict-item]
    ({"stories": True}, "stories need a rule for group_id"),
    ({"text": ["title"]}, "a rule for title is needed"),
    ({"keep": [{"column": "a"}]}, "one of present, between, not_between, equals"),
])
def test_contradictions_are_one_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        load_recipe(write(tmp_path, {**GOOD, **change}))
    assert message in str(error.value)
    assert "toy.yaml" in str(error.value)


def test_a_bare_name_is_a_raw_column() -> None:
    assert ColumnRule.model_validate("clicks").source == ("clicks",)
    assert ColumnRule.model_validate({"from": ["a", "b"]}).reads() == ("a", "b")


def test_id_rows_are_sparse_features(tmp_path: Path) -> None:
    features = {"sparse": ["place"], "id_rows": {"place": 7}}
    recipe = load_recipe(write(tmp_path, {**GOOD, "features": features}))
    assert isinstance(recipe, Recipe)
    assert recipe.features.id_rows == {"place": 7}
    with pytest.raises(InputError, match="plase of id_rows is not in sparse"):
        load_recipe(write(tmp_path, {**GOOD, "features": {"sparse": ["place"], "id_rows": {"plase": 7}}}))
    with pytest.raises(InputError, match=r"features\.id_rows\.place"):
        load_recipe(write(tmp_path, {**GOOD, "features": {"sparse": ["place"], "id_rows": {"place": 0}}}))
