"""Every shipped ranker beside LightGBM and DeepCTR-Torch on real data: the same rows, the same columns, five seeds.

    RECSYS_DATA_HOME=... python benchmarks/model_table.py --work work/models --peers-venv work/peers

MovieLens latest-small (experiment ``movielens``: rating >= 4, split by time) and the Criteo attribution sample
(``criteo_attribution``: split by row). For each model, ours and the peers', a few settings are tried on a slice cut
from the training part alone (its last fifth in time, or a fifth of its rows) with one seed; the one of the least log
loss there is trained on the whole training part with every seed and looks at the test part once. What was tried is in
the result. A finished run is kept in ``--work`` and not repeated. Writes benchmarks/results/model_table.json.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import save
from peers.environment import peers_python
from sklearn.metrics import log_loss, roc_auc_score

from recsys.config import ExperimentConfig, load_config
from recsys.content.encoders import make_encoder
from recsys.datasets.split import prepare_split
from recsys.log import log
from recsys.serving.scorer import Scorer
from recsys.stage import write_json
from recsys.training.trainer import train_model

PEER = Path(__file__).parent / "peers" / "tabular.py"
ONE, MEAN = "training.ensemble=1", "model.history=mean"
KINDS = {"dlrm": ["model.kind=dlrm"], "dcnv2": ["model.kind=dcnv2"], "finalmlp": ["model.kind=finalmlp"]}


@dataclass(frozen=True)
class Data:
    """One data set: its experiment, what is tried of ours (overrides) and of the peers (settings), by model."""

    name: str
    ours: dict[str, list[list[str]]]
    peers: dict[str, list[dict[str, Any]]]


def _tried(base: list[str], *more: list[str]) -> list[list[str]]:
    return [[*base, *m] for m in more]


_NETS = [{"dim": 4, "epochs": 2, "lr": 1e-3, "batch_size": 512, "dnn_dropout": 0.2, "min_count": 3},
         {"dim": 8, "epochs": 1, "lr": 1e-3, "batch_size": 256, "dnn_dropout": 0.4, "l2_reg_embedding": 1e-3,
          "min_count": 3},
         {"dim": 4, "epochs": 4, "lr": 3e-4, "batch_size": 512, "dnn_dropout": 0.4, "l2_reg_embedding": 1e-2,
          "min_count": 3},
         {"dim": 4, "epochs": 4, "lr": 1e-3, "batch_size": 512, "dnn_dropout": 0.4, "min_count": 3,
          "without": ["ad_id"]}]
_DIN = [{"dim": 4, "epochs": 1, "lr": lr, "batch_size": 512, "dnn_dropout": 0.2, "min_count": 3, **more}
        for lr, more in ((1e-3, {}), (1e-3, {"without": ["passed"]}), (5e-4, {"att_weight_normalization": True}))]
_TREES = [{"n_estimators": n, "learning_rate": 0.05, "num_leaves": leaves, "min_child_samples": 20, **more}
          for n, leaves, more in ((60, 15, {"without": ["ad_id", "category"]}),
                                  (100, 15, {"without": ["ad_id", "category"]}), (150, 7, {"without": ["ad_id"]}),
                                  (100, 15, {"cat_smooth": 50, "min_data_per_group": 200, "min_count": 3}),
                                  (200, 15, {"cat_smooth": 50, "min_data_per_group": 200, "min_count": 3}),
                                  (100, 31, {"colsample_bytree": 0.5, "without": ["ad_id"]}))]
_TREES_ROWS = [{"n_estimators": n, "learning_rate": 0.05, "num_leaves": leaves, **more}
               for n, leaves, more in ((100, 15, {}), (150, 31, {}), (150, 63, {}), (300, 15, {}),
                                       (100, 31, {"cat_smooth": 50}), (200, 7, {}))]
_NETS_ROWS = [{"dim": 16, "epochs": e, "lr": 1e-3, "batch_size": 1024, "dnn_dropout": d, "l2_reg_embedding": l2}
              for e, d, l2 in ((2, 0.1, 1e-5), (4, 0.1, 1e-5), (4, 0.2, 1e-4), (8, 0.2, 1e-4))]

DATA = (
    Data("movielens",
         {**{k: _tried([*o, MEAN, ONE], ["training.epochs=3"], ["training.epochs=4"],
                       ["training.epochs=4", "model.dropout=0.2"]) for k, o in KINDS.items()},
          "dlrm, attention": _tried([ONE], ["training.epochs=3"], ["training.epochs=4"])},
         {"LightGBM": _TREES, "DCN": _NETS, "DeepFM": _NETS,
          "DIN": [*(n for n in _NETS if "without" not in n), *_DIN]}),
    Data("criteo_attribution",
         {k: _tried([*o, ONE], ["training.epochs=4"], ["training.epochs=8"],
                    ["training.epochs=4", "training.sparse_lr=0.05", "model.dropout=0.3"],
                    ["training.epochs=6", "model.min_count=20"]) for k, o in KINDS.items()},
         {"LightGBM": _TREES_ROWS, "DCN": _NETS_ROWS, "DeepFM": _NETS_ROWS}),
)


class Table:
    """Trains, scores and remembers.

    Args:
        data: the data set; work: scratch folder; python: interpreter of the peers.
    """

    def __init__(self, data: Data, work: Path, python: Path) -> None:
        self.data, self.work, self.python = data, work / data.name, python
        self.config = load_config(data.name, [f"data.home={_home(work)}"] if data.name == "movielens" else [])
        if not (self.work / "split" / "manifest.json").is_file():
            prepare_split(self.config, self.work)
        self.folders = {"test": self.work / "split", "validation": _inner(self.work / "split", self.work / "inner")}

    def run(self, model: str, settings: Any, part: str, seed: int) -> dict[str, float]:
        """Metrics of one training; ``part`` is what it is scored on, after training on what belongs to it."""
        peer, whole = model in self.data.peers, settings
        if not peer:
            config = load_config(self.data.name, settings)
            whole = [config.model.model_dump(mode="json"), config.training.model_dump(mode="json")]
        key = hashlib.sha256(json.dumps([model if peer else "", whole, part, seed]).encode()).hexdigest()[:16]
        kept = self.work / "runs" / f"{key}.json"
        if kept.is_file():
            return dict(json.loads(kept.read_text()))
        kept.parent.mkdir(exist_ok=True)
        folder = self.folders[part]
        p = self._peer(model, settings, folder, seed) if peer else self._own(settings, folder, seed)
        click = pq.read_table(folder / "test.parquet", columns=["click"])["click"].to_numpy()
        rate = click.mean()
        loss = float(log_loss(click, np.clip(p, 1e-7, 1 - 1e-7)))
        found = {"auc": float(roc_auc_score(click, p)), "log_loss": loss,
                 "normalized_entropy": loss / float(-(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))),
                 "calibration_ratio": float(p.mean() / rate)}
        write_json(kept, found)
        print(f"{self.data.name} {model} {part} seed {seed}: auc {found['auc']:.4f} log loss {found['log_loss']:.4f} "
              f"{json.dumps(settings)}", flush=True)
        return found

    def _own(self, overrides: list[str], folder: Path, seed: int) -> np.ndarray:
        config: ExperimentConfig = load_config(self.data.name, overrides)
        out = self.work / "model"
        shutil.rmtree(out, ignore_errors=True)
        content = None
        if (encoder := next((a.content for a in config.arms.values() if a.content), None)) is not None:
            ads = pq.read_table(self.work / "split" / "ads.parquet")
            texts = ads["body"].to_pylist()
            content = ads["ad_id"].to_pylist(), make_encoder(config.encoders[encoder]).encode(texts).vectors
        train_model(folder, config.model, config.training, out, seed=seed, content=content)
        return Scorer.load(out).score(pq.read_table(folder / "test.parquet"))["click"]

    def _peer(self, model: str, settings: dict[str, Any], folder: Path, seed: int) -> np.ndarray:
        out = self.work / "peer.npy"
        name = "lightgbm" if model == "LightGBM" else model
        subprocess.run([self.python, PEER, folder, name, str(seed), json.dumps(settings), out], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return np.load(out)

    def choose(self, model: str, candidates: list[Any]) -> tuple[Any, list[dict[str, Any]]]:
        """The settings of the least log loss on the slice, and all that was tried there."""
        tried = [{"settings": c, **self.run(model, c, "validation", 0)} for c in candidates]
        return min(tried, key=lambda t: t["log_loss"])["settings"], tried


def _home(work: Path) -> Path:
    """A data home whose ratings have no damaged line (a published copy has one, which ``prepare`` refuses)."""
    home = (work / "home").absolute()
    target = home / "ml-latest-small"
    if not target.is_dir():
        source = Path(os.environ["RECSYS_DATA_HOME"])
        found = next(p for p in (source / "movielens_latest_small", source / "ml-latest-small") if p.is_dir())
        target.mkdir(parents=True)
        shutil.copyfile(found / "movies.csv", target / "movies.csv")
        with (found / "ratings.csv").open(newline="") as read, (target / "ratings.csv").open("w", newline="") as write:
            csv.writer(write).writerows(r for i, r in enumerate(csv.reader(read)) if i == 0 or r[3].isdigit())
    return home


def _inner(split: Path, out: Path) -> Path:
    """The training part cut once more: by time where rows have one, else by a fixed draw of rows."""
    if not (out / "dataset.json").is_file():
        out.mkdir(exist_ok=True)
        table = pq.read_table(split / "train.parquet")
        held_out = np.random.default_rng(0).random(table.num_rows) < 0.2
        if "ts" in table.column_names:
            ts = table["ts"].cast(pa.int64()).to_numpy()
            held_out = ts >= np.quantile(ts, 0.8)
        for part, mask in (("train", ~held_out), ("test", held_out)):
            pq.write_table(table.filter(pa.array(mask)), out / f"{part}.parquet")
        shutil.copyfile(split / "dataset.json", out / "dataset.json")
    return out


def _summary(runs: list[dict[str, float]]) -> dict[str, float]:
    return {f"{k}{end}": float(f([r[k] for r in runs])) for k in runs[0]
            for end, f in (("", np.mean), ("_sd", lambda v: np.std(v, ddof=1) if len(v) > 1 else 0.0))}


def table(data: Data, work: Path, python: Path, seeds: int) -> dict[str, Any]:
    """All rows of one data set's table, and what the best of ours is ahead of each peer by, seed by seed."""
    t = Table(data, work, python)
    rows: dict[str, Any] = {}
    for model, candidates in (data.ours | data.peers).items():
        settings, tried = t.choose(model, candidates)
        rows[model] = {"peer": model in data.peers, "settings": settings, "tried": tried}
    best = min(data.ours, key=lambda m: min(r["log_loss"] for r in rows[m]["tried"]))
    size = load_config(data.name).training.ensemble
    shipped = f"{best}, ensemble of {size}"  # what the experiment file ships: the best kind, so many members
    rows[shipped] = {"peer": False, "settings": [o for o in rows[best]["settings"] if o != ONE], "tried": []}
    for model, row in rows.items():
        row["runs"] = [t.run(model, row["settings"], "test", seed) for seed in range(seeds)]
        row |= _summary(row["runs"])
    ahead = {}
    for model in data.peers:
        pairs = list(zip(rows[shipped]["runs"], rows[model]["runs"], strict=True))
        ahead[model] = _summary([{"auc": a["auc"] - b["auc"], "log_loss": b["log_loss"] - a["log_loss"]}
                                 for a, b in pairs])
    return {"shipped": shipped, "rows": rows, "shipped_ahead_of": ahead,
            "ahead_of_every_peer": all(a["auc"] > 0 and a["log_loss"] > 0 for a in ahead.values())}


