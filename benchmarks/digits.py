"""MNIST digits on images of 32 pixels, learned from by a linear probe: what two benchmarks share."""

import argparse
from functools import partial
from pathlib import Path

from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from tinymae import load_dataset
from tinymae.data.batches import pick
from tinymae.data.datasets import Dataset
from tinymae.files import write_atomically


def create_parser(description: str | None, output_dir: str) -> argparse.ArgumentParser:
    """Arguments: the weights, and how many images of each split are made."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="weights/vit-t-mae", help="what pretraining gave")
    parser.add_argument("--data-dir", default="data", help="where named data sets are, or go")
    parser.add_argument("--output-dir", default=output_dir)
    parser.add_argument("--train", type=int, default=3000, help="training images")
    parser.add_argument("--val", type=int, default=300, help="validation images")
    parser.add_argument("--test", type=int, default=1000, help="test images")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def load_digits(split: str, count: int, *, data_dir: str, seed: int) -> Dataset:
    """So many digits, uint8 (N, 1, 28, 28)."""
    return pick(load_dataset("mnist", split, data_dir=data_dir, image_size=28), count, seed=seed)


def write_image(image: Tensor, path: Path) -> None:
    """An image uint8 (C, H, W) or (H, W) as PNG."""
    write_atomically(path, partial(to_pil_image(image).save, format="png"))
