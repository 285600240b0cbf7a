"""What an image costs in pretraining, by the images in memory, the batch and the tokens. Prints a table, saves JSON.

    python benchmarks/image_cost.py                               # some minutes on 2 CPU cores
    python benchmarks/image_cost.py --stream-images 200000        # writes that many PNG files to a temporary folder

Each line is pretraining end to end (batches, augmentation, masks, forward, backward, AdamW) with the recipe's settings,
on random images; "step alone" repeats the step on one batch that is already there. All figures are images/s, medians
over `--rounds`; on a GPU each line also says its peak memory.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from growth import write_files
from steps import pretraining_steps, step_alone
from timing import rates_in_turns, write_result

from tinymae import MaskedAutoencoder, load_dataset
from tinymae.commands.pretrain import PretrainSettings
from tinymae.data.datasets import Dataset, ImageDataset
from tinymae.training.device import choose_attention, create_accelerator, settle_precision

BATCH_SIZE = 256


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


def end_to_end(
    args: argparse.Namespace, dataset: Dataset, *, batch_size: int = BATCH_SIZE, patch_size: int = 4
) -> Callable:
    """A step of pretraining on `dataset`."""
    asked = PretrainSettings(
        data=dataset.name, patch_size=patch_size, batch_size=batch_size, epochs=1, contrast_epochs=0,
        optimizer="adamw", compile=False, num_workers=args.num_workers,
    ).resolve()  # fmt: skip
    accelerator = asked.create_accelerator()
    torch.manual_seed(0)
    model = MaskedAutoencoder(patch_size=patch_size)
    train_set = dataset.to(accelerator.device)
    return partial(next, pretraining_steps(asked, accelerator, model, train_set, last_step=10**9))


def alone() -> Callable:
    """The step on one batch."""
    accelerator = create_accelerator(settle_precision("auto"))
    model = MaskedAutoencoder().to(accelerator.device)
    choose_attention(model, accelerator)
    precision = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    return step_alone(model, accelerator.device, BATCH_SIZE, precision)


def main(args: argparse.Namespace) -> dict[str, float]:
    rates: dict[str, float] = {}
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def note(name: str, step: Callable, batch_size: int = BATCH_SIZE) -> None:
        found = rates_in_turns({name: step}, device, rounds=args.rounds, repeats=args.steps, images=batch_size)
        rates[name] = found[name]["images_per_second"]
        memory = ""
        if torch.cuda.is_available():
            memory = f"{torch.cuda.max_memory_allocated() / 1e9:>10.2f} GB at the peak"
            torch.cuda.reset_peak_memory_stats()
        print(f"{name:44}{rates[name]:>10.0f} images/s{memory}", flush=True)

    note(f"step alone, batch {BATCH_SIZE}, patch 4", alone())
    for size in args.sizes:
        note(f"{size:,} images in memory", end_to_end(args, random_images(size)))
    if args.stream_images:
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), args.stream_images, side=32)
            dataset = load_dataset(folder, "train", image_size=32, memory_limit_gb=0)
            note(f"{args.stream_images:,} images streamed, {args.num_workers} workers", end_to_end(args, dataset))
    images = random_images(10_000)
    for batch_size in args.batch_sizes:
        note(f"batch {batch_size}", end_to_end(args, images, batch_size=batch_size), batch_size)
    for patch_size in args.patch_sizes:
        tokens = (32 // patch_size) ** 2
        note(
            f"patch {patch_size}: {tokens} tokens, {tokens // 4} visible",
            end_to_end(args, images, patch_size=patch_size),
        )
    write_result(args.output, args, device, images_per_second=rates)
    return rates


if __name__ == "__main__":
    main(parse().parse_args())
