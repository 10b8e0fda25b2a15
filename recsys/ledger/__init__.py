"""What models cost: price cards, FOCUS cost rows, the statement.

>>> from recsys.ledger import book, load_card
>>> rows = book([{"stage": "embed", "seconds": 3600.0}], load_card("2026-11"), "aws-c6a-large", "demo", "minilm")
>>> rows["EffectiveCost"].to_pylist()
[0.0765]
"""

from recsys.ledger.book import book, read_costs, validate_costs, write_costs
from recsys.ledger.clouds import cloud_costs
from recsys.ledger.prices import PriceCard, PriceRow, load_card
from recsys.ledger.statement import (
    arm_costs,
    break_even_lift,
    cost_per_mille,
    costs_per_mille,
    statement,
    tokens_per_second,
    usd_per_million_tokens,
)
from recsys.ledger.substitution import substitution

__all__ = [
    "PriceCard", "PriceRow", "arm_costs", "book", "break_even_lift", "cloud_costs", "cost_per_mille", "costs_per_mille",
    "load_card", "read_costs", "statement", "substitution", "tokens_per_second", "usd_per_million_tokens",
    "validate_costs", "write_costs",
]
