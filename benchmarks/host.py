"""How much time does the host need for a step of pretraining? Prints each part's milliseconds and saves them as JSON.

    python benchmarks/host.py                             # the source that is installed
    python benchmarks/host.py --replayed                  # what is left of it where the step is a CUDA graph

A GPU computes while the host prepares what comes next, so a small model runs as fast as its host. Here the arithmetic
is as good as none: a ViT of 12 blocks and 12 channels sees 2 images. All else is as with a batch of --batch-size images
of 64 patches: its order, its draws, its masks, the model's operations, the gradient's norm, Muon. The times are of the
processor, so other programs beside this one do not count. On a CPU Muon's and AdamW's operations on lists of tensors go
tensor by tensor; a GPU gets them in a few launches.

With --replayed the model's operations, the norm and the optimiser are left out, as a GPU repeats them by itself: the
host copies a step's inputs to where they are read, and the losses from where they are written.
"""

import argparse
import collections
import statistics
import time

import torch
from accelerate import Accelerator
from timing import in_new_processes, write_result
from torch.utils._pytree import tree_leaves

from tinymae import MaskedAutoencoder, load_dataset
from tinymae.commands import phases, pretrain
from tinymae.data.batches import split_batch, step_batches
from tinymae.models.contrast import ReconstructionLearner
from tinymae.training import loop
from tinymae.training.cuda_graph import copies

SIZES = {"image_size": 16, "patch_size": 2, "in_channels": 1, "embed_dim": 12, "decoder_dim": 8, "decoder_heads": 4}
FEW = torch.arange(2)


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--optimizer", default="muon", choices=["muon", "adamw"])
    parser.add_argument("--steps", type=int, default=60, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--replayed", action="store_true", help="only the host's part of a CUDA graph's step")
    parser.add_argument("--output", default="runs/host.json")
    return parser


class Replayed:
    """What `GraphedStep` does at each of its later calls, but for the launch."""

    def __init__(self, _function, _device):
        self.held: list[torch.Tensor] = []
        self.results = {"loss": torch.zeros(())}, torch.zeros(())

    def __call__(self, *arguments):
        leaves = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
        self.held = self.held or [torch.empty_like(leaf) for leaf in leaves]
        torch._foreach_copy_(self.held, leaves)
        return copies(self.results)


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of each part, the mean over the steps of a round. It patches the loop: in a process of its own."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    spent: dict[str, float] = collections.defaultdict(float)

    def timed(part: str, function):
        def call(*arguments, **keywords):
            began = time.process_time()
            result = function(*arguments, **keywords)
            spent[part] += time.process_time() - began
            return result

        return call

    accelerator = Accelerator(cpu=True)
    model = MaskedAutoencoder(**SIZES)
    settings, digits = pretrain.PretrainSettings(contrast_epochs=0, epochs=1), load_dataset("digits", image_size=16)
    (phase,) = settings.plan_phases(digits)
    groups = loop.parameter_groups(model, weight_decay=0.05)
    optimizer = loop.create_optimizer(args.optimizer, groups, betas=(0.9, 0.95), ends=model.end_weights)
    learner, optimizer = accelerator.prepare(ReconstructionLearner(model), optimizer)
    forward, draw, augment = timed("forward", learner), timed("masks", model.draw), timed("augment", phases.augment)

    def draw_inputs(batch, draws, _progress):
        drawn = draw(draws)
        drawn["mask"] = drawn["mask"][:2]
        draws.positions, draws.whole = FEW, False
        return {"images": augment(settings, phase, batch.images[:2], draws)} | drawn

    vars(loop)["Draws"] = timed("draws", loop.Draws)
    if args.replayed:
        vars(loop)["GraphedStep"] = Replayed
    optimizer.step = timed("optimizer", optimizer.step)
    accelerator.backward = timed("backward", accelerator.backward)
    loop.clip_gradients = timed("gradient's norm", loop.clip_gradients)
    batches = step_batches(
        digits, batch_size=args.batch_size, parts=split_batch(args.batch_size, 1),
        seed=0, device="cpu",
    )  # fmt: skip
    next_batch, warm = timed("batches", lambda: next(batches)), 10
    states = loop.train_steps(
        learner, optimizer, draw_inputs, forward, iter(next_batch, None), accelerator=accelerator,
        schedule=loop.Schedule(peak=1e-3, last_step=10**6, warmup=0.05), batch_size=args.batch_size, seed=0,
        **{"cuda_graph": True} if args.replayed else {},
    )  # fmt: skip
    for _ in range(warm):
        next(states)
    spent.clear()
    began = time.process_time()
    for _ in range(args.steps):
        next(states)
    total = time.process_time() - began
    spent["all else"] = total - sum(spent.values())
    return {part: 1000 * seconds / args.steps for part, seconds in spent.items()} | {"step": 1000 * total / args.steps}


def main(args: argparse.Namespace) -> None:
    rounds = [in_new_processes(measure, args)[0] for _ in range(args.rounds)]
    result = {part: statistics.median(one[part] for one in rounds) for part in rounds[0]}
    for part, milliseconds in result.items():
        print(f"{part:18}{milliseconds:>10.2f} ms of a step")
    write_result(args.output, args, "cpu", milliseconds=result, rounds=rounds)


if __name__ == "__main__":
    main(parse().parse_args())
