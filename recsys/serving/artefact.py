"""The scorer as a ``torch.export`` program (scorer.pt2), for runtimes that do not have this package.

Inputs are encoded rows (:func:`program_inputs`), outputs are probabilities; arithmetic is float32, of PyTorch's own
operations alone. Shape suffixes: B rows, S list features, L items of a list.
"""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from recsys.errors import InputError
from recsys.features.encoded import Encoded
from recsys.models.bundle import Bundle
from recsys.models.ranker import Ranker
from recsys.stage import read_manifest, sha256_file

FILE = "scorer.pt2"
_EMPTY = -1


class _Member(nn.Module):
    """One ranker on padded lists: shapes depend on no values, so that the program takes any rows."""

    def __init__(self, model: Ranker, sparse: tuple[str, ...], lists: tuple[str, ...]) -> None:
        super().__init__()
        tables: Any = model.embeddings
        self.model = copy.copy(model)
        self.model._modules = {n: m for n, m in model._modules.items() if n != "embeddings"}
        self.model.config = model.config.model_copy(update={"kernels": "reference"})  # no operators of this package
        self.model._user_content = self._user_content  # type: ignore[method-assign]
        self._sparse, self._lists = list(sparse), list(lists)
        self._places: dict[str, int] = {}
        if tables is not None:
            self._packed, rows = tables.packed, tables.packed.tables(tables.tables)
            for i, table in enumerate(tables.tables):
                self.register_buffer(f"table_{i}", rows[table.name].clone())
                self._places |= dict.fromkeys(table.features, i)

    def _rows(self, feature: str, ids: torch.Tensor) -> torch.Tensor:
        table = getattr(self, f"table_{self._places[feature]}")
        return self._packed.decoded(table[ids])

    def _look_up(self, feature: str, sparse: torch.Tensor, lists: torch.Tensor) -> torch.Tensor:
        if feature in self._sparse:
            return self._rows(feature, sparse[:, self._sparse.index(feature)])
        name, _, item = feature.rpartition("@")
        ids_BL = lists[self._lists.index(name or feature)]
        there = (ids_BL != _EMPTY).unsqueeze(-1)
        items = self._rows(feature, ids_BL.clamp_min(0)) * there
        return items[:, int(item)] if name else items.sum(1) / there.sum(1).clamp_min(1)

    def _user_content(self, ad_BC: torch.Tensor, batch: Any) -> torch.Tensor:
        model, rows_BL = self.model, batch.history_content
        there_BL = rows_BL != _EMPTY
        items = model.content[rows_BL.clamp_min(0)]
        if model.content_attention is None:
            there = there_BL.unsqueeze(-1)
            return (items * there).sum(1) / there.sum(1).clamp_min(1)
        return model.content_attention(ad_BC, items, there_BL)

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor, content_row: torch.Tensor, lists: torch.Tensor,
                history: torch.Tensor) -> torch.Tensor:
        found = [self._look_up(f, sparse, lists) for f in self._places]
        looked_up = torch.stack(found, dim=1) if found else None
        items = {f: lists[self._lists.index(f.rpartition("@")[0])][:, int(f.rpartition("@")[2])] != _EMPTY
                 for f in self._places if "@" in f}
        keys = list(items)
        bags = SimpleNamespace(keys=lambda: keys, lengths=lambda: torch.cat([items[k] for k in keys]).int())
        return self.model.rank(looked_up, SimpleNamespace(  # type: ignore[arg-type]
            dense=dense, content_row=content_row, sparse=bags, history_content=history))


