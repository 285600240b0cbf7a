"""Steps of the pretraining command without its folder, its figures and its judging."""

from collections.abc import Iterator
from functools import partial

from accelerate import Accelerator

from tinymae.commands import phases
from tinymae.commands.pretrain import PretrainSettings
from tinymae.data.datasets import Dataset
from tinymae.models.base import Autoencoder
from tinymae.training.loop import Schedule, create_optimizer, parameter_groups, train_steps


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
        part.batches(start_step=0), accelerator=accelerator, clock=None,
        schedule=Schedule(peak=part.phase.peak, last_step=last_step, warmup=0.05), batch_size=part.phase.batch_size,
        seed=settings.seed, cuda_graph=bool(settings.cuda_graph),
    )  # fmt: skip
