from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from recsys.config import RetrieverConfig
from recsys.models.frequency import StreamingFrequency
from recsys.training.sampled_softmax import InBatchSoftmax


def _loss(ads: int, **config: object) -> InBatchSoftmax:
    model = SimpleNamespace(config=RetrieverConfig(**config), frequency=StreamingFrequency(ads, 0.01), training=True,
                            items=lambda batch: batch.content_row)
    return InBatchSoftmax(model)  # type: ignore[arg-type]


def _batch(items: list[int], successes: list[float]) -> SimpleNamespace:
    n = len(items)
    return SimpleNamespace(content_row=torch.tensor(items), successes=torch.tensor(successes)[:, None],
                           weight=torch.ones(n))


@pytest.mark.parametrize("log_q", [True, False])
def test_only_the_correction_finds_what_users_click(log_q: bool) -> None:
    """Two users and four ads of very different popularity, scores free: the softmax must be the click probabilities."""
    torch.manual_seed(0)
    r = np.random.default_rng(0)
    wanted = np.array([[0.70, 0.20, 0.08, 0.02], [0.60, 0.05, 0.05, 0.30]])
    user_D, ad_D = torch.zeros(2, 4, requires_grad=True), torch.eye(4)  # scores are the users' own entries
    loss, optimizer = _loss(4, temperature=1.0, log_q=log_q), torch.optim.Adam([user_D], lr=0.05)
    for _ in range(200):
        user = r.integers(0, 2, 512)
        items = (r.random((512, 1)) > wanted.cumsum(1)[user]).sum(1).tolist()
        vectors = torch.stack([user_D[user], ad_D[items]], dim=1)
        value, count = loss(vectors, _batch(items, [1.0] * 512))  # type: ignore[arg-type]
        optimizer.zero_grad()
        (value / count).backward()
        optimizer.step()
    found = functional.softmax(user_D.detach(), dim=1).numpy()
    error = np.abs(found - wanted).max()
    assert error < 0.06 if log_q else error > 0.2, found


def test_rows_without_a_click_are_ads_only_and_the_same_ad_is_no_negative() -> None:
    loss = _loss(10, temperature=1.0, log_q=False, hard_negatives=1.0)
    vectors = functional.normalize(torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(1)), dim=2)
    logits, target, weight = loss.logits(vectors, _batch([1, 2, 1, 3], [1.0, 0.0, 1.0, 0.0]))  # type: ignore[arg-type]
    assert logits.shape == (2, 4)
    assert target.tolist() == [0, 2]
    assert weight.tolist() == [1.0, 1.0]
    lowest = torch.finfo(logits.dtype).min
    assert (logits == lowest).tolist() == [[False, False, True, False], [True, False, False, False]]
    torch.testing.assert_close(logits[0, 1], vectors[0, 0] @ vectors[1, 1])


def test_without_hard_negatives_they_are_left_out_of_a_validation_slice() -> None:
    loss = _loss(10, log_q=False)
    logits, *_ = loss.logits(torch.randn(3, 2, 4), _batch([1, 2, 3], [1.0, 0.0, 1.0]))  # type: ignore[arg-type]
    assert (logits == torch.finfo(logits.dtype).min).tolist() == [[False, True, False], [False, True, False]]


def test_the_frequencies_are_learnt_in_training_only() -> None:
    loss = _loss(10)
    loss._model.training = False
    loss.logits(torch.randn(3, 2, 4), _batch([1, 2, 3], [1.0, 1.0, 1.0]))  # type: ignore[arg-type]
    assert float(loss._model.frequency.draws) == 0
    loss._model.training = True
    loss.logits(torch.randn(3, 2, 4), _batch([1, 2, 3], [1.0, 1.0, 1.0]))  # type: ignore[arg-type]
    assert float(loss._model.frequency.draws) == 3
