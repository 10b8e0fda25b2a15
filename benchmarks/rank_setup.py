"""What `serve_http.py --part rank` serves: ads, users and a ranking.yaml around the DLRM of the training benchmark.

The model's 39 columns come from where they would: of 12,000 ads (20 columns, besides bid, budget, language and brand
safety), of 20,000 users in a Parquet snapshot (14), and of the request's context (5). Values are those of the test
part. All that docs/serving.md names is on: filters, an experiment of two arms, exploration, prices, pacing, the log.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ADS, USERS, LANGUAGES = 12_000, 20_000, ("en", "de")
AD = ("I1", "I2", "I3", "I4", "I5", "I6", *(f"C{i}" for i in range(1, 15)))
USER = ("I7", "I8", "I9", "I10", "I11", *(f"C{i}" for i in range(15, 24)))
CONTEXT = {"I12": "number", "I13": "number", "C24": "integer", "C25": "integer", "C26": "integer"}


def write_ranking(work: Path, candidates: int) -> Path:
    """Write ads.parquet, users.parquet and ranking.yaml; returns the latter."""
    test, rng = pq.read_table(work / "data" / "test.parquet"), np.random.default_rng(0)

    def some(names: tuple[str, ...], n: int) -> dict[str, Any]:
        rows = test.select(list(names)).take(rng.integers(0, len(test), n))
        return {name: rows[name] for name in names}

    folder = work / "rank"
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({
        "ad_id": [f"a{i}" for i in range(ADS)], "advertiser_id": [f"v{i % 900}" for i in range(ADS)],
        "bid": rng.lognormal(-0.5, 0.6, ADS), "budget": rng.lognormal(8.0, 1.0, ADS),
        "language": rng.choice(LANGUAGES, ADS), "brand_safe": rng.random(ADS) < 0.95, **some(AD, ADS)}),
        folder / "ads.parquet")
    pq.write_table(pa.table({"user_id": [f"u{i}" for i in range(USERS)], **some(USER, USERS)}),
                   folder / "users.parquet")
    file = folder / "ranking.yaml"
    file.write_text(yaml.safe_dump({
        "ads": str(folder / "ads.parquet"), "users": {
            "parquet": str(folder / "users.parquet"), "fallback": {name: 0 for name in USER if name.startswith("C")}},
        "context": {**CONTEXT, "language": "string"}, "filters": ["language={language}", "brand_safe=true"],
        "retrieve": {"k": candidates},
        "policy": {"temperature": 0.25, "epsilon": 0.1, "depth": 20, "bid_exponent": 0.5, "reserve": 0.05},
        "pacing": {"period_seconds": 86400, "blocks": 288},
        "experiment": {"id": "rank", "baseline": "old", "arms": {
            "old": {"share": 0.5}, "new": {"share": 0.5, "policy": {"temperature": 0.1, "epsilon": 0.2}}}},
        "log": {"folder": str(folder / "log")}}))
    return file


def bodies(work: Path, n: int) -> list[bytes]:
    """Bodies of ``/v1/rank`` of n users, three slots each."""
    test, rng = pq.read_table(work / "data" / "test.parquet"), np.random.default_rng(1)
    rows = test.select(list(CONTEXT)).take(rng.integers(0, len(test), n)).to_pylist()
    return [json.dumps({"user_id": f"u{rng.integers(0, USERS)}", "surface": "feed", "k": 3,
                        "context": {**row, "language": LANGUAGES[i % 2]}}).encode() for i, row in enumerate(rows)]
