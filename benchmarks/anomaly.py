"""What a masked autoencoder of MNIST digits finds odd: ROC-AUC against other images, and where in them.

    python benchmarks/anomaly.py --data-dir data      # pretrains first: 8 minutes on one CPU core

Pretrains a tiny MAE on MNIST's training digits (a second call finds it finished), then scores test digits it never saw
and images that are no such digits by `tinymae.anomaly_map`. Nothing learns from an odd image. A score is the mean of
the map, or its worst patch; both are given, and beside them the distance to the nearest of 10,000 training digits in
pixels, which needs no model. Each line is scikit-learn's ROC-AUC in percent (50 is random) of the odd images against
intact ones. Writes a JSON and a figure.

The settings were fixed on `--split val`, at mask ratios 0.25, 0.5, 0.75 and 8 or 16 passes; test was scored once.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from matplotlib import colormaps
from sklearn.metrics import roc_auc_score
from timing import write_result
from torch import Tensor
from torch.nn.functional import avg_pool2d

from tinymae import MaskedAutoencoder, anomaly_map, load_dataset, pretrain
from tinymae.data.batches import pick
from tinymae.evaluation import figures

PRETRAIN: dict = {
    "patch_size": 4, "embed_dim": 96, "depth": 4, "decoder_dim": 64, "decoder_depth": 1, "norm_pix_loss": False,
    "flip": False, "crop": "none", "batch_size": 128, "base_lr": 6e-3, "optimizer": "adamw", "contrast_epochs": 0,
    "mask_ratio": 0.5, "epochs": 12, "warmup_epochs": 1, "probe_every": 1000, "probe_images": 2000,
}  # fmt: skip
BLOCK = 4  # pixels, the side of the inked square


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="data", help="where MNIST and CIFAR-10 are, or go (default: %(default)s)")
    parser.add_argument("--split", choices=["val", "test"], default="test", help="whose digits (default: %(default)s)")
    parser.add_argument("--images", type=int, default=2000, help="images of each kind at most (default: %(default)s)")
    parser.add_argument("--passes", type=int, default=8, help="masks that together hide all (default: %(default)s)")
    parser.add_argument("--mask-ratio", type=float, help="ratio hidden in each (default: as in pretraining)")
    parser.add_argument("--seed", type=int, default=0, help="of the odd images and the masks (default: %(default)s)")
    parser.add_argument("--output-dir", default="runs/anomaly", help="(default: %(default)s)")
    return parser


# ---- odd images, uint8 (B, 1, 28, 28)


def grey_photographs(data_dir: str, split: str, count: int) -> Tensor:
    """CIFAR-10 in grey, resized."""
    images = pick(load_dataset("cifar10", split, data_dir=data_dir, image_size=28), count).images
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # ITU-R BT.601
    return (images * weights).sum(dim=1, keepdim=True).round().to(torch.uint8)


def ink(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Invert one square at a random place, anywhere, of each image: (images, bool (B, H, W), True = altered)."""
    count, _, height, width = images.shape
    top = torch.randint(height - BLOCK + 1, (count, 1, 1), generator=generator)
    left = torch.randint(width - BLOCK + 1, (count, 1, 1), generator=generator)
    rows, columns = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    altered = (rows >= top) & (rows < top + BLOCK) & (columns >= left) & (columns < left + BLOCK)
    return torch.where(altered[:, None], 255 - images, images), altered


