"""How well frozen features tell which classes an image has, where it has several: two MNIST digits on one canvas.

    python benchmarks/several_labels.py --weights weights/vit-t-mae --output-dir runs/several_labels

The digits stand beside each other, each at a random place in its half. A table names both, as `3;7`; two equal digits
are one label. What is compared: `tinymae linear-probe --controls` on the encoder, on one that was not trained, and on
raw pixels. Writes the images, the table, and the command's results.
"""

import argparse
from pathlib import Path

import torch
from digits import create_parser, load_digits, write_image
from torch import Tensor, nn

from tinymae import linear_probe
from tinymae.data.splits import SPLITS
from tinymae.files import write_csv

SIDE = 16  # pixels of a digit on a canvas of 32


def place(digits: Tensor, generator: torch.Generator) -> Tensor:
    """Two digits uint8 (2, 1, 28, 28) on a canvas uint8 (1, 32, 32), one in each half."""
    small = nn.functional.interpolate(digits.float(), (SIDE, SIDE), mode="bilinear", antialias=True).round()
    canvas = torch.zeros(1, 32, 32)
    tops = torch.randint(0, 32 - SIDE + 1, (2,), generator=generator).tolist()
    for digit, top, left in zip(small, tops, (0, 16), strict=True):
        canvas[:, top : top + SIDE, left : left + SIDE] = digit
    return canvas.to(torch.uint8)


def write_split(folder: Path, split: str, count: int, *, data_dir: str, seed: int) -> list[tuple[str, str, str]]:
    """Write the images of a split as `SPLIT/NUMBER.png`; their rows of the table: path, split, labels."""
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits(split, 2 * count, data_dir=data_dir, seed=seed)
    order = torch.randperm(len(digits), generator=generator).view(-1, 2)
    rows = []
    for number, two in enumerate(order):
        name = f"{split}/{number:05}.png"
        write_image(place(digits.images[two], generator), folder / name)
        rows.append((name, split, ";".join(str(label) for label in sorted({*digits.labels[two].tolist()}))))
    return rows


def main(args: argparse.Namespace) -> dict:
    folder = Path(args.output_dir)
    rows = []
    for place_of, split in enumerate(SPLITS):
        rows += write_split(folder, split, vars(args)[split], data_dir=args.data_dir, seed=args.seed + place_of)
    table = write_csv(folder / "labels.csv", ["path", "split", "label"], rows)
    return linear_probe(
        table, weights=args.weights, controls="all", seed=args.seed, output_dir=folder / "probe"
    ).results


if __name__ == "__main__":
    main(create_parser(__doc__, "runs/several_labels").parse_args())
