"""Features pretrained on one's own images by tinymae beside those of a model that was pretrained on ImageNet.

    python benchmarks/imagenet.py --data cifar10 --weights weights/vit-t-mae      # about half an hour of one CPU core
    python benchmarks/imagenet.py --data photos/ --weights runs/mae --model resnet18

Both encoders are frozen. The ImageNet model, any of timm's, sees the images enlarged to the best of --sizes, which a
linear probe of 5,000 training images chooses on validation. k-NN and a linear probe learn from all labels and from few,
with several draws of these; the regularisation is chosen on validation, and test is scored once. "both" is the features
of either, each of unit length, side by side. --checkpoint is a file of timm's weights, or of the same tensors in the
same order under other names, where timm cannot download them.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from timing import write_result
from torch import Tensor, nn

import tinymae
from tinymae.data.datasets import Dataset
from tinymae.data.splits import SPLITS, few_labels
from tinymae.evaluation.metrics import accuracy, map_dataset
from tinymae.evaluation.neighbours import knn_predict
from tinymae.evaluation.probes import choose_probe, linear_fits, predict_score
from tinymae.models.classifier import feature_function
from tinymae.tensors import to_unit

Features = dict[str, Tensor]  # of each split


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="what tinymae.load_dataset reads, with labels")
    parser.add_argument("--data-dir", default="data", help="where a named data set is, or goes")
    parser.add_argument("--weights", required=True, help="a pretraining of tinymae on these images")
    parser.add_argument("--model", default="tf_efficientnet_lite0", help="a name of timm")
    parser.add_argument("--checkpoint", type=Path, help="its weights (default: what timm downloads)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 160, 224], help="to enlarge the images to")
    parser.add_argument("--fractions", type=float, nargs="+", default=[1.0, 0.1, 0.01], help="of the labels")
    parser.add_argument("--draws", type=int, default=3, help="of few labels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="both encoders compute in bfloat16")
    parser.add_argument("--output", type=Path, default=Path("runs/imagenet.json"))
    return parser


def imagenet_model(name: str, checkpoint: Path | None) -> nn.Module:
    """timm's model without its classifier."""
    model = timm.create_model(name, pretrained=checkpoint is None)
    if checkpoint is not None:
        tensors = torch.load(checkpoint, map_location="cpu", weights_only=True)
        names = tensors if tensors.keys() == model.state_dict().keys() else model.state_dict()
        model.load_state_dict(dict(zip(names, tensors.values(), strict=True)))
    model.reset_classifier(0)
    return model.eval()


def enlarged_features(model: nn.Module, size: int) -> Callable[[Tensor], Tensor]:
    """uint8 images (B, C, H, W) -> the model's pooled features (B, F), of images of `size` pixels."""
    settings = timm.data.resolve_data_config({}, model=model)
    mean, std = (torch.tensor(settings[key]).view(1, 3, 1, 1) for key in ("mean", "std"))

    def features(images: Tensor) -> Tensor:
        values = to_unit(images).expand(-1, 3, -1, -1)  # grey is all three colours
        large = nn.functional.interpolate(values, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
        inputs = (large - mean.to(large)) / std.to(large)
        return model(inputs.contiguous(memory_format=torch.channels_last))

    return features


def extract(
    args: argparse.Namespace, features: Callable[[Tensor], Tensor], dataset: Dataset, at: Tensor | None = None
) -> Tensor:
    with torch.inference_mode(), torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.bf16):
        found = map_dataset(features, dataset, device=args.device, at=at, batch_size=64, desc="features")
    return found.clone()  # not an inference tensor, so that probes can learn from it


def join(*features: Tensor) -> Tensor:
    """Features (N, F) of several encoders as one row each, to which every encoder adds as much."""
    return torch.cat([nn.functional.normalize(some, dim=1) for some in features], dim=1)


def choose_size(args: argparse.Namespace, model: nn.Module, splits: dict[str, Dataset]) -> dict[int, float]:
    """The accuracy of a linear probe on validation, by the size that images are enlarged to."""
    train, val = splits["train"], splits["val"]
    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:5_000].sort().values
    labels, truth = train.labels[some], val.labels
    found = {}
    for size in args.sizes:
        features = enlarged_features(model, size)
        known, held_out = extract(args, features, train, some), extract(args, features, val)
        fits = linear_fits(known, labels, num_classes=len(train.classes))
        found[size] = max(choose_probe(fits, partial(predict_score, features=held_out, labels=truth))[2].values())
        print(f"{size} pixels: linear probe {found[size]:.1f} % on validation")
    return found


def score(features: Features, splits: dict[str, Dataset], *, fraction: float, draws: int) -> dict:
    """k-NN and linear probe on test, by draws of a ratio of the labels."""
    truth = {name: splits[name].labels for name in SPLITS}
    num_classes = len(splits["train"].classes)
    rows: dict[str, list[float]] = {"knn_test": [], "probe_val": [], "probe_test": []}
    for seed in range(draws):
        at = few_labels(truth["train"], fraction, seed)
        known, labels = features["train"][at], truth["train"][at]
        judge = partial(predict_score, features=features["val"], labels=truth["val"])
        probe, _, tried = choose_probe(linear_fits(known, labels, num_classes=num_classes), judge)
        near = knn_predict(known, labels, features["test"], num_classes=num_classes)
        rows["knn_test"].append(accuracy(near, truth["test"]))
        rows["probe_val"].append(max(tried.values()))
        rows["probe_test"].append(predict_score(probe, features["test"], truth["test"]))
    means = {f"{name}_mean": float(np.mean(values)) for name, values in rows.items()}
    stds = {f"{name}_std": float(np.std(values, ddof=1)) for name, values in rows.items() if draws > 1}
    return {"labels": len(labels), **rows, **means, **stds}


def main(args: argparse.Namespace) -> dict:
    ours = tinymae.load(args.weights).to(args.device)
    theirs = imagenet_model(args.model, args.checkpoint).to(args.device).to(memory_format=torch.channels_last)
    splits = {name: tinymae.load_dataset(args.data, name, data_dir=args.data_dir, model=ours) for name in SPLITS}
    sizes = choose_size(args, theirs, splits)
    size = max(sizes, key=lambda size: sizes[size])
    encoders = {
        "tinymae": feature_function(ours, pool="avg"),
        f"{args.model}, {size} pixels": enlarged_features(theirs, size),
    }
    found = {
        name: {split: extract(args, function, dataset) for split, dataset in splits.items()}
        for name, function in encoders.items()
    }
    found["both"] = {split: join(*(features[split] for features in found.values())) for split in SPLITS}
    rows: dict[str, dict] = {}
    for name, features in found.items():
        rows[name] = {"features": features["train"].shape[1]}
        for fraction in args.fractions:
            scores = score(features, splits, fraction=fraction, draws=1 if fraction == 1 else args.draws)
            rows[name][str(fraction)] = scores
            print(
                f"{name}, {scores['labels']} labels: k-NN {scores['knn_test_mean']:.1f}, "
                f"linear probe {scores['probe_test_mean']:.1f} ± {scores.get('probe_test_std', 0):.1f}"
            )
    return write_result(args.output, args, args.device, probe_val_by_size=sizes, rows=rows)


if __name__ == "__main__":
    main(parse().parse_args())