def join_halves(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The upper half of each digit over the lower half of one of another class."""
    partners = torch.randperm(len(images), generator=generator)
    other = labels[partners] != labels
    middle = images.shape[2] // 2
    return torch.cat([images[other, :, :middle], images[partners][other, :, middle:]], dim=2)


# ---- scores


def find_maps(model: MaskedAutoencoder, args: argparse.Namespace, images: Tensor) -> Tensor:
    """Anomaly maps (B, H, W), under the same masks for all images."""

    def find(part: Tensor) -> Tensor:
        same_masks = torch.Generator().manual_seed(args.seed)
        return anomaly_map(model, part, passes=args.passes, mask_ratio=args.mask_ratio, generator=same_masks)

    return torch.cat([find(part) for part in images.split(500)])


def score_nearest(images: Tensor, known: Tensor) -> Tensor:
    """Euclidean distance in pixels to the nearest of `known`: (B,)."""
    known = known.flatten(1) / 255
    return torch.cat([torch.cdist(part, known).amin(dim=1) for part in (images.flatten(1) / 255).split(500)])


def score(model: MaskedAutoencoder, known: Tensor, images: Tensor, maps: Tensor) -> dict[str, Tensor]:
    """How odd each image is (B,), by each way to tell."""
    worst = avg_pool2d(maps, model.patch_size).flatten(1).amax(dim=1)
    nearest = score_nearest(images, known)
    return {"map, mean": maps.mean(dim=(1, 2)), "map, worst patch": worst, "nearest neighbour": nearest}


def localise(model: MaskedAutoencoder, altered: Tensor, maps: Tensor) -> dict[str, float]:
    """How well maps say where images were altered, bool (B, H, W); in percent."""
    touched = avg_pool2d(altered.float(), model.patch_size).flatten(1) > 0  # (B, N)
    worst = avg_pool2d(maps, model.patch_size).flatten(1).argmax(dim=1, keepdim=True)
    return {
        "pixel ROC-AUC": 100 * roc_auc_score(altered.flatten(), maps.flatten()),
        "worst patch touches the square": 100 * touched.gather(1, worst).float().mean().item(),
        "a random patch would": 100 * touched.float().mean().item(),
    }


def draw(shown: dict[str, tuple[Tensor, Tensor]], path: Path, title: str, *, limit: float) -> Path:
    """Some images of each kind beside their maps."""
    columns = {}
    for kind, (images, maps) in shown.items():
        columns[kind.split(" (")[0]] = images[:8] / 255
        columns[" " * len(columns)] = heat(maps[:8], limit)  # no heading, yet each key another
    return figures.reconstruction_sheet(columns, path, title, groups=1)


def heat(maps: Tensor, limit: float) -> Tensor:
    """Maps (B, H, W) as images (B, 3, H, W) in [0, 1]: black is 0, bright is `limit`."""
    coloured = colormaps["inferno"]((maps / limit).clamp(0, 1).numpy())[..., :3]  # (B, H, W, 3)
    return torch.from_numpy(coloured).float().permute(0, 3, 1, 2)


def main(args: argparse.Namespace) -> dict:
    folder = Path(args.output_dir)
    run = pretrain("mnist", data_dir=args.data_dir, output_dir=folder / "pretrain", **PRETRAIN)
    model = MaskedAutoencoder.from_pretrained(folder / "pretrain")
    train_set = pick(load_dataset("mnist", "train", data_dir=args.data_dir), 10_000)
    digits = pick(load_dataset("mnist", args.split, data_dir=args.data_dir), args.images)
    generator = torch.Generator().manual_seed(args.seed)
    inked, altered = ink(digits.images, generator)
    turnable = (digits.labels[:, None] == torch.tensor([3, 4, 7])).any(dim=1)  # others may look like digits turned
    square = f"a {BLOCK}x{BLOCK} square inverted"
    kinds = {
        "grey photographs (CIFAR-10)": grey_photographs(args.data_dir, args.split, args.images),
        square: inked,
        "halves of two digits": join_halves(digits.images, digits.labels, generator),
        "3, 4 and 7 upside down": digits.images[turnable].rot90(2, (2, 3)),
    }

    score_all = partial(score, model, train_set.images)
    normal_maps = find_maps(model, args, digits.images)
    normal = score_all(digits.images, normal_maps)
    table, maps = {}, {}
    for kind, images in kinds.items():
        maps[kind] = find_maps(model, args, images)
        against = turnable if "upside down" in kind else torch.ones_like(turnable)  # the same classes, upright
        truth = torch.cat([torch.zeros(int(against.sum())), torch.ones(len(images))])
        table[kind] = {
            name: 100 * roc_auc_score(truth, torch.cat([normal[name][against], values]))
            for name, values in score_all(images, maps[kind]).items()
        }
    localisation = localise(model, altered, maps[square])

    names = list(normal)
    print(f"\nROC-AUC, %, {len(digits)} intact {args.split} digits against{'':8}" + "".join(f"{n:>20}" for n in names))
    for kind, row in table.items():
        print(f"{kind:40} ({len(kinds[kind])})".ljust(52) + "".join(f"{row[name]:>20.1f}" for name in names))
    print("\nWhere the inverted square is, %")
    for name, value in localisation.items():
        print(f"{name:40}{value:>8.1f}")

    shown = {"digit": (digits.images, normal_maps), **{kind: (kinds[kind], maps[kind]) for kind in kinds}}
    title = f"MNIST {args.split} digits, odd images, and their anomaly maps"
    limit = float(torch.quantile(maps[square].flatten()[::7], 0.995))
    picture = draw(shown, folder / "anomaly.png", title, limit=limit)
    pretraining = {"arguments": PRETRAIN, **run.results}
    print(f"wrote {picture}")
    return write_result(
        folder / "anomaly.json", args, "cpu", pretraining=pretraining, roc_auc=table, localisation=localisation
    )


if __name__ == "__main__":
    main(parse().parse_args())
