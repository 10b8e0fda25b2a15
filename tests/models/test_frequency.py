from __future__ import annotations

import numpy as np
import torch

from recsys.models.frequency import StreamingFrequency


def _stream(p: np.ndarray, batches: int, size: int, seed: int) -> list[torch.Tensor]:
    r = np.random.default_rng(seed)
    return [torch.from_numpy(r.choice(len(p), size, p=p)) for _ in range(batches)]


def test_it_finds_the_probabilities_of_frequent_and_rare_items_alike() -> None:
    # The first is in every batch several times: gaps counted in batches would say 1 for it and for the second.
    p = np.array([0.5, 0.25, 0.15, 0.08, 0.018, 0.002])
    frequency = StreamingFrequency(len(p), rate=0.01)
    for items in _stream(p, 800, 50, 0):
        frequency.update(items)
    found = frequency.log_probability(torch.arange(len(p))).exp().numpy()
    np.testing.assert_allclose(found[:5], p[:5], rtol=0.3)
    assert 0.0005 < found[5] < 0.008


def test_it_follows_a_change() -> None:
    frequency = StreamingFrequency(2, rate=0.02)
    for p in ([0.9, 0.1], [0.1, 0.9]):
        for items in _stream(np.array(p), 60, 50, 1):
            frequency.update(items)
        np.testing.assert_allclose(frequency.log_probability(torch.arange(2)).exp().numpy(), p, rtol=0.35)


def test_a_batch_is_the_same_as_its_draws_one_by_one_and_new_items_are_rare() -> None:
    whole, single = StreamingFrequency(4, 0.05), StreamingFrequency(4, 0.05)
    items = torch.tensor([1, 2, 1, 1, 2])
    whole.update(items)
    for item in items:
        single.update(item[None])
    for name in ("last", "hits", "draws"):
        torch.testing.assert_close(getattr(whole, name), getattr(single, name), rtol=0, atol=0)
    torch.testing.assert_close(whole.gap, single.gap)  # first gaps are averaged plainly, so their order is nothing
    torch.testing.assert_close(whole.log_probability(torch.tensor([3])).exp(), torch.tensor([1 / 6]))
    assert set(whole.state_dict()) == {"gap", "last", "hits", "draws"}
    assert not any(p.requires_grad for p in whole.parameters())
