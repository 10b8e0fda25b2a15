"""Two rates with one trial per unit, the Bayesian way."""

from __future__ import annotations

import numpy as np
from scipy.stats import beta

from recsys.errors import InputError


def beta_binomial(successes_a: int, n_a: int, successes_b: int, n_b: int, prior: tuple[float, float] = (1.0, 1.0),
                  credibility: float = 0.95, draws: int = 200_000, seed: int = 0) -> dict[str, float]:
    """Two rates under independent beta priors, one trial per unit: what is the chance that b is the better one?

    Args:
        successes_a: of the baseline; ``n_a`` its units.
        n_a: see ``successes_a``.
        successes_b: of the variant; ``n_b`` its units.
        n_b: see ``successes_b``.
        prior: alpha and beta of both priors; uniform by default.
        credibility: mass of the interval of the relative lift.
        draws: of the posterior, for the interval and the loss.
        seed: of the draws.

    Returns:
        ``chance_to_beat`` (by quadrature), ``expected_loss`` of choosing b (mean of max(rate_a - rate_b, 0)), and
        ``relative_low`` and ``relative_high``.
    """
    if not (0 <= successes_a <= n_a and 0 <= successes_b <= n_b and min(n_a, n_b) > 0 and min(prior) > 0):
        raise InputError("counts not allowed", got=(successes_a, n_a, successes_b, n_b),
                         expected="0 <= successes <= n, n > 0, positive prior")
    a, b = (beta(s + prior[0], n - s + prior[1]) for s, n in ((successes_a, n_a), (successes_b, n_b)))
    at, weight = np.polynomial.legendre.leggauss(400)
    low, high = b.ppf(1e-14), b.ppf(1 - 1e-14)
    x = low + (high - low) * (at + 1) / 2
    chance = float((weight * b.pdf(x) * a.cdf(x)).sum() * (high - low) / 2)
    rng = np.random.default_rng(seed)
    one, two = a.rvs(draws, random_state=rng), b.rvs(draws, random_state=rng)
    ends = np.quantile(two / one - 1, [0.5 - credibility / 2, 0.5 + credibility / 2])
    return {"chance_to_beat": min(chance, 1.0), "expected_loss": float(np.maximum(one - two, 0).mean()),
            "relative_low": float(ends[0]), "relative_high": float(ends[1])}
