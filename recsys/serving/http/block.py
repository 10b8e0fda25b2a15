"""What a request asks to be scored: a table, or, where all its values are plain numbers, two blocks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
import pyarrow as pa

from recsys.serving.protocol import ScorerLike, score_rows

if TYPE_CHECKING:
    from recsys.serving.scorer import Scorer


@dataclass(frozen=True)
class Block:
    """Raw values as :meth:`recsys.serving.scorer.Scorer.score_block` takes them, column by column.

    Attributes:
        dense: float32 [numeric columns, n], NaN where missing.
        ids: int64 [id columns, n].
    """

    dense: np.ndarray
    ids: np.ndarray

    @property
    def num_rows(self) -> int:
        """n."""
        return int(self.dense.shape[1])


@dataclass(frozen=True)
class BlockColumns:
    """Where a column stands in a model's blocks."""

    dense: dict[str, int]
    ids: dict[str, int]

    @staticmethod
    def of(scorer: ScorerLike) -> BlockColumns | None:
        """None for a model that does not take blocks."""
        if not hasattr(scorer, "score_block") or "list" in scorer.kinds.values():
            return None
        takes = cast("Scorer", scorer)
        return BlockColumns(*({n: i for i, n in enumerate(names)} for names in (takes.dense_columns, takes.id_columns)))


Rows: TypeAlias = "pa.Table | Block"


def alike(a: Rows, b: Rows) -> bool:
    """Whether :func:`joined` can join them."""
    if isinstance(a, Block) or isinstance(b, Block):
        return type(a) is type(b)
    return bool(a.schema.equals(b.schema))


def joined(parts: Sequence[Rows]) -> Rows:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    blocks = [p for p in parts if isinstance(p, Block)]
    if len(blocks) == len(parts):
        return Block(np.concatenate([p.dense for p in blocks], axis=1), np.concatenate([p.ids for p in blocks], axis=1))
    return pa.concat_tables([p for p in parts if isinstance(p, pa.Table)])


def scored(scorer: ScorerLike, rows: Rows) -> dict[str, np.ndarray]:
    """Head -> float64 [n] probabilities.

    Raises:
        InputError: rows that the model cannot take.
    """
    if isinstance(rows, Block):
        return cast("Scorer", scorer).score_block(rows.dense.T, rows.ids.T)
    return score_rows(scorer, rows)
