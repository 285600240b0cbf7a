"""Look closely at finished weights: a classifier's errors, or an autoencoder's reconstructions.

    python scripts/evaluate.py --weights runs/finetune --data cifar10
    python scripts/evaluate.py --weights runs/mae --data cifar10

A classifier gives its accuracy, scikit-learn's report, a confusion matrix and a table by class; an autoencoder its
MSE, PSNR and SSIM with patches hidden and with none hidden, and a sheet of reconstructions.
"""

import argparse
from functools import partial

import torch
from sklearn.metrics import classification_report, confusion_matrix
from tqdm import tqdm

from tinymae import InputError, MaskedAutoencoder, evaluate, figures, random_mask
from tinymae.data import chunks, pick
from tinymae.files import write_atomically
from tinymae.mae import count_hidden
from tinymae.runs import Run, add_run_arguments, create_accelerator, dataset_loader, run_script
from tinymae.train import choose_attention
from tinymae.weights import Classifier, kind_of, load_autoencoder, load_classifier, require_channels


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="folder of a finished run")
    parser.add_argument("--data", default="cifar10", help="cifar10, cifar100, mnist, digits or a folder of images")
    parser.add_argument("--split", choices=["train", "val", "test"], default="test", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=256, help="images in a forward pass (default: %(default)s)")
    reconstruction = parser.add_argument_group("reconstruction")
    reconstruction.add_argument("--mask-ratio", type=float, help="share of patches hidden (default: the model's)")
    reconstruction.add_argument(
        "--statistics",
        choices=["visible", "target"],
        default="visible",
        help="after norm_pix_loss, whose brightness and contrast hidden patches get; target leaks (default: visible)",
    )
    add_run_arguments(parser, output_dir="runs/evaluate")
    return parser


def main(args: argparse.Namespace) -> dict:
    accelerator = create_accelerator(args)
    classifier = kind_of(args.weights) == "classifier"
    model = (load_classifier if classifier else load_autoencoder)(args.weights).to(accelerator.device)
    choose_attention(model, accelerator.device)
    load = dataset_loader(args, image_size=model.image_size, channels=model.in_channels)
    dataset = load(args.split).to(accelerator.device)
    require_channels(dataset, model.in_channels)
    with torch.no_grad(), accelerator.autocast():
        return (evaluate_classifier if classifier else evaluate_autoencoder)(args, model, dataset, accelerator)


def evaluate_classifier(args: argparse.Namespace, model: Classifier, dataset, accelerator) -> dict:
    if dataset.labels is None:
        raise InputError(f"data set {args.data} has no labels to compare with")
    if len(dataset.classes) != len(model.classes):
        raise InputError(
            f"weights {args.weights} tell {len(model.classes)} classes apart, data set {args.data} has "
            f"{len(dataset.classes)}"
        )
    run = Run(args, accelerator)
    run.list_skipped(dataset)
    extract = partial(evaluate.map_dataset, device=accelerator.device, batch_size=args.batch_size, desc="logits")
    labels, predictions = dataset.labels.cpu(), extract(model, dataset).argmax(dim=1)
    names = {"target_names": model.classes, "labels": range(len(model.classes)), "zero_division": 0}
    text = classification_report(labels, predictions, digits=4, **names)
    report = classification_report(labels, predictions, output_dict=True, **names)
    results = {"accuracy": evaluate.accuracy(predictions, labels), "images": len(dataset), "report": report}
    matrix = confusion_matrix(labels, predictions, labels=range(len(model.classes)))
    results["confusion_matrix"] = matrix.tolist()

    run.print(f"accuracy {results['accuracy']:.2f} % of {len(dataset)} {args.split} images\n\n{text}")
    columns = ("precision", "recall", "f1-score", "support")
    rows = [",".join(["class", *columns])]
    rows += [",".join([name, *(f"{report[name][column]:.4g}" for column in columns)]) for name in model.classes]
    table = run.folder / "per_class.csv"
    write_atomically(table, lambda beside: beside.write_text("\n".join(rows) + "\n"))
    title = f"{args.data} {args.split}, accuracy {results['accuracy']:.2f} %"
    picture = figures.confusion_matrix(matrix, model.classes, run.folder / "confusion_matrix.png", title)
    run.finish(results, [table, picture])
    return results


def evaluate_autoencoder(args: argparse.Namespace, model: MaskedAutoencoder, dataset, accelerator) -> dict:
    ratio = model.mask_ratio if args.mask_ratio is None else args.mask_ratio
    generator = torch.Generator().manual_seed(args.seed)
    hidden = count_hidden(model.num_patches, ratio)  # a ratio that cannot be is refused before anything is written
    run = Run(args, accelerator)
    run.list_skipped(dataset)
    nothing_hidden = torch.zeros(model.num_patches, dtype=torch.bool)
    totals: dict[str, dict[str, float]] = {"masked": {}, "full": {}}
    for images, _ in tqdm(chunks(dataset, args.batch_size), total=-(-len(dataset) // args.batch_size), leave=False):
        images = images.to(accelerator.device)
        mask = random_mask(len(images), model.num_patches, ratio, generator)
        masked = model.reconstruct(images, mask, statistics=args.statistics)
        full = model.reconstruct(images, nothing_hidden)
        scores = {
            "masked": evaluate.reconstruction_metrics(masked.original, masked.images),
            "full": evaluate.reconstruction_metrics(full.original, full.prediction),
        }
        for name, metrics in scores.items():
            for metric, value in metrics.items():
                totals[name][metric] = totals[name].get(metric, 0.0) + value * len(images) / len(dataset)
    totals["masked"]["mse_hidden"] = (
        totals["masked"]["mse"] * model.num_patches / hidden
    )  # visible patches are pasted: they have no error
    results = totals | {"mask_ratio": ratio, "statistics": masked.statistics, "images": len(dataset)}

    for name, what in {"masked": f"{ratio:.0%} hidden, visible patches pasted", "full": "nothing hidden"}.items():
        numbers = ", ".join(f"{metric} {value:.4f}" for metric, value in totals[name].items())
        run.print(f"{what}: {numbers}")
    some, _ = pick(dataset, 24)[torch.arange(min(24, len(dataset)))]
    some = some.to(accelerator.device)
    shown = model.reconstruct(
        some, random_mask(len(some), model.num_patches, ratio, generator), statistics=args.statistics
    )
    title = f"{args.data} {args.split}, {ratio:.0%} hidden; patch statistics: {shown.statistics}"
    sheet = figures.reconstruction_sheet(shown.columns, run.folder / "reconstructions.png", title, groups=4)
    run.finish(results, [sheet])
    return results


if __name__ == "__main__":
    run_script(main, parse())
