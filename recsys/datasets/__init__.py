"""Raw files to contracts, by recipe; splits; the simulated marketplace.

The public names are imported on first use, so that importing the package costs nothing. ``prepare`` is a module and
a function of it: ``from recsys.datasets.prepare import prepare``.
"""

from recsys.lazy import on_first_use

_PUBLIC = {
    "load_recipe": "recipe", "list_recipes": "recipe", "Recipe": "recipe",
    "prepare_split": "split", "split_dataset": "split", "split_files": "split",
    "DatasetInfo": "info", "load_dataset_info": "info", "expand_candidates": "candidates",
    "content_hash": "text", "content_hashes": "text",
}
__getattr__ = on_first_use(__name__, _PUBLIC)
