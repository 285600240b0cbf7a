"""Training: parameter groups, optimisers, and one visible loop."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..data.batches import Batch
from ..models.drops import draw_drops, find_drops, set_drops
from ..randomness import Draws
from .clock import Stopwatch
from .cuda_graph import GraphedStep
from .muon import Muon
from .schedule import Schedule


def parameter_groups(model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """Groups for an optimiser: no weight decay on norms, biases, learned tokens and position embeddings.

    What decays are matrices and kernels that are called `weight`, as in all layers of torch: a parameter of more than
    one dimension that a model adds by itself is a token or a position.

    `decays` of a group is whether it is of the others, whatever `weight_decay` is.

    With `layer_decay` below 1, a stock timm model's groups carry an `lr_scale` that shrinks by this factor from each
    layer to the one below it (Clark et al., arXiv 2003.10555; BEiT).
    """
    undecayed = [name for name, _ in model.named_parameters() if "weight" not in name]
    if layer_decay < 1:
        groups = param_groups_layer_decay(model, 1.0, no_weight_decay_list=undecayed, layer_decay=layer_decay)
    else:
        groups = param_groups_weight_decay(model, 1.0, no_weight_decay_list=undecayed)
    return [
        group | {"decays": bool(group["weight_decay"]), "weight_decay": group["weight_decay"] * weight_decay}
        for group in groups
    ]


def create_optimizer(
    name: str, groups: list[dict], *, betas: tuple[float, float], ends: Sequence[Tensor] = ()
) -> torch.optim.Optimizer:
    """`adamw`, or `muon` for the matrices and AdamW for the rest: the groups that do not decay, and the `ends`, which
    are weights of the first and the last layer.

    `train_steps` sets the learning rate at every step.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=betas, fused=True)
    apart = {id(weight) for weight in ends}
    parts = []
    for group in groups:
        for orthogonal in (True, False):
            members = [p for p in group["params"] if (group["decays"] and id(p) not in apart) == orthogonal]
            if members:
                parts.append(group | {"params": members, "orthogonal": orthogonal})
    return Muon(parts, betas=betas)


@dataclass
class TrainStep:
    """What the loop knows after a step. Tensors are left on the device: reading one waits until it has caught up."""

    step: int  # optimiser updates done so far
    progress: float  # 0 to 1, before this step
    learning_rate: float
    losses: dict[str, Tensor]  # scalars over this process's part of the batch: "loss", and others worth logging
    grad_norm: Tensor  # scalar, before clipping; where it overflowed in fp16, nothing was updated

    @property
    def loss(self) -> Tensor:
        """What was minimised: a scalar."""
        return self.losses["loss"]


def train_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    draw_inputs: Callable[[Batch, Draws, float], dict[str, Any]],
    compute_losses: Callable[..., dict[str, Tensor]],
    batches: Iterator[list[Batch]],
    *,
    accelerator: Accelerator,
    schedule: Schedule,
    batch_size: int,
    seed: int,
    clock: Stopwatch | None = None,
    start_step: int = 0,
    until: float = 1.0,
    clip_grad: float | None = None,
    ema: ModelEmaV3 | None = None,
    cuda_graph: bool = False,
) -> Iterator[TrainStep]:
    """Train until the schedule's progress is `until`: by default to its end. Yields after each optimiser update.

    `model` and `optimizer` come from `accelerator.prepare`; `batches` gives this process's micro-batches of each step;
    `draw_inputs` makes of one, and the progress, what `compute_losses` takes as keywords, which gives at least "loss".
    Everything random in step s is drawn from (seed, s), so starting at `start_step` with that step's state goes on
    exactly as if nothing had stopped. The `clock` is for a schedule with minutes. With `cuda_graph`, all after the
    draws is launched at once: one micro-batch a step, on one GPU.
    """
    bare_model = accelerator.unwrap_model(model)
    modules, parameters, drops = list(bare_model.modules()), list(model.parameters()), find_drops(bare_model)

    def update(inputs: dict[str, Any], drawn: list[Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Losses of a micro-batch; at the step's last one the optimiser's update and the gradient's norm."""
        grad_norm = None
        set_drops(drops, drawn)
        with accelerator.accumulate(model):  # gradients are summed until the step's last micro-batch
            found = compute_losses(**inputs)
            accelerator.backward(found["loss"])
            if accelerator.sync_gradients:
                grad_norm = clip_gradients(accelerator, parameters, clip_grad)
            optimizer.step()
            optimizer.zero_grad()
        return {name: value.detach() for name, value in found.items()}, grad_norm

    for group in optimizer.param_groups:  # a CUDA graph reads the learning rate from the device's memory
        group["lr"] = torch.zeros((), device=accelerator.device) if cuda_graph else 0.0
        group["capturable"] = cuda_graph
    run_update = GraphedStep(update, accelerator.device) if cuda_graph else update
    try:
        for step, micro_batches in enumerate(batches, start_step):
            minutes = 0.0
            if schedule.minutes is not None:
                assert clock is not None
                minutes = clock.agreed_minutes(accelerator)
            progress = schedule.progress(step, minutes)
            if progress >= until:
                return
            learning_rate = schedule.learning_rate(progress)
            set_learning_rate(optimizer, learning_rate)

            if not all(module.training for module in modules):  # after an evaluation
                model.train()
            losses = []
            for batch in micro_batches:
                draws = Draws(seed, step, batch_size, batch.positions, accelerator.device)
                draws.seed_global_state()
                drawn = draw_drops(drops, draws)
                found, grad_norm = run_update(draw_inputs(batch, draws, progress), drawn)
                losses.append(found)
            assert grad_norm is not None  # of the last micro-batch
            # Not accelerator.optimizer_step_was_skipped: a fused optimiser is always called, and skips inside.
            if ema is not None and (accelerator.scaler is None or math.isfinite(grad_norm)):
                ema.update(bare_model, step + 1)
            means = losses[0]
            if len(losses) > 1:
                means = {name: torch.stack([part[name] for part in losses]).mean() for name in means}
            yield TrainStep(step + 1, progress, learning_rate, means, grad_norm)
    finally:
        set_drops(drops, [None] * len(drops))  # whoever trains on draws anew


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give it to all groups, each by its scale."""
    for group in optimizer.param_groups:
        scaled = learning_rate * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(scaled)
        else:
            group["lr"] = scaled


def clip_gradients(accelerator: Accelerator, parameters: Sequence[Tensor], largest: float | None) -> Tensor:
    """The norm of all gradients together, which are shortened to `largest` where it is longer."""
    if largest is not None:
        return accelerator.clip_grad_norm_(parameters, largest)
    accelerator.unscale_gradients()
    return get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
