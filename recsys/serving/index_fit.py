"""Whether an index belongs to a model: it finds ads that the model knows, by the content that the model reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import InputError
from recsys.features.encoders import AD_TABLE
from recsys.models.bundle import Bundle
from recsys.retrieval.index import Index

_COMPARED = 1000
_APART = 0.05  # sine of the angle; rounding of float16 vectors makes 0.001, other vectors nearly 1


def check_index(folder: str | Path, model: Bundle) -> dict[str, Any]:
    """Compare the version of an index that is served with a model.

    Args:
        folder: of ``recsys index``.
        model: that was trained.

    Returns:
        ``key`` and ``config`` of the version's manifest, the folder's name of the ``version``, ``ads`` in the index,
        ``known``: those that the model saw in training (None where its ids are hashed or no feature), and ``apart``:
        the median sine of the angle between the content that the model reads of an ad and what the index holds of it
        (None where either has no content, or it was made by an encoder of another width).

    Raises:
        InputError: no index there, a damaged one, one of other ads, or of other content of the same width.
    """
    index = Index.open(folder)
    ids = index.ads["ad_id"].to_pylist()
    known = _known(model)
    rows = None if known is None else [i for i, ad in enumerate(ids) if ad in known]
    if rows is not None and not rows:
        raise InputError("an index of other ads", file=folder, got=f"{len(ids):,} ads that the model never saw, as "
                         f"{ids[0]!r}", expected=f"ads of {model.model_id}")
    apart = None
    if rows is not None and model.content is not None and model.transform is not None \
            and len(model.transform.mean) == len(index.transform.mean) and not index.transform.components.shape[1]:
        chosen = np.array(rows)[np.linspace(0, len(rows) - 1, min(len(rows), _COMPARED)).astype(np.int64)]
        apart = float(np.median(_sines(model, index, [ids[i] for i in chosen], index.vectors()[chosen])))
        if apart > _APART:
            raise InputError("an index of other content", file=folder, got=f"vectors that are {apart:.2f} apart from "
                             "those of the same ads in the model (sine, median)",
                             expected="the content store that the model was trained with")
    manifest = index.manifest
    return {"key": manifest["key"], "config": manifest["config"], "version": index.folder.name, "ads": len(ids),
            "known": None if rows is None else len(rows), "apart": apart}


def _known(model: Bundle) -> dict[str, int] | None:
    """Ads that the model can tell from others, with their rows, or None where that cannot be said."""
    encoder = model.encoder
    if encoder.content is not None:
        return {ad: row for row, ad in enumerate(encoder.content.values.to_pylist(), 1)}
    table = encoder.tables.get(AD_TABLE)
    if table is None or table.kind != "vocabulary":
        return None
    return {ad: row for row, ad in enumerate(table.values.to_pylist(), 1)}


def _sines(model: Bundle, index: Index, ads: list[str], unit: np.ndarray) -> np.ndarray:
    """Sine of the angle between what a model and an index hold of the same ads, float64 [n].

    Both hold a raw vector x only as a direction, from a mean of their own: the index u = (x - b) / |x - b|, the model
    m = (x - a) P / |(x - a) P|. So x = b + s u for an unknown s > 0, and m must be parallel to (b - a) P + s u P for
    some s; the best s has a closed form.
    """
    known, transform = _known(model), model.transform
    assert known is not None
    assert transform is not None
    assert model.content is not None
    project = transform.components.astype(np.float64) if transform.components.shape[1] else np.eye(unit.shape[1])
    m = model.content[[known[ad] for ad in ads]].astype(np.float64)
    m /= np.maximum(np.linalg.norm(m, axis=1, keepdims=True), 1e-12)
    shift = ((index.transform.mean.astype(np.float64) - transform.mean) @ project)[None]
    along = unit.astype(np.float64) @ project

    def across(v: np.ndarray) -> np.ndarray:
        return np.asarray(v - (v * m).sum(1, keepdims=True) * m)

    def sine(v: np.ndarray) -> np.ndarray:
        off = np.linalg.norm(across(v), axis=1) / np.maximum(np.linalg.norm(v, axis=1), 1e-12)
        return np.where((v * m).sum(1) > 0, off, 1.0)

    away, turned = across(shift), across(along)
    s = np.maximum(-(away * turned).sum(1) / np.maximum((turned**2).sum(1), 1e-24), 0.0)[:, None]
    return np.minimum(sine(shift + s * along), sine(along))  # the second: s beyond all bounds, or means that are alike
