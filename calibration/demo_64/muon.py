"""Muon for a GPU: matrices of one shape make their step together."""

import math
from collections import defaultdict

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.775, 2.0315)
ITERATIONS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices with shape (n, rows, columns) near 1, in bfloat16."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)).bfloat16()
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """What `torch.optim.Muon` with `match_rms_adamw` does, all matrices of a shape in one batch.

    The transformer here has 78 matrices of six shapes: one by one, a GPU would mostly wait for launches.

    References:
        Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/; the scale is that of Liu et
        al. (2025), https://arxiv.org/abs/2502.16982.
    """

    def __init__(self, params: list[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            shapes = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, alike in shapes.items():
                update = orthogonalize(torch.stack(self._nesterov(alike, group["momentum"])))
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                torch._foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(alike, list(update.to(alike[0].dtype).unbind()), alpha=-rate)

    def _nesterov(self, alike: list[Tensor], momentum: float) -> list[Tensor]:
        gradients = [parameter.grad for parameter in alike]
        for parameter in alike:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        running = [self.state[parameter]["momentum"] for parameter in alike]
        torch._foreach_lerp_(running, gradients, 1 - momentum)
        return torch._foreach_lerp(gradients, running, momentum)