class _Program(nn.Module):
    """The ensemble's mean probability, calibrated."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        encoder = bundle.encoder
        self.members = nn.ModuleList(_Member(m, encoder.sparse, encoder.sequence) for m in bundle.models)
        self._kind = bundle.calibration.kind
        for name, array in bundle.calibration.arrays.items():
            self.register_buffer(f"calibration_{name.replace('.', '_')}", torch.from_numpy(array).float())

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor, content_row: torch.Tensor, lists: torch.Tensor,
                history: torch.Tensor) -> torch.Tensor:
        """Probabilities [B, H]."""
        z = torch.stack([m(dense, sparse, content_row, lists, history) for m in self.members])
        z = z[0] if len(z) == 1 else torch.logit(torch.sigmoid(z.double()).mean(0)).float()
        if self._kind == "platt":
            line: Any = self.calibration_platt
            z = z * line[:, 0] + line[:, 1]
        elif self._kind == "isotonic":
            z = torch.stack([_interpolate(z[:, h], getattr(self, f"calibration_x_{h}"),
                                          getattr(self, f"calibration_y_{h}")) for h in range(z.shape[1])], dim=1)
        return torch.sigmoid(z)


def _interpolate(z: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    z = z.clamp(x[0], x[-1])
    at = torch.searchsorted(x, z.contiguous()).clamp(1, len(x) - 1)
    left, right = x[at - 1], x[at]
    return y[at - 1] + (y[at] - y[at - 1]) * (z - left) / (right - left)


def program_inputs(encoded: Encoded) -> tuple[torch.Tensor, ...]:
    """Encoded rows as the program takes them.

    Returns:
        dense float32 [B, width]; sparse int64 [B, categorical features]; content rows int64 [B]; list features int64
        [S, B, L], latest item first, -1 where a list is shorter; content rows of the history int64 [B, L], likewise. A
        ranker that attends over histories takes L = ``history_length``, others any L.
    """
    n = len(encoded)
    jagged = [*encoded.sequences, encoded.history]
    longest = encoded.history_length or max(1, *(int(np.diff(j.offsets).max(initial=0)) for j in jagged))
    padded = []
    for one in jagged:
        values, there = one.latest(np.arange(n), longest)
        block = np.full((longest, n), _EMPTY, np.int64)
        block[there > 0] = values
        padded.append(torch.from_numpy(np.ascontiguousarray(block.T)))
    lists = torch.stack(padded[:-1]) if padded[:-1] else torch.zeros(0, n, longest, dtype=torch.int64)
    return (torch.from_numpy(encoded.dense), torch.from_numpy(np.ascontiguousarray(encoded.sparse, np.int64)),
            torch.from_numpy(encoded.content_row.astype(np.int64)), lists, padded[-1])


def export_program(bundle: Bundle, example: Encoded, path: Path) -> None:
    """Write the program.

    Args:
        bundle: on the CPU, float32.
        example: at least two rows; any number of rows and list items is taken later.
    """
    rows, items = torch.export.Dim("rows", min=1), torch.export.Dim("items", min=1)
    inputs, fixed = program_inputs(example), not example.sequences or example.history_length > 0
    if not fixed and inputs[3].shape[2] == 1:  # a dimension of one would be taken as fixed
        inputs = (*inputs[:3], *(torch.nn.functional.pad(t, (0, 1), value=_EMPTY) for t in inputs[3:]))
    shapes = ({0: rows}, {0: rows}, {0: rows}, {1: rows} if fixed else {1: rows, 2: items},
              {0: rows} if fixed else {0: rows, 1: items})
    with torch.no_grad():
        program = torch.export.export(_Program(bundle).eval(), inputs, dynamic_shapes=shapes, strict=False)
    torch.export.save(program, path)


def load_program(folder: str | Path) -> Any:
    """The program of a bundle, as a callable.

    A .pt2 is code: load one only from a bundle whose publisher you trust. Its checksum is compared with the manifest's
    before it is opened, which finds damage, not malice. Scoring and serving never open it.

    Raises:
        InputError: no bundle, no program in it, or a file that is not the published one.
    """
    manifest, path = read_manifest(folder), Path(folder) / FILE
    published = (manifest or {}).get("facts", {}).get("files", {}).get(FILE)
    if published is None or not path.is_file():
        raise InputError("no exported program", file=path, expected="a bundle of recsys export with --program")
    if sha256_file(path) != published:
        raise InputError("damaged file", file=path, expected="the checksum of the manifest")
    return torch.export.load(path).module()
