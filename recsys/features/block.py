"""Rows as two blocks of numbers to encoded rows, without a table in between: the hot path of a service.

Raw values, as columns would hold them; every column of a kind at once, where :class:`FeatureEncoder` goes column by
column: a request of some hundred rows costs what its arithmetic costs.
"""

from __future__ import annotations

import numpy as np

from recsys.errors import InputError
from recsys.features.dense import DenseColumn
from recsys.features.encoded import Encoded, Jagged
from recsys.features.encoders import AD_TABLE, FeatureEncoder


class BlockEncoder:
    """Encodes blocks as ``encoder`` encodes tables of the same values.

    Attributes:
        dense: columns of the numeric block, in order.
        ids: columns of the id block, in order: the categorical features that are read, and ``ad_id`` where the model
            has content.
    """

    def __init__(self, encoder: FeatureEncoder) -> None:
        self._encoder = encoder
        self.dense = [c.name for c in encoder.dense]
        self.ids = [n for n in encoder.columns if n not in {*self.dense, *encoder.sequence} or n in encoder.sparse]
        read = [n for n in encoder.sparse if n not in encoder.of_content]
        self._place = {n: self.ids.index(n) for n in read}
        kinds = [encoder.tables[n].kind for n in read]
        self._plain = read == self.ids == list(encoder.sparse) and set(kinds) == {"identity"}
        self._rows = np.array([encoder.tables[n].rows for n in read], np.int64)
        self._mean = np.array([c.mean for c in encoder.dense], np.float32)[:, None]
        self._scale = np.array([1.0 / c.scale for c in encoder.dense], np.float32)[:, None]
        places, at = [], 0
        for column in encoder.dense:
            places.append(at)
            at += column.width
        self._values = np.array(places, np.int64)
        self._flags = [(i, places[i] + 1) for i, c in enumerate(encoder.dense) if c.indicator]

    def encode(self, dense: np.ndarray, ids: np.ndarray) -> Encoded:
        """Encode n rows.

        Args:
            dense: floats [n, len(self.dense)], raw values, NaN where missing; [n, 0] without numeric features.
            ids: integers [n, len(self.ids)], raw ids: an id that is in no vocabulary is an unknown one.

        Raises:
            InputError: another shape or type, an infinite number, an id outside a table whose rows ids are, or a model
                with list features.
        """
        encoder = self._encoder
        if encoder.sequence:
            raise InputError("a model with list features", got=list(encoder.sequence),
                             expected="columns by name, not blocks")
        dense, ids = np.asarray(dense), np.asarray(ids)
        for what, block, names in (("numeric", dense, self.dense), ("id", ids, self.ids)):
            if block.ndim != 2 or block.shape[1] != len(names):
                raise InputError(f"{what} block of another shape", got=list(block.shape),
                                 expected=f"[rows, {len(names)}]: {', '.join(names)}")
        if len(dense) != len(ids):
            raise InputError("blocks of different lengths", got=(len(dense), len(ids)), expected="one row a candidate")
        if ids.dtype.kind not in "iu" or dense.dtype.kind not in "fiu":
            raise InputError("wrong type", got=f"{dense.dtype}, {ids.dtype}", expected="floats and integers")
        if ids.dtype == np.uint64:
            raise InputError("wrong type", got="uint64", expected="ids as int64")
        found = Encoded(self._numbers(dense), *self._rows_of(np.ascontiguousarray(ids.T, np.int64)), (),
                        Jagged.empty(len(ids)), history_length=encoder.history_length)
        return found

    def _numbers(self, dense: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            x = np.ascontiguousarray(dense.T, np.float32)
            suspect = not np.isfinite(x.sum())
        if suspect and (infinite := np.isinf(x)).any():
            column, row = (int(i) for i in np.argwhere(infinite)[0])
            raise InputError("value not allowed", column=self.dense[column], row=row, got=float(dense[row, column]),
                             expected="a finite number that float32 can hold, or NaN for a missing one")
        missing = np.isnan(x) if suspect else None
        scaled = DenseColumn.scale_block(x, self._mean, self._scale)
        if missing is not None:
            scaled[missing] = 0.0
        if not self._flags:
            return np.ascontiguousarray(scaled.T)
        out = np.zeros((self._encoder.dense_width, x.shape[1]), np.float32)
        out[self._values] = scaled
        if missing is not None:
            for column, at in self._flags:
                out[at] = missing[column]
        return np.ascontiguousarray(out.T)

    def _rows_of(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows int32 [n, categorical features] and content rows int32 [n] of raw ids [columns, n]."""
        encoder, n = self._encoder, ids.shape[1]
        content_row = np.zeros(n, np.int32)
        if encoder.content is not None:
            content_row = encoder.content.encode_integers(ids[self.ids.index(AD_TABLE)], AD_TABLE)
        if self._plain:
            if n and (ids.min() < 0 or (ids.max(axis=1) >= self._rows).any()):
                for name, column in zip(self.ids, ids, strict=True):
                    encoder.tables[name].encode_integers(column, name)  # raises, with the column and the row
            return ids.astype(np.int32).T, content_row
        sparse = np.empty((len(encoder.sparse), n), np.int32)
        for i, name in enumerate(encoder.sparse):
            if name in encoder.of_content:
                sparse[i] = encoder.of_content[name][content_row]
            else:
                sparse[i] = encoder.tables[name].encode_integers(ids[self._place[name]], name)
        return sparse.T, content_row
