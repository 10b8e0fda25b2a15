"""What the batch job and the HTTP service ask of a model, whichever model it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from recsys.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from recsys.serving.scorer import Scorer

HEAD_COLUMNS = {"click": "p_click", "engage": "p_engage", "convert": "p_convert"}
"""Head of a model -> its column in SCORES."""


class ScorerLike(Protocol):
    """A loaded model.

    Attributes:
        columns: input columns that :meth:`score` needs.
        kinds: what they hold.
        heads: those of click, engage, convert that it answers for.
        model_id: names the model in every row of SCORES.
    """

    @property
    def columns(self) -> list[str]:
        """Input columns that :meth:`score` needs."""

    @property
    def kinds(self) -> dict[str, str]:
        """Column -> what it holds: ``number``, ``category`` (strings or integers), ``row`` (of a table, an integer
        that must be there) or ``list`` (of strings)."""

    @property
    def heads(self) -> Sequence[str]:
        """Heads, of :data:`HEAD_COLUMNS`."""

    @property
    def model_id(self) -> str:
        """Identity of the model."""

    def score(self, table: pa.Table) -> dict[str, np.ndarray]:
        """Head -> float64 [n] probabilities of the table's n rows.

        Raises:
            InputError: a missing column, or one of the wrong type.
        """


def load_scorer(model: str | Path, device: str = "auto") -> Scorer:
    """Load a model folder (``recsys train``) or a bundle (``recsys export``).

    Args:
        model: the folder.
        device: auto | cpu | cuda.

    Raises:
        InputError: not a model folder, or a damaged one.
    """
    from recsys.serving.scorer import Scorer

    return Scorer.load(Path(model), device=device)


def device_of(scorer: ScorerLike) -> str:
    """Where the model's arithmetic runs, for the cost ledger: cpu, cuda:0, ..., or unknown where it does not say."""
    return str(getattr(scorer, "device", "unknown"))


def score_rows(scorer: ScorerLike, table: pa.Table, file: str | Path | None = None) -> dict[str, np.ndarray]:
    """``scorer.score`` where every fault of the rows is an InputError that names the file.

    Args:
        scorer: the model.
        table: n rows with the model's columns.
        file: where they are from; the model knows columns only.

    Raises:
        InputError: a missing column, or one whose type or range the model cannot take.
    """
    try:
        return scorer.score(table)
    except InputError as error:
        raise InputError(error.message, file=file, column=error.column, row=error.row if file is None else None,
                         got=error.got, expected=error.expected) from None
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise InputError("values that the model cannot take", file=file, got=str(error)) from None
