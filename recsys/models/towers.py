"""Two towers from and to their model folder, and the vectors they make: of users at query time, of ads ahead.

    towers = load_towers("runs/mine/retrievers/towers/model")
    users = towers.user_vectors(requests)       # float32 [n, D], unit length
    ads = towers.ad_vectors(ads_table)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from recsys.config import RetrieverConfig, parse_model
from recsys.errors import InputError
from recsys.features.batches import gather
from recsys.features.encoders import FeatureEncoder, require_columns
from recsys.models.bundle import Loaded, pick_device
from recsys.models.embeddings import SparseOptions, Table, make_embeddings
from recsys.models.folder import read_parts
from recsys.models.two_tower import AD, TowerInputs, TwoTower

_CHUNK = 16_384
_OF_THE_SLOT = frozenset({"slot"})  # which slot an ad gets is decided after retrieval


@dataclass(frozen=True)
class Sides:
    """Names of the features that each tower reads; ``user`` and ``ad`` are categorical, the others numeric."""

    user: tuple[str, ...]
    ad: tuple[str, ...]
    user_dense: tuple[str, ...]
    ad_dense: tuple[str, ...]

    @staticmethod
    def of(encoder: FeatureEncoder, ad_features: Iterable[str], neither: Iterable[str] = ()) -> Sides:
        """Sides of an encoder's features.

        Args:
            encoder: fitted on impressions.
            ad_features: columns that belong to the ad; ``ad_id`` and semantic ids do anyhow.
            neither: columns that no tower may read: what the shown ad's past was at that moment.
        """
        of_ad, left_out = {AD, *ad_features, *encoder.of_content}, {*neither} | _OF_THE_SLOT
        dense = [c.name for c in encoder.dense if c.name not in left_out]
        sparse = [n for n in encoder.sparse if n not in left_out]
        return Sides(tuple(n for n in sparse if n not in of_ad), tuple(n for n in sparse if n in of_ad),
                     tuple(n for n in dense if n not in of_ad), tuple(n for n in dense if n in of_ad))


def build_towers(encoder: FeatureEncoder, sides: Sides, config: RetrieverConfig, content: np.ndarray | None,
                 options: SparseOptions, device: torch.device) -> TwoTower:
    """Freshly initialised towers for an encoder's features; ``content`` is float32 [N + 1, C], or None."""
    tables = [Table(name, encoder.tables[name].rows, features, bool({*features} & {*encoder.sequence}))
              for name, features in encoder.features.items()]
    embeddings = make_embeddings("fused", tables, config.embedding_dim, options, device) if tables else None
    places, at = {}, 0
    for column in encoder.dense:
        places[column.name] = range(at, at + column.width)
        at += column.width
    user_dense, ad_dense = (tuple(i for n in names for i in places[n]) for names in (sides.user_dense, sides.ad_dense))
    matrix = None if content is None else torch.from_numpy(np.ascontiguousarray(content, np.float32))
    inputs = TowerInputs(embeddings, tuple(f for t in tables for f in t.features), (*sides.user, *encoder.sequence),
                         sides.ad, user_dense, ad_dense, matrix, tuple(encoder.of_content), bool(encoder.sequence),
                         encoder.tables[AD].rows if AD in encoder.tables else 0)
    return TwoTower(inputs, config).to(device)


@dataclass(frozen=True, kw_only=True)
class Towers(Loaded):
    """Trained towers, ready to make vectors; safe to use from several threads.

    Attributes:
        model: in evaluation mode.
        sides: which columns are the user's and which the ad's.
        config: the experiment file's section.
    """

    model: TwoTower
    sides: Sides
    config: RetrieverConfig

    @property
    def user_columns(self) -> list[str]:
        """Columns that :meth:`user_vectors` needs."""
        return [*self.sides.user_dense, *self.sides.user, *self.encoder.sequence]

    @property
    def ad_columns(self) -> list[str]:
        """Columns that :meth:`ad_vectors` needs."""
        own = [AD, *self.sides.ad_dense, *self.sides.ad]
        return [n for n in dict.fromkeys(own) if n not in self.encoder.of_content]

    def user_vectors(self, requests: pa.Table) -> np.ndarray:
        """Unit vectors of users, float32 [n, D]; somebody unknown has one, too, made of what is known of the request.

        Raises:
            InputError: a missing column, or one of the wrong type.
        """
        return self._vectors(requests, self.user_columns, 0)

    def ad_vectors(self, ads: pa.Table) -> np.ndarray:
        """Unit vectors of ads, float32 [n, D]; ads that training never saw have theirs by content and features.

        Raises:
            InputError: a missing column, or one of the wrong type.
        """
        return self._vectors(ads, self.ad_columns, 1)

    def with_ads(self, ids: list[str], vectors: np.ndarray) -> Towers:
        """The same towers with the content of further ads; see :meth:`recsys.models.bundle.Bundle.with_ads`."""
        encoder, content = self.grown(ids, vectors)
        model = self.model.with_content(torch.from_numpy(content).to(self.device))
        return replace(self, encoder=encoder, content=content, model=model)

    def _vectors(self, given: pa.Table, needed: list[str], side: int) -> np.ndarray:
        require_columns(given, needed)
        n = given.num_rows
        columns: dict[str, Any] = {name: given[name] for name in needed}
        for name in self.encoder.columns:  # the other tower's: nothing there, and nothing of it is used
            if name not in columns:
                own = (table := self.encoder.tables.get(name)) is not None and table.kind == "identity"
                columns[name] = np.zeros(n, np.int32) if own else pa.nulls(n)
        encoded = self.encoder.encode(pa.table(columns))
        out = np.empty((n, self.config.dim), np.float32)
        with torch.no_grad():  # not inference_mode: the fused lookup on a CPU lives in the autograd layer
            for start in range(0, n, _CHUNK):
                rows = np.arange(start, min(start + _CHUNK, n))
                batch = gather(encoded, rows, self.encoder.keys).to(self.device)
                out[rows] = self.model(batch)[:, side].cpu().numpy()
        return out


def load_towers(folder: str | Path, device: str = "auto") -> Towers:
    """Read a retriever's model folder.

    Raises:
        InputError: a file is missing or damaged, or it is another model's folder.
    """
    folder, at = Path(folder), pick_device(device)
    parts = read_parts(folder)
    if "retriever" not in parts.spec:
        raise InputError("not a retriever", file=folder / "model.json", got=sorted(parts.spec),
                         expected="the model folder of a two-tower retriever")
    config = parse_model(RetrieverConfig, parts.spec["retriever"], folder / "model.json")
    sides = Sides(**{n: tuple(v) for n, v in parts.spec["sides"].items()})
    model = build_towers(parts.loaded["encoder"], sides, config, parts.loaded["content"], SparseOptions(), at)
    try:
        model.load_weights({n.partition(".")[2]: t for n, t in parts.weights.items()})
    except (KeyError, RuntimeError) as error:
        raise InputError("weights do not fit model.json", file=parts.source, got=str(error),
                         expected="the weights that were saved with it") from None
    model.eval().requires_grad_(False)
    return Towers(model=model, sides=sides, config=config, device=at, **parts.loaded)


def sides_facts(sides: Sides) -> dict[str, Any]:
    """What model.json says of the sides, for :func:`load_towers`."""
    return {"sides": asdict(sides)}
