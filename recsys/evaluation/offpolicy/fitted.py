"""Propensities that a model was fitted to: are they nearer to a model of this very log than chance allows?"""

from __future__ import annotations

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import chdtr

from recsys.contracts import IMPRESSIONS
from recsys.errors import Refused
from recsys.evaluation.columns import encode
from recsys.evaluation.intervals import Floats

CHANCE = 1e-6  # as of counted propensities
VALUES, WIDTH, ADS = 64, 128, 64  # values of a category, columns of the design, ads: beyond them nothing is fitted
WORK = 1e7  # rows x ads x columns: some seconds
PER_PARAMETER = 10  # rows of an ad for every column of the design, for its parameters to be counted
STRENGTHS = (1.0, 1e4)  # inverse ridge penalties: scikit-learn's default, and nearly none


def require_not_fitted(table: pa.Table, names: list[str]) -> None:
    """Raise :class:`Refused` where propensities are those of a logistic model fitted to this log.

    A multinomial logistic regression of the shown ad on the log's context is fitted anew. Where honest propensities
    are within the model, sum (log fitted - log logged)^2 over rows is chi-square with as many degrees of freedom as
    the model has parameters (the information in the scores), and larger where the policy knew more than the context.
    Propensities that somebody fitted to the same rows come much nearer than that.

    What it does not see: other models than logistic ones (a tree's are counts in its leaves, which
    :class:`recsys.evaluation.offpolicy.propensity.Cells` sees), other features, and logs beyond WORK.

    Args:
        table: ``ad_id``, ``propensity`` and the context, n rows.
        names: columns of the context.
    """
    design = _design(table, names)
    ads, ad = encode(table.column("ad_id"))
    if design is None or not 2 <= len(ads) <= ADS or design.size * len(ads) > WORK:
        return
    rank = int(np.linalg.matrix_rank(design.T @ design))
    known = int((np.bincount(ad) >= PER_PARAMETER * rank).sum())
    if rank < 2 or known < 2:
        return
    logged = np.log(table.column("propensity").to_numpy())
    free = (known - 1) * rank
    for strength in STRENGTHS:
        distance = float(((_fitted(design[:, 1:], ad, strength) - logged) ** 2).sum())
        if distance > free:  # as far as honest ones are: another penalty moves the fit by less
            return
        if float(chdtr(free, distance)) < CHANCE:
            raise Refused(f"propensities are those of a logistic model of {', '.join(names)}, nearer than chance "
                          "allows: they were fitted to this log, not logged by the policy that chose; log the "
                          "probability at the moment of choosing")


def context(schema: pa.Schema) -> list[str]:
    """Columns that a model of the shown ad may have seen: slot, surface and those outside the contract."""
    known = {c.name for c in IMPRESSIONS.columns} - {"slot", "surface"} | {"propensity_source"}
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_dictionary, pa.types.is_boolean,
             pa.types.is_integer, pa.types.is_floating)
    return [f.name for f in schema if f.name not in known and any(is_kind(f.type) for is_kind in kinds)]


def _design(table: pa.Table, names: list[str]) -> Floats | None:
    """Ones, standardised numbers and one column per value of a category: float64[n, at most WIDTH]; None where there is
    no context, or too much."""
    parts = [np.ones((table.num_rows, 1))]
    for name in names:
        column = table.column(name)
        number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        distinct = len(pc.unique(column))
        if distinct <= 1 or (distinct > VALUES and not number):
            continue
        if distinct > VALUES or pa.types.is_floating(column.type):
            x = np.nan_to_num(pc.cast(column, pa.float64(), safe=False).to_numpy().astype(np.float64))
            parts.append(((x - x.mean()) / (x.std() or 1.0))[:, None])
        else:
            code: NDArray[np.int64] = encode(pc.fill_null(pc.cast(column, pa.string()), ""))[1]
            parts.append(np.eye(int(code.max()) + 1)[code])
        if sum(p.shape[1] for p in parts) > WIDTH:
            return None
    return np.concatenate(parts, axis=1) if len(parts) > 1 else None


def _fitted(features: Floats, ad: NDArray[np.int64], strength: float) -> Floats:
    """Log probability of each row's ad by a model fitted to all rows: float64[n]."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what is not converged is further away, and not refused
        model = LogisticRegression(C=strength, max_iter=300).fit(features, ad)
    made: Floats = model.predict_log_proba(features)[np.arange(len(ad)), ad]
    return made
