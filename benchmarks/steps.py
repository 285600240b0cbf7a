"""Steps of the pretraining command without its folder, its figures and its judging."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from accelerate import Accelerator

from tinymae.commands import phases
from tinymae.commands.pretrain import PretrainSettings
from tinymae.data.datasets import Dataset
from tinymae.models.base import Autoencoder
from tinymae.randomness import Draws
from tinymae.training.loop import create_optimizer, parameter_groups, train_steps
from tinymae.training.schedule import Schedule


def pretraining_steps(
    settings: PretrainSettings, accelerator: Accelerator, model: Autoencoder, train_set: Dataset, *, last_step: int
) -> Iterator:
    """What `train_steps` yields in the last phase of resolved settings, with a schedule that ends at `last_step`."""
    part = phases.plan_parts(settings, accelerator, model, train_set)[-1]
    groups = parameter_groups(part.learner, weight_decay=settings.weight_decay)
    optimizer = create_optimizer(settings.optimizer, groups, betas=(0.9, 0.95), ends=model.end_weights)
    learner, optimizer = accelerator.prepare(part.learner, optimizer)
    return train_steps(
        learner, optimizer, partial(phases.draw_inputs, settings, part.phase, model), learner,
        part.batches(start_step=0), accelerator=accelerator,
        schedule=Schedule(peak=part.phase.peak, last_step=last_step, warmup=0.05), batch_size=part.phase.batch_size,
        seed=settings.seed, cuda_graph=bool(settings.cuda_graph),
    )  # fmt: skip


def step_alone(model: Autoencoder, device: torch.device, batch_size: int, precision: torch.dtype) -> Callable:
    """Forward, backward and fused AdamW on images and masks that stay the same."""
    images = torch.randint(0, 256, (batch_size, 3, 32, 32), dtype=torch.uint8, device=device)
    drawn = model.draw(Draws(0, 0, batch_size, torch.arange(batch_size), device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            loss = model.training_losses(images, **drawn)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
