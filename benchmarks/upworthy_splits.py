"""Upworthy: lift of every arm over the uniform choice on 20 story-disjoint splits, and the paired differences.

    RECSYS_DATA_HOME=... python benchmarks/upworthy_splits.py --work work/upworthy-splits

One split is a lottery (its standard deviation is over a point), so arms are compared over many, each ranker
fitted on the other stories only. Writes benchmarks/results/upworthy_splits.json.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
from common import save
from scipy.stats import t

from recsys.config import load_config
from recsys.content import embed_texts, joined_for_ads
from recsys.contracts import IMPRESSIONS, read_parquet
from recsys.datasets.prepare import prepare
from recsys.evaluation.randomized import oracle_lift, picked, read_tests, value_per_test
from recsys.models.ridge import fit_ridge
from recsys.training.ridge import training_rows

# Beside the shipped arms: the headline read twice, so that its first words are seen with the last ones in mind (four
# times the work), and that beside MiniLM.
MORE = [
    'encoders.smollm2_echo={kind: llama, model: smollm2-135m, layer: 24, pooling: mean_all, prompt: "{text}\\n{text}", '
    "batch_tokens: 512}",
    "arms.smollm2_echo={content: smollm2_echo}", "arms.minilm_and_echo={content: [minilm, smollm2_echo]}",
]


def lifts(table: pa.Table, arms: dict[str, tuple[list[str], np.ndarray]], held: np.ndarray,
          penalties: tuple[float, ...]) -> dict[str, float]:
    """Relative lift of each arm's picks over the uniform choice on the held-out rows."""
    test, found = table.filter(pa.array(held)), {}
    tests = read_tests(test, "group_id")
    uniform = value_per_test(tests, picked(tests, None)).mean()
    for name, (ids, vectors) in arms.items():
        x, outcomes, story = training_rows(table.filter(pa.array(~held)), ids, vectors)
        ridge = fit_ridge(x, outcomes, story, penalties)
        at = {ad: row for row, ad in enumerate(ids)}
        scores = ridge.score(vectors[[at[ad] for ad in test["ad_id"].to_pylist()]])
        found[name] = float(value_per_test(tests, picked(tests, scores)).mean() / uniform - 1)
    return found | {"oracle": oracle_lift(tests)["thinned"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/upworthy-splits"))
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--test-share", type=float, default=0.25)
    parser.add_argument("--set", action="append", default=[], help="override of experiments/upworthy.yaml")
    args = parser.parse_args()
    config = load_config("upworthy", [*MORE, *args.set])
    prepare(config.data.recipe, args.work / "data")
    ads, table = read_parquet(args.work / "data" / "ads.parquet"), read_parquet(
        args.work / "data" / "impressions.parquet", IMPRESSIONS)
    arms = {}
    for name, arm in config.arms.items():
        for content in arm.encoders:
            embed_texts(ads, config.encoders[content], args.work / "content" / content)
        if arm.encoders:
            arms[name] = joined_for_ads([args.work / "content" / c for c in arm.encoders], ads)
    story = np.array(table["group_id"].to_pylist())
    stories, rows = np.unique(story), []
    for split in range(args.splits):
        chosen = np.random.default_rng(split).permutation(stories)[: round(args.test_share * len(stories))]
        rows.append(lifts(table, arms, np.isin(story, chosen), config.model.penalties))
        print(split, {k: f"{v:+.2%}" for k, v in rows[-1].items()}, flush=True)
    values = {name: np.array([r[name] for r in rows]) for name in rows[0]}
    pairs = {f"{a} - {b}": summary(values[a] - values[b], args.test_share) for a, b in combinations(values, 2)}
    # How much of what there is to gain; the oracle chooses on half the viewers and is read on the other half.
    headroom = {n: float(v.mean() / values["oracle"].mean()) for n, v in values.items() if n != "oracle"}
    print(save("upworthy_splits", {"splits": args.splits, "test_share": args.test_share,
                                   "lift_over_uniform": {n: summary(v, args.test_share) for n, v in values.items()},
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
