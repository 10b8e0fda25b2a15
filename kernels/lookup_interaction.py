"""Lookup and dot interaction in one, for serving features of one id each: DLRM's input to its top MLP.

Cost, for B rows of F - 1 ids and a dense vector, dim D, P = F (F - 1) / 2 pairs, e bytes an element:

* FLOPs 2 B P D;
* bytes moved, at the least: e B (F D + D + P) + 8 B (F - 1): read table rows, dense vectors and ids, write the result.
  Lookup and interaction apart also write and read [B, F, D]: about three times as much.

Bound by memory bandwidth: the rows lie at random, each a run of D e bytes.
"""

from __future__ import annotations

import torch
from recsys.kernels.dispatch import uses_triton
from recsys.kernels.dot_interaction import dot_interaction


def lookup_interaction_reference(tables: torch.Tensor, ids: torch.Tensor, first_row: torch.Tensor,
                                 dense: torch.Tensor, kernels: str = "reference") -> torch.Tensor:
    """The oracle of :func:`lookup_interaction`: looked up, joined, multiplied."""
    rows = (ids + first_row.unsqueeze(1)).T
    found = tables.index_select(0, rows.flatten()).view(*rows.shape, tables.shape[1])
    vectors = torch.cat([found, dense.to(tables.dtype).unsqueeze(1)], dim=1)
    return dot_interaction(vectors, len(ids), len(ids) + 1, kernels)


@torch.library.custom_op("recsys::lookup_interaction", mutates_args=())
def _lookup_interaction(tables: torch.Tensor, ids: torch.Tensor, first_row: torch.Tensor, dense: torch.Tensor,
                        kernels: str) -> torch.Tensor:
    if uses_triton(kernels, tables):
        from recsys.kernels.on_triton import lookup_interaction as on_triton

        return on_triton.forward(tables, ids, first_row, dense)
    return lookup_interaction_reference(tables, ids, first_row, dense, "auto").contiguous()


@_lookup_interaction.register_fake
def _(tables: torch.Tensor, ids: torch.Tensor, first_row: torch.Tensor, dense: torch.Tensor,
      kernels: str) -> torch.Tensor:
    features = ids.shape[0] + 1
    return tables.new_empty((dense.shape[0], dense.shape[1] + features * (features - 1) // 2))


def lookup_interaction(tables: torch.Tensor, ids: torch.Tensor, first_row: torch.Tensor, dense: torch.Tensor,
                       kernels: str = "auto") -> torch.Tensor:
    """The dense vector and the dot products of all pairs of looked-up vectors and it.

    Args:
        tables: [R, D], the tables below each other.
        ids: int32 or int64 [F - 1, B], ids within their tables, feature-major; F > 1; not checked.
        first_row: int64 [F - 1], where each feature's table begins.
        dense: [B, D].
        kernels: ``auto`` | ``reference`` | ``triton`` (:mod:`recsys.kernels.dispatch`).

    Returns:
        [B, D + F (F - 1) / 2], dtype of ``tables``: what :func:`recsys.kernels.dot_interaction.dot_interaction` gives
        for the looked-up vectors and, last, ``dense``. Without gradients.

    Raises:
        InputError: Triton is asked for where it cannot run.
    """
    if kernels == "reference":
        return lookup_interaction_reference(tables, ids, first_row, dense)
    return _lookup_interaction(tables, ids, first_row, dense, kernels)
