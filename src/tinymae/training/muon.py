"""Muon: momentum, orthogonalised matrix by matrix, with equal shapes worked out together.

Jordan, *Muon: an optimizer for hidden layers in neural networks*, 2024; scaled as in Liu et al., arXiv 2502.16982.
"""

from collections import defaultdict

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from .device import supports_bf16

MOMENTUM = 0.95  # of Muon, Nesterov's
EPSILON = 1e-8  # of AdamW
# Coefficients of the five quintic Newton-Schulz steps: each step's own, fitted by F. L. Cesista (2025), "Muon and a
# selective survey on steepest descent"; they bring all singular values into about 0.7 to 1.2.
QUINTIC = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def orthogonalise(matrices: Tensor, *, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Matrices (K, M, N) -> about the nearest with all singular values 1, in `dtype`, by five Newton-Schulz steps.

    >>> torch.linalg.svdvals(orthogonalise(torch.eye(3)[None], dtype=torch.float32)).round().tolist()
    [[1.0, 1.0, 1.0]]
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).contiguous()
    for a, b, c in QUINTIC:
        gram = torch.bmm(x, x.mT)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for the groups whose `orthogonal` is true, AdamW for the others.

    A parameter of more than two dimensions is a matrix of its first against all others. Updates are scaled to the usual
    size of AdamW's, 0.2 x sqrt(max(M, N)), so that one learning rate serves both.

    Args:
        groups: parameter groups; each may have its own `orthogonal`, `lr`, and `weight_decay`, which is decoupled and
            multiplied by the learning rate.
        betas: of AdamW.
        dtype: in which matrices are orthogonalised; None: bfloat16 where the device has it, or else float32, which is
            many times as fast there.
    """

    def __init__(
        self, groups: list[dict], *, betas: tuple[float, float] = (0.9, 0.95), dtype: torch.dtype | None = None
    ):
        # By "fused", load_state_dict leaves AdamW's step on the parameters' device.
        defaults = {"lr": 1e-3, "weight_decay": 0.0, "betas": betas, "orthogonal": True, "fused": True}
        super().__init__(groups, defaults)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None):
        """One update. A `closure`, for which Accelerate gives None, is not provided for."""
        assert closure is None
        matrices = []  # parameters, each with its group
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["orthogonal"]:
                matrices += [(parameter, group) for parameter in parameters]
            elif parameters:
                self.step_adamw(parameters, group)
        if matrices:
            self.step_matrices(matrices)

    def step_matrices(self, members: list[tuple[Tensor, dict]]) -> None:
        """Update matrices, each with its group's settings."""
        parameters, gradients = [parameter for parameter, _ in members], [grad(parameter) for parameter, _ in members]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - MOMENTUM)
        updates = self.orthogonalise_all(list(torch._foreach_lerp(gradients, buffers, MOMENTUM)))
        for group in {id(group): group for _, group in members}.values():
            own = [number for number, (_, its) in enumerate(members) if its is group]
            moved = [parameters[number] for number in own]
            # The learning rate may be a tensor, for a CUDA graph to read.
            torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(moved, torch._foreach_mul([updates[number] for number in own], -group["lr"]))

    def orthogonalise_all(self, matrices: list[Tensor]) -> list[Tensor]:
        """Matrices of any shapes, orthogonalised, those of one shape together, and scaled."""
        dtype = self.dtype or (torch.bfloat16 if supports_bf16(matrices[0].device) else torch.float32)
        alike, results = defaultdict(list), list(matrices)
        for number, matrix in enumerate(matrices):
            alike[matrix.shape, matrix.device].append(number)
        for (shape, _), numbers in alike.items():
            stack = torch.stack([matrices[number] for number in numbers]).flatten(2)
            stack = orthogonalise(stack, dtype=dtype).to(stack.dtype) * (0.2 * max(stack.shape[1:]) ** 0.5)
            for number, result in zip(numbers, stack.unflatten(2, shape[1:]).unbind(), strict=True):
                results[number] = result
        return results

    def step_adamw(self, parameters: list[Tensor], group: dict) -> None:
        """Update the parameters of a group that is not orthogonalised (Loshchilov and Hutter, arXiv 1711.05101)."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter].update(
                    step=torch.zeros((), device=parameter.device),
                    exp_avg=torch.zeros_like(parameter),
                    exp_avg_sq=torch.zeros_like(parameter),
                )
        states = [self.state[parameter] for parameter in parameters]
        averages, squares, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        adamw(
            parameters, [grad(parameter) for parameter in parameters], averages, squares, [], steps, fused=True,
            amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
            weight_decay=group["weight_decay"], eps=EPSILON, maximize=False,
        )  # fmt: skip


def grad(parameter: Tensor) -> Tensor:
    """The gradient of a parameter that has one."""
    assert parameter.grad is not None
    return parameter.grad
