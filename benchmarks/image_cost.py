"""What an image costs in pretraining, by the images in memory, the batch and the tokens. Prints a table, saves JSON.

    python benchmarks/image_cost.py                               # some minutes on 2 CPU cores
    python benchmarks/image_cost.py --stream-images 200000        # writes that many PNG files to a temporary folder

Each line is pretraining end to end (batches, augmentation, masks, forward, backward, AdamW) with the recipe's settings,
on random images; "step alone" repeats the step on one batch that is already there. All figures are images/s, medians
over `--rounds`; on a GPU each line also says its peak memory.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from tinymae import MaskedAutoencoder, load_dataset, random_mask
from tinymae.data.augment import padded_crop, random_flip
from tinymae.data.batches import Batch, split_batch, step_batches
from tinymae.data.datasets import Dataset, ImageDataset
from tinymae.files import write_json
from tinymae.models.contrast import ReconstructionLearner
from tinymae.randomness import Draws
from tinymae.training.clock import Stopwatch
from tinymae.training.device import choose_attention, create_accelerator, settle_precision
from tinymae.training.loop import Schedule, parameter_groups, train_steps


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 50_000, 200_000], help="images in memory")
    parser.add_argument(
        "--stream-images", type=int, default=20_000, help="images in a streamed folder; 0 leaves it out"
    )
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--patch-sizes", type=int, nargs="+", default=[8, 4, 2])
    parser.add_argument("--steps", type=int, default=4, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default="runs/image_cost.json")
    return parser


def random_images(count: int) -> ImageDataset:
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    return ImageDataset("random", images, torch.zeros(count, dtype=torch.long), ["one"])


def write_pictures(folder: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    for number in tqdm(range(count), desc="writing PNG files", leave=False):
        place = folder / "one" / f"{number // 1000:03}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{number:06}.png")


def measure(
    args: argparse.Namespace, dataset: Dataset, *, batch_size: int = 256, patch_size: int = 4, alone: bool = False
) -> float:
    """Images per second of pretraining on `dataset`."""
    accelerator = create_accelerator(settle_precision("auto"))
    torch.manual_seed(0)
    model = MaskedAutoencoder(patch_size=patch_size)
    choose_attention(model, accelerator)
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.05), lr=1e-4, fused=True)
    learner, optimizer = accelerator.prepare(ReconstructionLearner(model), optimizer)
    batches: Iterator[list[Batch]] = step_batches(
        dataset.to(accelerator.device), batch_size=batch_size, parts=split_batch(batch_size, 1), seed=0,
        device=accelerator.device, num_workers=args.num_workers,
    )  # fmt: skip
    if alone:
        batches = itertools.repeat(next(batches))

    def end_to_end(batch: Batch, draws: Draws, _progress: float) -> dict[str, torch.Tensor]:
        images = random_flip(padded_crop(batch.images, draws, 4), draws)
        mask = random_mask(batch_size, model.num_patches, 0.75, draws.generator)
        return {"images": images, "mask": mask[draws.cpu_positions]}

    fixed_mask = random_mask(batch_size, model.num_patches, 0.75)

    def step_alone(batch: Batch, draws: Draws, _progress: float) -> dict[str, torch.Tensor]:
        return {"images": batch.images, "mask": fixed_mask}

    schedule = Schedule(peak=1e-4, last_step=10**9, warmup=0.0)
    loop = train_steps(
        learner,
        optimizer,
        step_alone if alone else end_to_end,
        learner,
        batches,
        accelerator=accelerator,
        schedule=schedule,
        clock=Stopwatch(),
        batch_size=batch_size,
        seed=0,
    )
    rates = []
    for round_ in range(args.rounds + 1):
        began = time.perf_counter()
        for _ in range(args.steps):
            loss = next(loop).loss
        float(loss)  # waits for a GPU
        if round_:  # the first one warms up
            rates.append(args.steps * batch_size / (time.perf_counter() - began))
    return statistics.median(rates)


def main(args: argparse.Namespace) -> dict[str, float]:
    rates: dict[str, float] = {}

    def note(name: str, rate: float) -> None:
        rates[name] = rate
        memory = ""
        if torch.cuda.is_available():
            memory = f"{torch.cuda.max_memory_allocated() / 1e9:>10.2f} GB at the peak"
            torch.cuda.reset_peak_memory_stats()
        print(f"{name:44}{rate:>10.0f} images/s{memory}", flush=True)

    note("step alone, batch 256, patch 4", measure(args, random_images(1000), alone=True))
    for size in args.sizes:
        note(f"{size:,} images in memory", measure(args, random_images(size)))
    if args.stream_images:
        with tempfile.TemporaryDirectory() as folder:
            write_pictures(Path(folder), args.stream_images)
            dataset = load_dataset(folder, "train", image_size=32, memory_limit_gb=0)
            note(f"{args.stream_images:,} images streamed, {args.num_workers} workers", measure(args, dataset))
    images = random_images(10_000)
    for batch_size in args.batch_sizes:
        note(f"batch {batch_size}", measure(args, images, batch_size=batch_size))
    for patch_size in args.patch_sizes:
        tokens = (32 // patch_size) ** 2
        note(
            f"patch {patch_size}: {tokens} tokens, {tokens // 4} visible",
            measure(args, images, patch_size=patch_size),
        )
    write_json(
        args.output, {"images_per_second": rates, "threads": torch.get_num_threads(), "torch": torch.__version__}
    )
    print(f"wrote {args.output}")
    return rates


if __name__ == "__main__":
    main(parse().parse_args())
