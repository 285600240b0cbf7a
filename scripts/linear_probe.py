"""Score frozen features: k-NN and a classifier trained on them, on the encoder of a pretraining run.

    python scripts/linear_probe.py --weights runs/mae --data cifar10
    python scripts/linear_probe.py --weights runs/mae --data cifar10 --label-fraction 0.01 --head mlp --controls

Features are extracted once, by the unmasked encoder. The head's regularisation is chosen on validation; test is scored
once, or with --no-test not even loaded, for whoever chooses between runs. With a linear head (linear, or logistic, the
same problem solved by scikit-learn), the output folder is a stock timm classifier that evaluate.py and finetune users
can load.
"""

import argparse
import time
from functools import partial

import torch
from sklearn.metrics import confusion_matrix

from tinymae import MaskedAutoencoder, evaluate, figures
from tinymae.data import Dataset, few_labels, require_labels
from tinymae.files import digest, write_tensors
from tinymae.randomness import derive_seed
from tinymae.runs import Run, add_run_arguments, create_accelerator, dataset_loader, run_script
from tinymae.train import choose_attention
from tinymae.weights import build_classifier, fold_probe, load_autoencoder, require_channels, require_pool

HEADS = {"linear": evaluate.linear_fits, "mlp": evaluate.mlp_fits, "logistic": evaluate.logistic_fits}


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="folder of a pretraining run")
    parser.add_argument("--data", default="cifar10", help="cifar10, cifar100, mnist, digits or a folder with classes")
    parser.add_argument("--pool", choices=["avg", "cls"], default="avg", help="(default: %(default)s)")
    parser.add_argument("--head", choices=HEADS, default="linear", help="(default: %(default)s)")
    parser.add_argument("--label-fraction", type=float, default=1.0, help="share of each class's labels used")
    parser.add_argument(
        "--controls",
        nargs="?",
        const="all",
        choices=["all", "untrained", "raw_pixels"],
        help="score an untrained encoder and raw pixels as well, or one of them",
    )
    parser.add_argument("--no-test", action="store_true", help="leave the test split out: for choosing on validation")
    parser.add_argument("--batch-size", type=int, default=256, help="images in a forward pass (default: %(default)s)")
    add_run_arguments(parser, output_dir="runs/linear_probe")
    return parser


def main(args: argparse.Namespace) -> dict:
    accelerator = create_accelerator(args)
    device = accelerator.device
    model = load_autoencoder(args.weights).to(device)
    require_pool(model, args.pool)
    choose_attention(model, device)
    load = dataset_loader(args, image_size=model.image_size, channels=model.in_channels)
    judged = "val" if args.no_test else "test"
    splits = {split: load(split).to(device) for split in dict.fromkeys(("train", "val", judged))}
    require_channels(splits["train"], model.in_channels)
    require_labels(args.data, **splits)
    splits["train"] = splits["train"].subset(few_labels(splits["train"].labels, args.label_fraction, args.seed))
    run = Run(args, accelerator)
    run.list_skipped(*splits.values())

    pool = {"pool": args.pool} if isinstance(model, MaskedAutoencoder) else {}
    before = digest(model.state_dict())
    started = time.monotonic()
    with accelerator.autocast():
        features = extract(partial(model.encode, **pool), splits, args.batch_size, device)
    seconds = {"features": time.monotonic() - started}
    started = time.monotonic()
    scores, head, predictions = score(args, features, splits)
    seconds["heads"] = time.monotonic() - started
    if digest(model.state_dict()) != before:
        raise RuntimeError("the encoder changed while it was probed")  # a bug of ours, never the user's doing
    rows = {"pretrained": scores}
    if args.controls in ("all", "raw_pixels"):
        pixels = extract(lambda images: images.flatten(1) / 255, splits, args.batch_size, device)
        rows["raw_pixels"] = score(args, pixels, splits)[0]
    if args.controls in ("all", "untrained"):
        torch.manual_seed(derive_seed(args.seed, "weights"))
        untrained = type(model)(**model.config).to(device).eval()
        choose_attention(untrained, device)
        with accelerator.autocast():
            control = extract(partial(untrained.encode, **pool), splits, args.batch_size, device)
        rows["untrained"] = score(args, control, splits)[0]
    for name, row in rows.items():
        run.print(
            f"{name:12} k-NN {row[f'knn_{judged}']:.2f} %, {args.head} {row[f'probe_{judged}']:.2f} % of the {judged} "
            f"images ({row['num_features']} features, {row['num_labels']} labels, hyper-parameter {row['chosen']:g})"
        )
    classes = splits["train"].classes
    matrix = confusion_matrix(splits[judged].labels.cpu(), predictions, labels=range(len(classes)))
    proof = {"encoder_sha256": before, "encoder_unchanged": True, "seconds": seconds}
    results = rows.pop("pretrained") | proof | rows | {"confusion_matrix": matrix.tolist(), "classes": classes}
    title = f"{args.head} probe on {args.data} {judged}, {results[f'probe_{judged}']:.1f} %"
    shown = [figures.confusion_matrix(matrix, classes, run.folder / "confusion_matrix.png", title)]
    if args.head != "mlp":
        classifier = build_classifier(model, classes=classes, pool=args.pool)
        fold_probe(classifier.head, head)
        classifier.save(run.folder)
        shown += [run.folder / "model.safetensors", run.folder / "config.json"]
    else:
        write_tensors(head.state_dict(), run.folder / "head.safetensors")
        shown.append(run.folder / "head.safetensors")
    run.finish(results, shown)
    return results


def extract(function, splits: dict[str, Dataset], batch_size: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Features (N, F) of each split."""
    return {
        name: evaluate.map_dataset(function, split, device=device, batch_size=batch_size, desc=f"features of {name}")
        for name, split in splits.items()
    }


def score(args: argparse.Namespace, features: dict[str, torch.Tensor], splits: dict[str, Dataset]):
    """k-NN and the head: (figures, the chosen head, its predictions on test; on validation with --no-test)."""
    labels = {name: split.labels.cpu() for name, split in splits.items()}
    num_classes = len(splits["train"].classes)
    fits = partial(HEADS[args.head], **({"seed": args.seed} if args.head == "mlp" else {}))
    head, chosen, tried = evaluate.choose_probe(
        fits(features["train"], labels["train"], num_classes=num_classes), features["val"], labels["val"]
    )
    neighbours = partial(evaluate.knn_predict, features["train"], labels["train"], num_classes=num_classes)
    figures_of = {}
    for split in list(splits)[1:]:  # validation, then test
        with torch.no_grad():
            predictions = head(features[split]).argmax(dim=1)
        figures_of[f"knn_{split}"] = evaluate.accuracy(neighbours(features[split]), labels[split])
        figures_of[f"probe_{split}"] = evaluate.accuracy(predictions, labels[split])
    figures_of |= {
        "chosen": chosen,
        "tried_on_val": {str(setting): value for setting, value in tried.items()},
        "num_features": features["train"].shape[1],
        "num_labels": len(labels["train"]),
    }
    return figures_of, head, predictions


if __name__ == "__main__":
    run_script(main, parse())
