"""The whole story in a few minutes on two CPU cores: pretrain, probe and fine-tune on handwritten digits.

    make demo

The data are scikit-learn's 1,797 handwritten digits (8x8, grey), which need no network. Every number in the table is
the accuracy on the same 360 test images, scored once.
"""

import argparse
import time
from pathlib import Path

import finetune
import linear_probe
import pretrain
import torch

from tinymae import MaskedAutoencoder, figures
from tinymae.commands.cli import run_script
from tinymae.data.images import read_image
from tinymae.files import write_json

DATA = ["--data", "digits", "--overwrite"]
MODEL = "--patch-size 2 --embed-dim 96 --depth 4 --decoder-dim 64 --decoder-depth 1 --no-norm-pix-loss".split()
PRETRAIN = "--batch-size 128 --base-lr 6e-3 --epochs 400 --warmup-epochs 20 --no-flip --crop none".split()
FINETUNE = (
    "--no-flip --no-trivial-augment --random-erasing 0 --mixup 0 --cutmix 0 --label-smoothing 0.1 --drop-path 0.1"
).split()
LABELS = {"all labels": 1.0, "10 % of the labels": 0.1}
LENGTH = {
    1.0: "--batch-size 128 --epochs 150 --warmup-epochs 10 --eval-every 50 --base-lr 4e-3 --ema-decay 0.99".split(),
    0.1: "--batch-size 64 --epochs 200 --warmup-epochs 20 --eval-every 50 --base-lr 8e-3 --ema-decay 0.98".split(),
}
# The better of 0 and 1 on validation, for each: few labels from scratch want the crops, a pretrained encoder does not.
CROPS = {("finetune", 1.0): 1, ("scratch", 1.0): 1, ("finetune", 0.1): 0, ("scratch", 0.1): 1}


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", default="runs/demo", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    return parser


def main(args: argparse.Namespace) -> dict:
    started = time.monotonic()

    def run(script, name: str, *arguments: str) -> dict:
        print(f"\n=== {name}")
        common = [*DATA, "--seed", str(args.seed), "--output-dir", f"{args.output_dir}/{name.replace(' ', '_')}"]
        return script.main(script.parse().parse_args([*common, *arguments]))

    run(pretrain, "pretrain", *MODEL, *PRETRAIN)
    weights = ["--weights", f"{args.output_dir}/pretrain"]
    table: dict[str, dict[str, float]] = {}
    for column, fraction in LABELS.items():
        share, suffix = ["--label-fraction", str(fraction)], f"{fraction:.0%}".rstrip("%")
        probe = run(linear_probe, f"probe {suffix}", *weights, *share, "--controls")
        classifiers = {}
        for start, flags in {"finetune": [], "scratch": ["--from-scratch"]}.items():
            crop = ["--crop-padding", str(CROPS[start, fraction])]
            arguments = [*weights, *flags, *share, *FINETUNE, *LENGTH[fraction], *crop]
            classifiers[start] = run(finetune, f"{start} {suffix}", *arguments)["accuracy_test"]
        table[column] = {
            "raw pixels, linear probe": probe["raw_pixels"]["probe_test"],
            "untrained encoder, linear probe": probe["untrained"]["probe_test"],
            "pretrained, k-NN": probe["knn_test"],
            "pretrained, linear probe": probe["probe_test"],
            "pretrained, fine-tuned": classifiers["finetune"],
            "from scratch": classifiers["scratch"],
        }

    print("\nAccuracy on the 360 test digits, %\n")
    print(f"{'':34}" + "".join(f"{column:>20}" for column in table))
    for row in table["all labels"]:
        print(f"{row:34}" + "".join(f"{values[row]:>20.1f}" for values in table.values()))
    folder = args.output_dir
    title = "handwritten digits, 360 test images"
    shown = [
        figures.bars(table, f"{folder}/accuracy.png", xlabel="test accuracy, %", title=title),
        paint_cifar10(f"{folder}/cifar10_reconstructions.png"),
        f"{folder}/pretrain/reconstructions.png",
        f"{folder}/pretrain/curves.png",
        f"{folder}/finetune_100/confusion_matrix.png",
        f"{folder}/finetune_10/curves.png",
    ]
    minutes = (time.monotonic() - started) / 60
    write_json(f"{folder}/results.json", {"accuracy_test": table, "minutes": minutes})
    print(f"\n{minutes:.1f} minutes. Pictures to look at:\n  " + "\n  ".join(map(str, shown)))
    return table


def paint_cifar10(path: str) -> Path:
    """The released weights at work on a few test pictures of CIFAR-10 that the repository holds."""
    root = Path(__file__).parent.parent
    model = MaskedAutoencoder.from_pretrained(root / "weights" / "vit-t-mae")
    pictures = sorted((root / "assets" / "cifar10").glob("*.png"))
    images = torch.stack([read_image(picture, (3, 32, 32)) for picture in pictures])
    seen = model.reconstruct(images, generator=torch.Generator().manual_seed(0))
    title = "CIFAR-10 test pictures, 75 % hidden (brightness and contrast of hidden patches guessed from visible ones)"
    return figures.reconstruction_sheet(seen.columns, path, title, groups=4)


if __name__ == "__main__":
    run_script(main, parse())
