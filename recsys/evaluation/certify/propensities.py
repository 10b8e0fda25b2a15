"""Are counted propensities told from logged ones? False alarms over honest logs, and what is found of counted ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.errors import Refused
from recsys.evaluation.certify.worlds import softmax
from recsys.evaluation.intervals import Floats
from recsys.evaluation.offpolicy.propensity import Cells

Codes = NDArray[np.int64]
HONEST = 5  # honest logs for every one that is counted: false alarms are rare
ROWS, ADS, TEMPERATURES = (500, 3_000, 20_000), (5, 12, 40), (0.3, 1.0, 3.0)


def honest_log(rng: np.random.Generator) -> tuple[Codes, Codes, Floats]:
    """A softmax policy's log: segment int64[n], shown ad int64[n], its logged propensity float64[n].

    Sizes, sharpness, the number of segments, and whether the policy sees the segment only, or a context of its own as
    well, or nothing, are drawn at random.
    """
    n, ads = int(rng.choice(ROWS)), int(rng.choice(ADS))
    groups, contexts = int(rng.integers(1, 9)), int(rng.choice([1, 1, 4, 200]))
    logits = rng.choice(TEMPERATURES) * rng.normal(0, 1, (groups, contexts, ads))
    policy = softmax(logits, floor=float(rng.choice([0.0, 0.1])))
    group, context = rng.integers(0, groups, n), rng.integers(0, contexts, n)
    ad = _drawn(policy[group, context], rng)
    return group, ad, policy[group, context, ad]


def _drawn(policy: Floats, rng: np.random.Generator) -> Codes:
    steps = np.cumsum(policy, axis=1)
    return np.minimum((rng.random((len(steps), 1)) * steps[:, -1:] > steps).sum(axis=1), policy.shape[1] - 1)


def counted(segment: Codes, ad: Codes) -> Floats:
    """The frequency of the shown ad among its segment's rows: float64[n]."""
    pair = segment * (int(ad.max()) + 1) + ad
    made: Floats = np.bincount(pair)[pair] / np.bincount(segment)[segment]
    return made


def _smoothed(segment: Codes, ad: Codes) -> Floats:
    ads = int(ad.max()) + 1
    pair = segment * ads + ad
    made: Floats = (np.bincount(pair)[pair] + 1) / (np.bincount(segment)[segment] + ads)
    return made


def _jittered(p: Floats, share: float, rng: np.random.Generator) -> Floats:
    return np.clip(p * (1 + share * rng.uniform(-1, 1, len(p))), 1e-6, 1.0)


Maker = Callable[[Codes, Codes, np.random.Generator], Floats]
COUNTED: dict[str, Maker] = {
    "counted per ad": lambda s, a, rng: counted(np.zeros_like(s), a),
    "per ad, 1 % jitter a row": lambda s, a, rng: _jittered(counted(np.zeros_like(s), a), 0.01, rng),
    "per ad, 5 % jitter a row": lambda s, a, rng: _jittered(counted(np.zeros_like(s), a), 0.05, rng),
    "per ad, two decimals": lambda s, a, rng: np.maximum(np.round(counted(np.zeros_like(s), a), 2), 0.01),
    "per ad and segment": lambda s, a, rng: counted(s, a),
    "per ad and segment, 1 % jitter a row": lambda s, a, rng: _jittered(counted(s, a), 0.01, rng),
    "per ad and segment, add-one smoothing": lambda s, a, rng: _smoothed(s, a),
}


def fires(segment: Codes, ad: Codes, p: Floats, logged_segment: bool = True) -> bool:
    """Does the check refuse this log? ``logged_segment``: the segment is a column of the log."""
    columns: dict[str, Any] = {"ad_id": pa.array(ad).cast(pa.string()), "propensity": p}
    if logged_segment:
        columns["user_segment"] = segment
    cells = Cells()
    cells.add(pa.table(columns))
    try:
        cells.require_not_reconstructed()
    except Refused:
        return True
    return False


@dataclass(frozen=True)
class PropensityCell:
    """Logs of softmax policies: ``replications`` of them honest and counted, and HONEST times as many honest."""

    replications: int
    seed: int
    section: str = "propensities"

    @property
    def name(self) -> str:
        """For a line of a log."""
        return "honest and counted propensities"

    @property
    def work(self) -> float:
        """About how long it takes, in arbitrary units."""
        return self.replications * 80_000.0


def measure_propensities(cell: PropensityCell) -> dict[str, Any]:
    """Shares of refused logs: of honest ones (false alarms), and of the same logs with counted propensities.

    Returns:
        ``honest_logs``, ``counted_logs``; ``false_alarms`` and ``found``: name -> share, each with the segment
        as a column of the log and without.
    """
    logs, seed = cell.replications, cell.seed
    trials = HONEST * logs
    honest = {"with the segment": 0, "segment not in the log": 0}
    found = {name: [0, 0] for name in COUNTED}
    for at in range(trials):
        rng = np.random.default_rng([seed, at])
        segment, ad, p = honest_log(rng)
        honest["with the segment"] += fires(segment, ad, p)
        honest["segment not in the log"] += fires(segment, ad, p, logged_segment=False)
        for name, maker in COUNTED.items() if at < logs else ():
            made = maker(segment, ad, rng)
            for k, shown in enumerate((True, False)):
                found[name][k] += fires(segment, ad, made, logged_segment=shown)
    return {**asdict(cell), "honest_logs": trials, "counted_logs": logs,
            "false_alarms": {k: v / trials for k, v in honest.items()},
            "found": {k: {"with the segment": a / logs, "segment not in the log": b / logs}
                      for k, (a, b) in found.items()}}
