"""The masked autoencoder whose steps are timed, as the arguments of a benchmark."""

import argparse
from typing import Any

import torch

from tinymae import MaskedAutoencoder


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Arguments of the model, of its batches, and of how long they are timed."""
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--patch-size", type=int, default=4)
    parser.add_argument("--decoder-dim", type=int, default=192)
    parser.add_argument("--decoder-depth", type=int, default=4)
    parser.add_argument("--decoder-heads", type=int, default=3)
    parser.add_argument("--mask-ratio", type=float, default=0.75)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps of each line in a round")


def build_mae(args: argparse.Namespace, **own: Any) -> MaskedAutoencoder:
    """The model of these arguments, and of others by name."""
    return MaskedAutoencoder(
        image_size=args.image_size, patch_size=args.patch_size, mask_ratio=args.mask_ratio,
        decoder_dim=args.decoder_dim, decoder_depth=args.decoder_depth, decoder_heads=args.decoder_heads, **own,
    )  # fmt: skip
