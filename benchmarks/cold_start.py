"""Cold-start ads: click AUC on ads that training never saw, with and without content and semantic ids.

    python benchmarks/cold_start.py [--seeds 3]

In the simulated marketplace a fifth of the ads is taken out of the training part: their impressions, and themselves
from every user's history there. The test part keeps its time and its impressions of those ads: what is scored are ads
whose id, clicks and neighbours in histories no ranker has met. All arms train on the same rows with the settings of
experiments/marketplace.yaml; quantiser and content transform are fitted on the training part's ads.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from common import save
from sklearn.metrics import roc_auc_score

from recsys.config import ArmConfig, ExperimentConfig, SemanticIdConfig, load_config
from recsys.contracts import read_parquet
from recsys.datasets.info import load_dataset_info
from recsys.datasets.split import prepare_split
from recsys.experiment.arms import train_arm
from recsys.experiment.content import embed_arm, semantic_ids_of_arm
from recsys.features.vocabulary import stable_hash
from recsys.serving.scorer import Scorer
from recsys.stage import read_manifest

SHARE = 0.2
IDS = SemanticIdConfig(levels=3, codebook=64)
ARMS = {"ids_only": ArmConfig(), "content": ArmConfig(content="minilm"),
        "content_and_semantic_ids": ArmConfig(content="minilm", semantic_ids=IDS)}


def is_cold(ads: pa.Array, seed: int) -> np.ndarray:
    """True for the ads that are held out, bool [n]."""
    salted = pc.binary_join_element_wise(f"cold {seed}", ads, ":")
    return np.asarray(stable_hash(salted) < np.uint64(SHARE * 2**64))


def hide_cold_ads(split: Path, seed: int) -> None:
    """Take the cold ads out of train.parquet: their rows, and themselves from every list of ads."""
    path, info = split / "train.parquet", load_dataset_info(split)
    train = read_parquet(path)
    train = train.filter(pa.array(~is_cold(train["ad_id"].combine_chunks(), seed)))
    for name in info.sequence:
        lists = train[name].to_pylist()
        seen = pa.array(sorted({ad for row in lists for ad in row or ()}))
        cold = set(seen.filter(pa.array(is_cold(seen, seed))).to_pylist())
        warm = pa.array([None if row is None else [ad for ad in row if ad not in cold] for row in lists],
                        train.schema.field(name).type)
        train = train.set_column(train.column_names.index(name), name, warm)
    pq.write_table(train, path)


def one_world(config: ExperimentConfig, seed: int, out: Path) -> dict[str, dict[str, float]]:
    """Train all arms in one world; AUC of each on cold and on warm ads."""
    prepare_split(config, out)
    hide_cold_ads(out / "split", seed)
    test = read_parquet(out / "split" / "test.parquet")
    cold, click = is_cold(test["ad_id"].combine_chunks(), seed), test["click"].to_numpy()
    found: dict[str, dict[str, float]] = {}
    for name, arm in config.arms.items():
        embed_arm(config, arm, out)
        semantic_ids_of_arm(arm, name, out)
        train_arm(config, name, out)
        p = Scorer.load(out / "arms" / name / "model").score(test)["click"]
        found[name] = {"cold_auc": float(roc_auc_score(click[cold], p[cold])),
                       "warm_auc": float(roc_auc_score(click[~cold], p[~cold]))}
        print(seed, name, found[name], flush=True)
    facts = (read_manifest(out / "semantic_ids" / "content_and_semantic_ids") or {})["facts"]
    found["data"] = {"cold_impressions": int(cold.sum()), "cold_clicks": int(click[cold].sum()),
                     "collision_share": facts["collision_share"], "ids": facts["ids"], "texts": facts["texts"]}
    return found


def main() -> None:
    """Print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="worlds, each with its own simulation and cold ads")
    args = parser.parse_args()
    worlds = []
    for seed in range(1, args.seeds + 1):
        config = load_config("marketplace", [f"seed={seed}"]).model_copy(update={"arms": ARMS})
        with tempfile.TemporaryDirectory() as folder:
            worlds.append(one_world(config, seed, Path(folder)))
    means = {a: {k: float(np.mean([w[a][k] for w in worlds])) for k in ("cold_auc", "warm_auc")} for a in ARMS}
    gains = {a: [w[a]["cold_auc"] - w["ids_only"]["cold_auc"] for w in worlds] for a in list(ARMS)[1:]}
    save("cold_start", {"semantic_ids": IDS.model_dump(), "cold_share_of_ads": SHARE, "worlds": worlds, "mean": means,
                        "cold_auc_above_ids_only": gains})
    print(means, gains, sep="\n")


if __name__ == "__main__":
    main()
