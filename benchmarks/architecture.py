"""Which parts of the encoder does a masked autoencoder of small images need? Variants of ViT-Tiny/4 at equal computing.

    python benchmarks/architecture.py                           # about two and a half hours of one CPU core
    python benchmarks/architecture.py --variants "depth 4"      # one of them; others can run beside it

Each variant learns to reconstruct CIFAR-10's training images from random weights until it has computed as much as the
plain one does in --steps steps: Muon, one cosine, 75 % hidden, crop and flip, the same images in the same order. On
validation: the error over hidden pixels (of fixed masks, in units of a patch's own standard deviation), k-NN and a
linear probe by --labels training images. What is done is in --output-dir, one file each, and is not done again. At the
end it prints the table of what is there.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from steps import pretraining_steps
from tqdm import tqdm

from tinymae import MaskedAutoencoder, load_dataset, random_mask
from tinymae.commands.pretrain import PretrainSettings
from tinymae.data.batches import pick
from tinymae.data.datasets import Dataset
from tinymae.evaluation.metrics import accuracy, map_dataset
from tinymae.evaluation.neighbours import knn_predict
from tinymae.evaluation.probes import choose_probe, linear_fits, predict_score
from tinymae.files import read_json, write_json
from tinymae.models import mae
from tinymae.models.flops import reconstruction_flops
from tinymae.models.vit import create_vit

# What a variant has that the plain one has not: sizes, or arguments of timm's VisionTransformer.
ARGUMENTS: dict[str, dict] = {
    "plain": {},
    "depth 4": {"depth": 4},
    "depth 6": {"depth": 6},
    "depth 8": {"depth": 8},
    "width 128, 2 heads": {"embed_dim": 128, "num_heads": 2},
    "width 256, 4 heads": {"embed_dim": 256, "num_heads": 4},
    "6 heads": {"num_heads": 6},
    "MLP ratio 2": {"mlp_ratio": 2.0},
    "no class token": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "4 registers": {"reg_tokens": 4},
    "QK-norm": {"qk_norm": True},
    "LayerScale 0.1": {"init_values": 0.1},
    "no final norm": {"final_norm": False},
    "positions from noise": {},
    "timm's initialisation": {},
}


def positions_from_noise(model: MaskedAutoencoder) -> None:
    for positions in (model.encoder.pos_embed, model.decoder_pos_embed):
        torch.nn.init.trunc_normal_(positions, std=0.02)


def initialise_as_timm(model: MaskedAutoencoder) -> None:
    positions = model.encoder.pos_embed.clone()
    model.encoder.init_weights()
    model.encoder.pos_embed.copy_(positions)


CHANGES: dict[str, Callable[[MaskedAutoencoder], None]] = {
    "positions from noise": positions_from_noise,
    "timm's initialisation": initialise_as_timm,
}


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="data", help="where CIFAR-10 is, or goes")
    parser.add_argument("--variants", nargs="+", default=list(ARGUMENTS), choices=ARGUMENTS, metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=500, help="of the plain variant; the others' follow its FLOPs")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--base-lr", type=float, default=2e-3)
    parser.add_argument("--images", type=int, help="of each split at most (default: all)")
    parser.add_argument("--labels", type=int, default=10_000, help="training images that k-NN and probe see")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/architecture"))
    return parser


@torch.no_grad()
def build(name: str, seed: int, mean: list[float], std: list[float]) -> MaskedAutoencoder:
    """A variant with random weights."""
    torch.manual_seed(seed)
    with mock.patch.object(mae, "create_vit", lambda *args, **sizes: create_vit(*args, **sizes | ARGUMENTS[name])):
        model = MaskedAutoencoder(mean=mean, std=std)
    CHANGES.get(name, lambda _: None)(model)
    return model


def learn(args: argparse.Namespace, model: MaskedAutoencoder, train: Dataset, steps: int, name: str) -> None:
    """Reconstruct, as `tinymae pretrain` does."""
    asked = PretrainSettings(
        contrast_epochs=0, epochs=10**4, batch_size=args.batch_size, base_lr=args.base_lr, seed=args.seed
    ).resolve()
    accelerator = asked.create_accelerator()
    for _ in tqdm(pretraining_steps(asked, accelerator, model, train, last_step=steps), desc=name, total=steps):
        pass


@torch.no_grad()
def score(model: MaskedAutoencoder, known: Dataset, val: Dataset) -> dict[str, float]:
    """On validation, by the training images `known`."""
    model.eval()
    masks = random_mask(len(val), model.num_patches, 0.75, torch.Generator().manual_seed(0))
    losses = [
        float(model(images, mask, num_hidden=int(mask[0].sum())).loss) * len(images)
        for images, mask in zip(val.images.split(500), masks.split(500), strict=True)
    ]
    features = [map_dataset(model.encode, part, device="cpu", batch_size=64) for part in (known, val)]
    classes = knn_predict(features[0], known.labels, features[1], num_classes=10)
    with torch.enable_grad():
        fits = linear_fits(features[0], known.labels, num_classes=10)
        probe = choose_probe(fits, lambda probe: predict_score(probe, features[1], val.labels))[0]
    return {
        "hidden_error": sum(losses) / len(val),
        "knn": accuracy(classes, val.labels),
        "linear": predict_score(probe, features[1], val.labels),
    }


def main(args: argparse.Namespace) -> None:
    splits = (load_dataset("cifar10", split, data_dir=args.data_dir) for split in ("train", "val"))
    train, val = (pick(split, args.images or len(split)) for split in splits)
    mean, std = train.statistics
    known = pick(train, args.labels)
    budget = args.steps * reconstruction_flops(build("plain", args.seed, mean, std))
    for name in args.variants:
        path = args.output_dir / f"{name}, seed {args.seed}.json"
        if path.exists():
            continue
        model = build(name, args.seed, mean, std)
        flops = reconstruction_flops(model)
        steps = round(budget / flops)
        learn(args, model, train, steps, name)
        parameters = sum(parameter.numel() for parameter in model.encoder.parameters())
        about = {"steps": steps, "gflop_an_image": flops / 1e9, "encoder_parameters": parameters}
        write_json(path, about | score(model, known, val))
    print("| variant | parameters, M | GFLOP an image | epochs | error | k-NN | linear |\n|" + "---|" * 7)
    for path in sorted(args.output_dir.glob("*.json"), key=lambda path: path.stat().st_mtime):
        row = read_json(path)
        epochs = row["steps"] * args.batch_size / len(train)
        print(
            f"| {path.stem} | {row['encoder_parameters'] / 1e6:.2f} | {row['gflop_an_image']:.3f} | {epochs:.2f} "
            f"| {row['hidden_error']:.4f} | {row['knn']:.1f} | {row['linear']:.1f} |"
        )


if __name__ == "__main__":
    main(parse().parse_args())