def markdown(name: str, found: dict[str, Any]) -> str:
    """The table as it stands in docs/results.md."""
    lines = [f"**{name}**", "", "| model | AUC | log loss | NE |", "|---|---|---|---|"]
    for model, r in sorted(found["rows"].items(), key=lambda i: -i[1]["auc"]):
        shown = f"DeepCTR-Torch {model}" if r["peer"] and model != "LightGBM" else model
        cells = [f"{r[k]:.4f} ± {r[k + '_sd']:.4f}" for k in ("auc", "log_loss", "normalized_entropy")]
        lines.append(f"| {shown if r['peer'] else f'`{shown}`'} | {' | '.join(cells)} |")
    lines += ["", f"`{found['shipped']}` ahead of: " + "; ".join(
        f"{m} by {a['auc']:+.4f} ± {a['auc_sd']:.4f} AUC, {a['log_loss']:+.4f} ± {a['log_loss_sd']:.4f} log loss"
        for m, a in found["shipped_ahead_of"].items())]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/models"))
    parser.add_argument("--peers-venv", type=Path, default=Path("work/peers"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=[d.name for d in DATA], help="one data set; nothing is written")
    args = parser.parse_args()
    log.setLevel("ERROR")
    python = peers_python(args.peers_venv)
    results = {}
    for data in DATA:
        if args.only in (None, data.name):
            results[data.name] = table(data, args.work.absolute(), python, args.seeds)
            print(markdown(data.name, results[data.name]), flush=True)
    if args.only is None:
        print(save("model_table", results))


if __name__ == "__main__":
    main()
