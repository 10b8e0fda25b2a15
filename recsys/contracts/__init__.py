"""Arrow schemas of everything that passes between stages, and the checks at the door.

A contract is a list of :class:`Column`. A table may carry further columns (a recipe's own dense
and sparse features); a required column must be there, every contract column that is there must
have its type, and every value must pass its check. The first violation is raised as one
:class:`recsys.errors.InputError` that names file, column, row, what was got and what was expected.
"""

from recsys.contracts.reading import iter_parquet, open_parquet, read_parquet, validate
from recsys.contracts.schemas import (
    ADS,
    CONTENT,
    COSTS,
    IMPRESSIONS,
    POLICY,
    SCORES,
    SURFACES,
    Column,
    Contract,
)

__all__ = ["ADS", "CONTENT", "COSTS", "IMPRESSIONS", "POLICY", "SCORES", "SURFACES", "Column", "Contract",
           "iter_parquet", "open_parquet", "read_parquet", "validate"]
