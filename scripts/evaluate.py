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

from tinymae import InputError, Reconstruction, evaluate, figures, random_mask
from tinymae.autoencoders.base import Autoencoder
from tinymae.data import chunks, pick
from tinymae.files import write_atomically
from tinymae.masking import count_hidden
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
    for place, name in enumerate(dataset.classes):  # quite other names may still mean the same classes
        if name in model.classes and model.classes.index(name) != place:
            raise InputError(
                f"data set {args.data} counts {name!r} as class {place}, weights {args.weights} as class "
                f"{model.classes.index(name)}: give it the same class folders"
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


def evaluate_autoencoder(args: argparse.Namespace, model: Autoencoder, dataset, accelerator) -> dict:
    generator = torch.Generator().manual_seed(args.seed)
    masks = hasattr(model, "mask_ratio")
    ratio = model.mask_ratio if masks and args.mask_ratio is None else args.mask_ratio
    if ratio is not None and not masks:
        raise InputError(f"mask_ratio {ratio}: a {type(model).__name__} hides nothing; leave it out")
    hidden = count_hidden(model.num_patches, ratio) if masks else 0  # refuses before anything is written
    run = Run(args, accelerator)
    run.list_skipped(dataset)

    def reconstruct(images: torch.Tensor) -> dict[str, Reconstruction]:
        if not masks:
            return {"full": model.reconstruct(images)}
        mask = random_mask(len(images), model.num_patches, ratio, generator)
        nothing_hidden = torch.zeros(model.num_patches, dtype=torch.bool)
        masked = model.reconstruct(images, mask, statistics=args.statistics)
        return {"masked": masked, "full": model.reconstruct(images, nothing_hidden)}

    totals: dict[str, dict[str, float]] = {}
    for images, _ in tqdm(chunks(dataset, args.batch_size), total=-(-len(dataset) // args.batch_size), leave=False):
        for name, shown in reconstruct(images.to(accelerator.device)).items():
            answer = shown.images if name == "masked" else shown.prediction
            sums = totals.setdefault(name, {})
            for metric, value in evaluate.reconstruction_metrics(shown.original, answer).items():
                sums[metric] = sums.get(metric, 0.0) + value * len(images) / len(dataset)
    results = totals | {"images": len(dataset)}
    if masks:  # visible patches are pasted: they have no error
        totals["masked"]["mse_hidden"] = totals["masked"]["mse"] * model.num_patches / hidden
        results["mask_ratio"] = ratio

    for name, what in {"masked": f"{ratio or 0:.0%} hidden, visible patches pasted", "full": "nothing hidden"}.items():
        if name in totals:
            run.print(f"{what}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in totals[name].items()))
    some, _ = pick(dataset, 24)[torch.arange(min(24, len(dataset)))]
    shown = next(iter(reconstruct(some.to(accelerator.device)).values()))
    results["statistics"] = shown.statistics
    title = f"{args.data} {args.split}"
    if masks:
        title += f", {ratio:.0%} hidden; patch statistics: {shown.statistics}"
    sheet = figures.reconstruction_sheet(shown.columns, run.folder / "reconstructions.png", title, groups=4)
    run.finish(results, [sheet])
    return results


if __name__ == "__main__":
    run_script(main, parse())
