"""Linear layers of bfloat16 with their ReLU, in one call of oneDNN on weights that lie as it reads them.

A plain call packs the weights anew each time and writes its result twice, once before ReLU. On x86 the sums are the
same in the same order, and so are the results, to the last bit; elsewhere one row may be multiplied in another way.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from recsys.models.attention import TargetAttention


class PackedLinear(nn.Module):
    """A linear layer on the CPU, and ReLU if asked for; no gradients.

    Args:
        linear: of bfloat16; its weights are copied.
        relu: whether ReLU follows.
    """

    def __init__(self, linear: nn.Linear, relu: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.relu = linear.in_features, linear.out_features, relu
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[.., in_features], any floating dtype, to bfloat16 [.., out_features]."""
        return torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), self._weight, self._bias,
                                                  "relu" if self.relu else "none", [], "")

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        memo[id(self._weight)] = self._weight  # oneDNN's tensor cannot be copied; nothing writes to it, so it is shared
        twin = copy.copy(self)
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin

    def extra_repr(self) -> str:
        """As PyTorch's own layers show themselves."""
        return f"in_features={self.in_features}, out_features={self.out_features}, relu={self.relu}"


def can_pack() -> bool:
    """Whether this PyTorch has the operators (builds with oneDNN do)."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack_linears(module: nn.Module) -> None:
    """Replace the linear layers of bfloat16 that stand in an ``nn.Sequential``, each with the ReLU behind it."""
    for child in module.children():
        if not isinstance(child, TargetAttention):  # which takes its layers' weights apart
            pack_linears(child)
    if isinstance(module, nn.Sequential):
        for i, layer in enumerate(module):
            if isinstance(layer, nn.Linear) and layer.weight.dtype == torch.bfloat16:
                relu = i + 1 < len(module) and isinstance(module[i + 1], nn.ReLU)
                module[i] = PackedLinear(layer, relu)
                if relu:
                    module[i + 1] = nn.Identity()
