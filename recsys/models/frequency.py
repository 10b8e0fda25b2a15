"""How often each ad is drawn, estimated from the stream of batches alone.

After Yi et al. 2019 ("Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019,
section 4, algorithm 2): an ad's probability is one over a moving average of the gap between two of its occurrences, so
that a new ad, or one that comes into fashion, needs no count over all data. Two changes. Gaps are counted in draws, not
in batches: where the ads are few, the frequent ones are in every batch, and gaps of batches would call them all equally
frequent. And the first gaps of an ad are averaged plainly (rate 1/n until that is below the learning rate), so that
where the average starts does not matter.
"""

from __future__ import annotations

import torch
from torch import nn


class StreamingFrequency(nn.Module):
    """Sampling probability of each of ``rows`` items.

    Its arrays are parameters without a gradient, so that checkpoints and model folders carry them.

    Args:
        rows: items are 0 .. rows - 1.
        rate: learning rate of the moving average, the paper's alpha.
    """

    def __init__(self, rows: int, rate: float) -> None:
        super().__init__()
        self.rate = rate

        def kept(n: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(n, dtype=torch.float64), requires_grad=False)

        self.gap, self.last, self.hits, self.draws = kept(rows), kept(rows), kept(rows), kept(1)

    @torch.no_grad()
    def update(self, items: torch.Tensor) -> None:
        """Take in the next draws, int64 [n], in their order.

        An item's c occurrences within them are c steps of the moving average with their mean gap.
        """
        at = self.draws + torch.arange(1, len(items) + 1, device=items.device, dtype=torch.float64)
        found, where, count = items.unique(return_inverse=True, return_counts=True)
        latest = torch.zeros(len(found), dtype=torch.float64, device=items.device).scatter_reduce_(0, where, at, "amax")
        gap, hits = (latest - self.last[found]) / count, self.hits[found] + count
        kept = torch.minimum((1 - self.rate) ** count, self.hits[found] / hits)
        self.gap[found] = kept * self.gap[found] + (1 - kept) * gap
        self.last[found], self.hits[found] = latest, hits
        self.draws.add_(len(items))

    def log_probability(self, items: torch.Tensor) -> torch.Tensor:
        """log of the probability that one draw is this item, float32, the shape of ``items``.

        An item that was never drawn is taken for one that would be drawn next.
        """
        gap = torch.where(self.hits[items] > 0, self.gap[items], self.draws + 1)
        return -gap.clamp_min(1.0).log().float()
