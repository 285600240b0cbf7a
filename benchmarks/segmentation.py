"""How well frozen features tell what a pixel belongs to: MNIST digits pasted on CIFAR-10 photographs.

    python benchmarks/segmentation.py --weights weights/vit-t-mae --output-dir runs/segmentation

Each photograph has a digit of a random colour, size and place; the mask holds the digit's number + 1 where its ink is,
and 0 elsewhere. Training and validation images come from the training images of both sets, test images from both test
sets. What is compared: `tinymae linear-probe --masks` on the encoder, on one that was not trained, and on
raw pixels. Writes the images, their masks, and the command's results. One slow CPU core takes about 10 minutes.
"""

import argparse
from pathlib import Path

import torch
from digits import create_parser, load_digits, write_image
from torch import Tensor, nn

from tinymae import linear_probe, load_dataset
from tinymae.data.batches import pick
from tinymae.data.splits import SPLITS

SIZES = (22, 30)  # pixels of a digit, smallest and largest
INK = 0.5  # least ink, of 1, of a pixel that belongs to the digit


def paste(photo: Tensor, digit: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A photograph uint8 (3, 32, 32) with a bold digit on it, and where its ink is, bool (32, 32).

    The digit is uint8 (1, 28, 28). Its strokes get two pixels wider: an encoder's patches have four.
    """
    side = int(torch.randint(SIZES[0], SIZES[1] + 1, (), generator=generator))
    top, left = torch.randint(0, 32 - side + 1, (2,), generator=generator).tolist()
    resized = nn.functional.interpolate(digit[None].float() / 255, (side, side), mode="bilinear", antialias=True)[0]
    bold = nn.functional.max_pool2d(resized, 3, stride=1, padding=1)
    ink = nn.functional.pad(bold, (left, 32 - side - left, top, 32 - side - top))  # (1, 32, 32)
    colour = 255 * torch.rand(3, 1, 1, generator=generator)
    pasted = (1 - ink) * photo + ink * colour
    return pasted.round().to(torch.uint8), ink[0] >= INK


def write_split(folder: Path, split: str, count: int, *, data_dir: str, seed: int) -> None:
    """Write the images and masks of a split, as `images/SPLIT/NUMBER.png` and `masks/SPLIT/NUMBER.png`."""
    generator = torch.Generator().manual_seed(seed)
    photos = pick(load_dataset("cifar10", split, data_dir=data_dir), count, seed=seed).images
    digits = load_digits(split, count, data_dir=data_dir, seed=seed)
    for number in range(count):
        image, ink = paste(photos[number], digits.images[number], generator)
        mask = ink.to(torch.uint8) * (digits.labels[number] + 1).to(torch.uint8)
        for kind, pixels in {"images": image, "masks": mask}.items():
            write_image(pixels, folder / kind / split / f"{number:05}.png")


def main(args: argparse.Namespace) -> dict:
    folder = Path(args.output_dir)
    for place, split in enumerate(SPLITS):
        write_split(folder, split, vars(args)[split], data_dir=args.data_dir, seed=args.seed + place)
    return linear_probe(
        folder / "images", masks=folder / "masks", weights=args.weights, controls="all", seed=args.seed,
        output_dir=folder / "probe",
    ).results  # fmt: skip


if __name__ == "__main__":
    main(create_parser(__doc__, "runs/segmentation").parse_args())
