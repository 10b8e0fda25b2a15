"""Bernoulli Thompson sampling with a fixed prior as a POLICY: the replication of Open Bandit's BTS policy.

References:
    Saito, Aihara, Matsutani, Narita (2021). Open Bandit Dataset and Pipeline. NeurIPS Datasets and Benchmarks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from numpy.typing import ArrayLike

from recsys.contracts import POLICY, open_parquet, read_parquet
from recsys.errors import InputError
from recsys.evaluation.columns import encode
from recsys.evaluation.intervals import Floats

BLOCK = 10_000


def thompson_marginals(alpha: ArrayLike, beta: ArrayLike, slots: int = 3, draws: int = 100_000,
                       seed: int = 12345) -> Floats:
    """Probability of each ad in each slot when the slate is the top of one Beta draw per ad.

    Args:
        alpha: float[K], prior successes.
        beta: float[K], prior failures.
        slots: length of the slate.
        draws: Monte Carlo draws.
        seed: of numpy's legacy generator; rows of draws come in its order, so that a published seed gives the
            published probabilities to the last digit.

    Returns:
        float64[K, slots]; columns sum to 1.
    """
    a, b = np.asarray(alpha, dtype=np.float64), np.asarray(beta, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not ((a > 0) & (b > 0)).all():
        raise InputError("prior not allowed", column="alpha, beta", got=(a.shape, b.shape),
                         expected="one positive number of each per ad")
    if slots > len(a):
        raise InputError("more slots than ads", got=slots, expected=f"at most {len(a)}")
    rng, counts = np.random.RandomState(seed), np.zeros((slots, len(a)))
    for start in range(0, draws, BLOCK):
        rows = min(BLOCK, draws - start)
        top = rng.beta(a, b, (rows, len(a))).argsort(axis=1)[:, ::-1][:, :slots]
        counts += np.stack([np.bincount(top[:, k], minlength=len(a)) for k in range(slots)])
    return counts.T / draws


def thompson_policy(log: pa.Table, ads: pa.Array, marginals: Floats) -> pa.Table:
    """POLICY rows of every (request, slot) of the log: the slot's column of the marginals.

    Args:
        log: with ``request_id`` and ``slot`` (absent: slot 0).
        ads: K ad ids.
        marginals: float64[K, slots].

    Raises:
        InputError: a slot of the log is beyond the marginals.
    """
    slot = log.column("slot").to_numpy().astype(np.int64) if "slot" in log.column_names else np.zeros(
        log.num_rows, dtype=np.int64)
    request = encode(log.column("request_id"))[1]
    first = np.sort(np.unique(request * (slot.max(initial=0) + 1) + slot, return_index=True)[1])  # in the log's order
    slot = slot[first]
    if slot.max(initial=0) >= marginals.shape[1]:
        raise InputError("slot beyond the policy's slate", column="slot", got=int(slot.max()),
                         expected=f"below {marginals.shape[1]}")
    n, k = len(slot), len(ads)
    return pa.table({
        "request_id": log.column("request_id").take(pa.array(np.repeat(first, k))),
        "slot": pa.array(np.repeat(slot, k), pa.int32()),
        "ad_id": pa.array(ads).take(pa.array(np.tile(np.arange(k), n))),
        "probability": pa.array(marginals.T[slot].ravel()),
    }, schema=POLICY.schema(["request_id", "slot", "ad_id", "probability"]))


def write_thompson_policy(log: Path, prior: Path, ads: Path, out: Path, campaign: str | None = None,
                          draws: int = 100_000, seed: int = 12345) -> int:
    """Write the policy for a log's requests, batch by batch; returns its number of rows."""
    if not prior.is_file():
        raise InputError("no such file", file=prior, expected="YAML with alpha and beta")
    value = yaml.safe_load(prior.read_text())
    value = value.get(campaign) if campaign is not None and isinstance(value, dict) else value
    if not isinstance(value, dict) or not {"alpha", "beta"} <= set(value):
        raise InputError("no prior", file=prior, column=campaign, expected="alpha and beta, one number per ad")
    ids = read_parquet(ads).column("ad_id").combine_chunks()
    if len(ids) != len(value["alpha"]):
        raise InputError("the prior is of another set of ads", file=prior, column="alpha", got=len(value["alpha"]),
                         expected=f"{len(ids)} numbers, as many as {ads} has ads")
    file = open_parquet(log)
    names = [n for n in ("request_id", "slot") if n in file.schema_arrow.names]
    table = file.read(columns=names)
    slots = 1 if "slot" not in names else int(pc.max(table.column("slot")).as_py()) + 1
    marginals = thompson_marginals(value["alpha"], value["beta"], slots, draws, seed)
    made = thompson_policy(table, ids, marginals)
    partial = out.with_name(f".{out.name}.partial")
    pq.write_table(made, partial)
    partial.replace(out)
    return made.num_rows
