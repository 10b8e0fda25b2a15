"""Upworthy: lift of every arm over the uniform choice on 20 story-disjoint splits, and the paired differences.

    RECSYS_DATA_HOME=... python benchmarks/upworthy_splits.py --work work/upworthy-splits

One split is a lottery (its standard deviation is over a point), so arms are compared over many, each ranker
fitted on the other stories only. Writes benchmarks/results/upworthy_splits.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import save
from scipy.stats import t

from recsys.config import ModelConfig, load_config
from recsys.content import block_widths, embed_texts, joined_for_ads
from recsys.contracts import IMPRESSIONS, read_parquet
from recsys.datasets.prepare import prepare
from recsys.evaluation.randomized import oracle_lift, picked, read_tests, value_per_test
from recsys.models.ridge import fit_ridge
from recsys.stage import sha256_json, write_json
from recsys.training.ridge import training_rows


@dataclass(frozen=True)
class Arm:
    """Content vectors of the ads and the blocks that they are made of."""

    ids: list[str]
    vectors: np.ndarray
    widths: tuple[int, ...]


def lift(table: pa.Table, arm: Arm, held: np.ndarray, model: ModelConfig) -> tuple[float, str]:
    """Relative lift of an arm's picks over the uniform choice on the held-out rows, and what it chose in training."""
    x, outcomes, story, _ = training_rows(table.filter(pa.array(~held)), arm.ids, arm.vectors)
    ridge = fit_ridge(x, outcomes, story, model.penalties, widths=arm.widths, gammas=model.gammas)
    test, at = table.filter(pa.array(held)), {ad: row for row, ad in enumerate(arm.ids)}
    tests = read_tests(test, "group_id")
    scores = ridge.score(arm.vectors[[at[ad] for ad in test["ad_id"].to_pylist()]])
    value, uniform = (value_per_test(tests, picked(tests, s)).mean() for s in (scores, None))
    return float(value / uniform - 1), f"{ridge.scaling}, gamma {ridge.gamma:g}, penalty {ridge.penalty:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/upworthy-splits"))
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--test-share", type=float, default=0.25)
    parser.add_argument("--set", action="append", default=[], help="override of experiments/upworthy.yaml")
    parser.add_argument("--jobs", type=int, default=1, help="arms that are fitted at a time")
    args = parser.parse_args()
    config = load_config("upworthy", args.set)
    prepare(config.data.recipe, args.work / "data")
    ads, table = read_parquet(args.work / "data" / "ads.parquet"), read_parquet(
        args.work / "data" / "impressions.parquet", IMPRESSIONS)
    arms = {}
    for name, arm in config.arms.items():
        for content in arm.encoders:
            embed_texts(ads, config.encoders[content], args.work / "content" / content)
        if arm.encoders:
            stores = [args.work / "content" / c for c in arm.encoders]
            arms[name] = Arm(*joined_for_ads(stores, ads), block_widths(stores))
    settings = sha256_json([config.resolved(), args.test_share])[:12]
    done = args.work / f"lifts-{settings}.json"  # a run that was stopped goes on
    found: dict[str, Any] = json.loads(done.read_text()) if done.is_file() else {}
    story = np.array(table["group_id"].to_pylist())
    stories = np.unique(story)
    with ThreadPoolExecutor(args.jobs) as pool:
        for split in range(args.splits):
            chosen = np.random.default_rng(split).permutation(stories)[: round(args.test_share * len(stories))]
            held = np.isin(story, chosen)
            row = found.setdefault(str(split), {
                "oracle": (oracle_lift(read_tests(table.filter(pa.array(held)), "group_id"))["thinned"], "")})
            todo = [name for name in sorted(arms, key=lambda n: -len(arms[n].widths)) if name not in row]
            fit = partial(lift, table, held=held, model=config.model)
            row |= dict(zip(todo, pool.map(fit, [arms[name] for name in todo]), strict=True))
            write_json(done, found)
            print(split, {k: f"{v[0]:+.2%}" for k, v in row.items()}, flush=True)
    rows = [found[str(split)] for split in range(args.splits)]
    values = {name: np.array([r[name][0] for r in rows]) for name in [*arms, "oracle"]}
    pairs = {f"{a} - {b}": summary(values[a] - values[b], args.test_share) for a, b in combinations(values, 2)}
    # How much of what there is to gain; the oracle chooses on half the viewers and is read on the other half.
    headroom = {n: float(v.mean() / values["oracle"].mean()) for n, v in values.items() if n != "oracle"}
    chosen_in_training = {n: dict(Counter(r[n][1] for r in rows).most_common()) for n in arms}
    print(save("upworthy_splits", {"splits": args.splits, "test_share": args.test_share,
                                   "lift_over_uniform": {n: summary(v, args.test_share) for n, v in values.items()},
                                   "chosen_by_cross_validation_in_training": chosen_in_training,
                                   "share_of_headroom_captured": headroom, "paired_difference": pairs}))


def summary(values: np.ndarray, test_share: float) -> dict[str, float]:
    """Mean, spread and 95 % interval over splits.

    Splits share training rows, so sd / sqrt(splits) is too small an error: the corrected resampled t of Nadeau and
    Bengio (2003, Inference for the Generalization Error) takes sd * sqrt(1 / splits + test / train) in its place.
    """
    count, sd = len(values), values.std(ddof=1)
    half = t.ppf(0.975, count - 1) * sd * np.sqrt(1 / count + test_share / (1 - test_share))
    return {"mean": float(values.mean()), "sd": float(sd), "low": float(values.mean() - half),
            "high": float(values.mean() + half), "min": float(values.min()), "max": float(values.max()),
            "share_above_0": float((values > 0).mean())}


if __name__ == "__main__":
    main()
