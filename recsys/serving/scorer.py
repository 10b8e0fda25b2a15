"""Scores of impressions or candidates by a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from recsys.errors import InputError
from recsys.features.batches import to_batch
from recsys.features.block import BlockEncoder
from recsys.features.encoded import Encoded
from recsys.features.encoders import FeatureEncoder
from recsys.models.bundle import Bundle, load_bundle
from recsys.models.embeddings.quantised import QuantisedEmbeddings
from recsys.training.evaluate import mean_logits

_CHUNK = 4096  # activations of so many rows stay in a core's cache


class Scorer:
    """A loaded ranker: rows of features in, probabilities out.

    Values that training never saw (a new ad, a new user) score through the out-of-vocabulary row and whatever other
    features they bring; a row's score does not depend on the rows beside it.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._keys = bundle.encoder.keys
        self._block = BlockEncoder(bundle.encoder)
        self._plain = all(m.embeddings is None or isinstance(m.embeddings, QuantisedEmbeddings) for m in bundle.models)

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
    def encoder(self) -> FeatureEncoder:
        """Columns to numbers: what :meth:`score_encoded` takes."""
        return self._bundle.encoder

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

    @property
    def lists(self) -> list[str]:
        """Those of :attr:`columns` that are lists of ids."""
        return list(self._bundle.encoder.sequence)

    @property
    def dense_columns(self) -> list[str]:
        """Columns of :meth:`score_block`'s numeric block, in order."""
        return self._block.dense

    @property
    def id_columns(self) -> list[str]:
        """Columns of :meth:`score_block`'s id block, in order."""
        return self._block.ids

    def score(self, table: pa.Table, file: str | Path | None = None) -> dict[str, np.ndarray]:
        """Score rows.

        Args:
            table: n rows with at least :attr:`columns`.
            file: named in errors.

        Returns:
            head -> probability float64 [n]; an ensemble's is the mean of its members'.

        Raises:
            InputError: a missing column, one of the wrong type, or a number that is infinite or beyond float32.
        """
        return self.score_encoded(self._bundle.encoder.encode(table, file))

    def score_block(self, dense: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Score rows given as two blocks of raw values: the fastest way in, without Arrow.

        Args:
            dense: floats [n, len(dense_columns)], NaN where missing.
            ids: integers [n, len(id_columns)].

        Returns:
            As :meth:`score` of the same values in columns.

        Raises:
            InputError: see :meth:`recsys.features.block.BlockEncoder.encode`.
        """
        return self.score_encoded(self._block.encode(dense, ids))

    def score_arrays(self, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Score rows given as an array a column.

        Args:
            columns: at least :attr:`columns`, each [n]: a numpy array (numbers, booleans, strings, or objects with None
                for missing ones), a list, or an Arrow array; of a list feature a list of lists or an Arrow list array.

        Returns:
            As :meth:`score`.

        Raises:
            InputError: a missing column, columns of different lengths, a wrong type, or an infinite number.
        """
        names = self.columns
        for name in names:
            if name not in columns:
                raise InputError("missing column", column=name, got=sorted(columns), expected="a column of the model")
        lengths = {name: len(columns[name]) for name in names}
        if len(set(lengths.values())) > 1:
            raise InputError("columns of different lengths", got=lengths, expected="one value a row in each")
        if not self.lists and names and all(_kind(columns[n]) in "fiu" for n in self.dense_columns) \
                and all(_kind(columns[n]) == "i" for n in self.id_columns):
            dense, ids = (np.empty((len(wanted), lengths[names[0]]), kind)
                          for wanted, kind in ((self.dense_columns, np.float32), (self.id_columns, np.int64)))
            with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinite
                for i, name in enumerate(self.dense_columns):
                    dense[i] = columns[name]
            for i, name in enumerate(self.id_columns):
                ids[i] = columns[name]
            return self.score_block(dense.T, ids.T)
        arrays = {}
        for name in names:
            try:
                arrays[name] = columns[name] if isinstance(columns[name], pa.Array | pa.ChunkedArray) \
                    else pa.array(columns[name], from_pandas=True)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                raise InputError("values of mixed types", column=name,
                                 expected="numbers, strings, or lists of strings") from None
        return self.score(pa.table(arrays))

    def score_encoded(self, encoded: Encoded) -> dict[str, np.ndarray]:
        """Score rows that :attr:`encoder` has encoded; head -> probability float64 [n]. Threads may share a scorer."""
        probabilities = torch.from_numpy(self.calibrated(self.logits(encoded))).sigmoid_().numpy()
        return {head: probabilities[:, i] for i, head in enumerate(self.heads)}

    def logits(self, encoded: Encoded) -> np.ndarray:
        """Log odds float64 [n, heads] before calibration."""
        logits = np.zeros((len(encoded), len(self.heads)))
        bundle, whole = self._bundle, len(encoded) <= _CHUNK
        # no_grad and not inference_mode: the fused lookup on a CPU lives in the autograd layer.
        with torch.no_grad(), torch.autocast(bundle.device.type, torch.bfloat16, enabled=bundle.bfloat16):
            for start in range(0, len(encoded), _CHUNK):
                stop = min(start + _CHUNK, len(encoded))
                part = encoded if whole else encoded.take(np.arange(start, stop))
                batch = to_batch(part, self._keys, self._plain).to(bundle.device)
                logits[start:stop] = mean_logits(bundle.models, batch)
        return logits

    def calibrated(self, logits: np.ndarray) -> np.ndarray:
        """Log odds after the bundle's calibration."""
        return self._bundle.calibration.apply(logits)


def _kind(column: Any) -> str:
    return column.dtype.kind if isinstance(column, np.ndarray) and column.ndim == 1 else "?"
