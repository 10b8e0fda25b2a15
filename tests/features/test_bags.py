from __future__ import annotations

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.features.bags import Bags
from recsys.features.batches import to_batch
from recsys.features.encoded import Encoded, Jagged


def both(lengths: list[list[int]]) -> tuple[Bags, KeyedJaggedTensor]:
    """The same bags [features, rows] as ours and as TorchRec's."""
    counts = torch.tensor(lengths, dtype=torch.int32)
    names, ids = [f"f{i}" for i in range(len(lengths))], torch.arange(int(counts.sum()), dtype=torch.int32)
    rows = counts.shape[1]
    return (Bags(names, ids, counts.flatten(), rows),
            KeyedJaggedTensor(keys=names, values=ids, lengths=counts.flatten(), stride=rows))


def assert_same(ours: Bags, theirs: KeyedJaggedTensor) -> None:
    assert ours.keys() == theirs.keys()
    assert ours.stride() == theirs.stride()
    for name in ("values", "lengths", "offsets"):
        assert getattr(ours, name)().tolist() == getattr(theirs, name)().tolist(), name


@pytest.mark.parametrize("lengths", [[[1, 1, 1], [1, 1, 1]],
                                     [[0, 2, 1], [3, 0, 0], [1, 1, 1]], [[4]], [[0, 0], [0, 0]]])
def test_bags_are_torchrecs(lengths: list[list[int]]) -> None:
    ours, theirs = both(lengths)
    assert_same(ours, theirs)
    order = list(range(len(lengths)))[::-1]
    assert_same(ours.permute(order), theirs.permute(order))
    assert_same(ours.to(torch.device("cpu")), theirs)


def test_no_rows() -> None:
    empty = Bags(["a", "b"], torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), 0)
    assert empty.offsets().tolist() == [0]
    assert empty.permute([1, 0]).keys() == ["b", "a"]


def test_a_plain_batch_holds_what_the_other_does() -> None:
    rng = np.random.default_rng(0)
    history = Jagged(rng.integers(0, 9, 7).astype(np.int32), np.array([0, 2, 2, 7]))
    data = Encoded(rng.normal(size=(3, 2)).astype(np.float32), rng.integers(0, 5, (3, 2)).astype(np.int32),
                   np.zeros(3, np.int32), (history,), history)
    plain, other = (to_batch(data, ["ad_id", "site", "history"], plain) for plain in (True, False))
    assert isinstance(plain.sparse, Bags)
    assert_same(plain.sparse, other.sparse)
    assert torch.equal(plain.dense, other.dense)
