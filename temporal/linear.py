"""Linear layers in float32 on a CPU through oneDNN, which PyTorch itself uses for other precisions.

PyTorch multiplies float32 matrices with MKL, which leaves AVX-512 unused on processors that are not
Intel's (the ratio is in `benchmarks/temporal_encoder.py`). The operator is one that `torch.compile`
emits. Everything else goes the usual way. Gradients of gradients work; `torch.func` does not.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

has_onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """`nn.Linear`: the same parameters, the same outputs, [..., D] → [..., E]."""

    def forward(self, x: Tensor) -> Tensor:
        """By oneDNN where that is faster."""
        is_float32 = x.dtype == self.weight.dtype == torch.float32
        is_plain_cpu = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if not (has_onednn and is_float32 and is_plain_cpu):
            return F.linear(x, self.weight, self.bias)
        y: Tensor = _OneDnnLinear.apply(x.flatten(0, -2), self.weight, self.bias)
        unflattened: Tensor = y.unflatten(0, x.shape[:-1])
        return unflattened


class _OneDnnLinear(torch.autograd.Function):
    """x [M, K], weight [N, K], bias [N] or None → [M, N]."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(x, weight)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = context.saved_tensors
        is_needed = context.needs_input_grad
        return (
            _OneDnnLinear.apply(gradient, weight.t(), None) if is_needed[0] else None,
            gradient.t() @ x if is_needed[1] else None,
            gradient.sum(0) if is_needed[2] else None,
        )
