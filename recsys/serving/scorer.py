"""Scores of impressions or candidates by a model folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from recsys.features.batches import gather
from recsys.models.bundle import Bundle, load_bundle
from recsys.training.evaluate import mean_logits

_CHUNK = 16_384


class Scorer:
    """A loaded ranker: rows of features in, probabilities out.

    Values that training never saw (a new ad, a new user) score through the out-of-vocabulary row and whatever other
    features they bring; a row's score does not depend on the rows beside it.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._keys = bundle.encoder.keys

    @classmethod
    def load(cls, model_dir: str | Path, device: str = "auto") -> Scorer:
        """Load a model folder.

        Args:
            model_dir: what ``recsys train`` wrote.
            device: ``auto`` | ``cpu`` | ``cuda``.

        Raises:
            InputError: a file is missing or damaged.
        """
        return cls(load_bundle(model_dir, device))

    def with_ads(self, ids: list[str], vectors: np.ndarray) -> Scorer:
        """A scorer that also knows the content of further ads (:meth:`Bundle.with_ads`); this one stays as it is."""
        return Scorer(self._bundle.with_ads(ids, vectors))

    @property
    def columns(self) -> list[str]:
        """Input columns that :meth:`score` needs."""
        return self._bundle.encoder.columns

    @property
    def kinds(self) -> dict[str, str]:
        """Column -> number | category | row | list (:class:`recsys.serving.protocol.ScorerLike`)."""
        return self._bundle.encoder.kinds

    @property
    def heads(self) -> list[str]:
        """Names of the outputs."""
        return list(self._bundle.heads)

    @property
    def device(self) -> str:
        """Where the arithmetic runs: cpu, cuda:0, ..."""
        return str(self._bundle.device)

    @property
    def model_id(self) -> str:
        """Name and hash of the weights."""
        return self._bundle.model_id

    def score(self, table: pa.Table, file: str | Path | None = None) -> dict[str, np.ndarray]:
        """Score rows.

        Args:
            table: n rows with at least :attr:`columns`.
            file: named in errors.

        Returns:
            head -> probability float64 [n]; an ensemble's is the mean of its members'.

        Raises:
            InputError: a missing column, one of the wrong type, or an infinite number.
        """
        encoded = self._bundle.encoder.encode(table, file)
        logits = np.zeros((table.num_rows, len(self.heads)))
        with torch.no_grad():  # not inference_mode: the fused lookup on a CPU lives in the autograd layer
            for start in range(0, table.num_rows, _CHUNK):
                rows = np.arange(start, min(start + _CHUNK, table.num_rows))
                batch = gather(encoded, rows, self._keys).to(self._bundle.device)
                logits[rows] = mean_logits(self._bundle.models, batch)
        probabilities = 1.0 / (1.0 + np.exp(-logits))
        return {head: probabilities[:, i] for i, head in enumerate(self.heads)}
