"""From a logged impression to every ad that could have been shown in its place."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.datasets.info import DatasetInfo
from recsys.errors import InputError

# What was observed of the ad that was shown: it says nothing about another candidate, so it is not repeated.
OUTCOMES = ("click", "dwell_ms", "conversion", "value", "hide", "trials", "successes", "price_paid", "propensity")
# Contract columns that belong to the ad; they are looked up together with the recipe's ad features.
AD_SIDE = ("advertiser_id", "bid")


def expand_candidates(impressions: pa.Table, ads: pa.Table, info: DatasetInfo) -> pa.Table:
    """One row per (impression row, candidate of its ``candidates`` list), in order.

    Columns of the request are repeated; ``ad_id`` is the candidate; ``info.ad_features``, ``advertiser_id``
    and ``bid`` are those of the candidate in ``ads`` (where ``ads`` has the column); the list itself and
    outcome columns of the shown ad (:data:`OUTCOMES`) are left out; ``logged`` (bool) marks the ad that
    was shown.

    Args:
        impressions: IMPRESSIONS with ``candidates``; N rows.
        ads: ADS; ``ad_id`` is unique.
        info: whose ``ad_features`` are columns of ``ads``.

    Returns:
        Table with sum of the candidate lists' lengths rows.

    Raises:
        InputError: no ``candidates`` column, a null list, a candidate or feature that ``ads`` does not have.
    """
    if "candidates" not in impressions.column_names:
        raise InputError("missing column", file="impressions", column="candidates", expected="a list of ad_id per row")
    lists = impressions.column("candidates").combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = pa.concat_arrays(lists.chunks) if lists.num_chunks else pa.array([], pa.list_(pa.string()))
    if lists.null_count:
        row = pc.index(pc.is_null(lists), True).as_py()
        raise InputError("null value", file="impressions", column="candidates", row=row, got="null",
                         expected="a list of ad_id")
    parent = pc.list_parent_indices(lists)
    candidate = lists.flatten().cast(pa.string())
    at = _lookup(candidate, parent, ads)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    looked_up = {n for n in (*AD_SIDE, *info.ad_features) if n in ads.column_names}
    missing = [n for n in info.ad_features if n not in ads.column_names]
    if missing:
        raise InputError("missing column", file="ads", column=missing[0], got=sorted(ads.column_names),
                         expected="every ad feature that dataset.json names")
    dropped = {"candidates", "ad_id", *OUTCOMES, *looked_up}
    request = impressions.select([n for n in impressions.column_names if n not in dropped]).take(parent)
    shown = impressions.column("ad_id").combine_chunks().cast(pa.string()).take(parent)
    for name in impressions.column_names:  # column order of the impressions is kept
        if name == "ad_id":
            columns[name] = candidate
        elif name in looked_up:
            columns[name] = ads.column(name).take(at)
        elif name not in dropped:
            columns[name] = request.column(name)
    for name in sorted(looked_up - set(columns)):
        columns[name] = ads.column(name).take(at)
    columns["logged"] = pc.fill_null(pc.equal(candidate, shown), False)
    return pa.table(columns)


def _lookup(candidate: pa.Array, parent: pa.Array, ads: pa.Table) -> pa.Array:
    at = pc.index_in(candidate, value_set=ads.column("ad_id").combine_chunks().cast(pa.string()))
    if at.null_count:
        first = int(np.flatnonzero(pc.is_null(at).to_numpy(zero_copy_only=False))[0])
        raise InputError("candidate without an ad", file="impressions", column="candidates",
                         row=parent[first].as_py(), got=candidate[first].as_py(), expected="an ad_id of the ads table")
    return at
