"""Look closely at finished weights: a classifier's errors, or an autoencoder's reconstructions."""

import itertools
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from posixpath import basename
from typing import Any, Literal

import torch
from accelerate import Accelerator
from sklearn.metrics import classification_report
from torch import Tensor, nn

from ..data.batches import pick
from ..data.datasets import Dataset, StreamedDataset, with_label
from ..errors import InputError
from ..evaluation import figures
from ..evaluation.calibration import probability_metrics, reliability
from ..evaluation.metrics import (
    RECONSTRUCTION_METRICS,
    accuracy,
    describe_score,
    reconstruction_metrics,
    several_metrics,
)
from ..evaluation.sheets import Tile, in_rows, write_sheet
from ..files import write_csv
from ..interop.load import Model, load
from ..models.base import Autoencoder
from ..models.classifier import Classifier
from ..models.masked import PatchMasking
from ..models.masking import count_hidden, random_mask
from ..models.outputs import Reconstruction
from ..randomness import seeded
from ..training.device import Precision
from ..training.inputs import names_of
from ..training.processes import print_once
from ..training.run import Run
from .by_class import match_classes, print_notes, report_classes, report_several
from .features import (
    Split,
    WeightsSettings,
    leave_out_unreadable,
    map_together,
    remark_on_known,
    require_fit,
    whole_batches,
)
from .fields import keywords_of, setting, with_default
from .results import Result

ERRORS = 40  # on a sheet
REPORTED = ("precision", "recall", "f1-score")  # of each class
RANKED = {"average_precision": "ap", "roc_auc": "auc"}  # of each class, and what `several_metrics` calls it
MOST_RANKED = 100  # classes: of 1,000 it would take longer than all else


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(WeightsSettings):
    """Settings of a closer look."""

    output_dir: str | Path = with_default(WeightsSettings, "output_dir", "runs/evaluate")
    mixed_precision: Precision = with_default(WeightsSettings, "mixed_precision", "no")  # as predict
    split: Split | None = setting(
        None, "which images (default: test, or val where the data have no test images)", group="data"
    )
    mask_ratio: float | None = setting(None, "ratio of patches hidden (default: the model's)", group="reconstruction")
    statistics: Literal["visible", "target"] = setting(
        "visible", "after norm_pix_loss, whose brightness and contrast hidden patches get; target leaks",
        group="reconstruction",
    )  # fmt: skip


def run(settings: EvaluateSettings) -> Result[Model]:
    """Look closely at a classifier or an autoencoder.

    A classifier gives its accuracy, scikit-learn's report, how far its probabilities can be trusted, a confusion
    matrix, a table by class and a sheet of errors; one of several labels an image its mean average precision, and a
    table by class; an autoencoder its MSE, PSNR and SSIM with patches hidden and with none hidden, and a sheet of
    reconstructions.

    Raises InputError for settings or data that cannot work.
    """
    settings, accelerator, model = settings.begin(load)
    by_default = settings.split is None
    look: partial[dict]
    if isinstance(model, Classifier):
        dataset, settings = load_images(settings, model, accelerator, labelled=True, several=model.several)
        dataset = match_classes(
            model, with_label(dataset), source=f"data set {settings.data_name}", weights=settings.weights
        )
        if by_default:
            remark_on_others(settings, model, dataset)
        look = partial(evaluate_several if model.several else evaluate_classifier, settings, model)
    else:
        dataset, settings = load_images(settings, model, accelerator)
        look = partial(evaluate_autoencoder, settings, model, ratio=choose_ratio(settings, model))
    assert settings.split is not None  # settled
    remark_on_known(model, dataset)
    opened = settings.open_run(accelerator, splits={settings.split: dataset}, weights=model)
    with opened as run, torch.no_grad(), accelerator.autocast():
        results = look(run, dataset.to(accelerator.device))
    return Result(model, results, run.folder)


evaluate = keywords_of(run, EvaluateSettings)


def load_images(
    settings: EvaluateSettings, model: Model, accelerator: Accelerator, **options: Any
) -> tuple[Dataset, EvaluateSettings]:
    """The images, sized for the model, and the settings with their split: by default test or, of data that have none,
    val.
    """
    options |= {"image_size": model.image_size, "channels": model.in_channels}
    no_test = isinstance(model, Classifier) and bool(names_of(model.source, "train"))
    no_test = no_test and not names_of(model.source, "test")  # as in training
    find = partial(settings.load_splits, ["test"], present=True, no_test=no_test)
    test = find(**options) if settings.split is None else {}
    split: Split = settings.split or ("test" if test else "val")
    dataset = (test or settings.load_splits([split], **options))[split]
    require_fit(model, dataset)
    return leave_out_unreadable(dataset, accelerator), replace(settings, split=split)


def remark_on_others(settings: EvaluateSettings, model: Classifier, dataset: Dataset) -> None:
    """Say so if the data were cut without need: they have no splits, and no image called as one that was trained on, in
    whatever folder.
    """
    trained, held_out = (names_of(model.source, split) for split in ("train", str(settings.split)))
    if not (dataset.of_files and trained) or held_out.intersection(dataset.names):  # of training: cut as then
        return
    options: dict = {"channels": model.in_channels, "several": model.several, "memory_limit_gb": 0}  # none is read
    whole = replace(settings, describe=False).load_splits(["all"], **options)["all"]
    assert isinstance(whole, StreamedDataset)
    if not (whole.source.splits or {*map(basename, trained)} & {*map(basename, whole.names)}):
        count = len(with_label(whole))
        print_once(
            "none of these images is called like one that the weights were trained on: if they are others, --split all "
            f"judges all {count:,}, not the {len(dataset):,} of {settings.split}"
        )


def evaluate_classifier(settings: EvaluateSettings, model: Classifier, run: Run, dataset: Dataset) -> dict:
    """Accuracy, report, calibration, confusion matrix, a table by class and the most confident errors."""
    assert dataset.labels is not None
    labels = dataset.labels.cpu()
    logits = map_together(model, dataset, run.accelerator, desc="logits", **settings.computing)
    predictions = logits.argmax(dim=1)
    present, right = labels.unique().tolist(), accuracy(predictions, labels)
    report_on = partial(classification_report, labels, predictions, labels=present, zero_division=0)
    text = report_on(target_names=[model.classes[number] for number in present], digits=4)
    numbers = [str(number) for number in present]  # names might be those of the report's own rows
    report = report_on(target_names=numbers, output_dict=True)
    judged = {model.classes[int(number)]: report.pop(number) for number in numbers}
    means, ranks = rank_classes(logits, labels)
    by_class = {
        name: judged.get(name, dict.fromkeys(REPORTED) | {"support": 0.0}) | rank
        for name, rank in zip(model.classes, ranks, strict=True)
    }
    report.pop("micro avg", None)  # in place of the accuracy, where a class that no image has was predicted
    report["accuracy"] = right / 100
    probabilities = logits.softmax(dim=1)
    results = {
        "accuracy": right, "images": len(dataset),
        **probability_metrics(probabilities, labels), **means,
        "classes_judged": len(present), "report": report, "by_class": by_class,
    }  # fmt: skip
    run.print(f"accuracy {describe_score(right, len(dataset), str(settings.split))}\n\n{text}")
    title = f"{settings.data_name} {settings.split}, accuracy {right:.2f} % of {len(dataset):,} images"
    found, picture = report_classes(run, logits, labels, model.classes, split=str(settings.split), title=title)
    results |= {name.removesuffix(f"_{settings.split}"): value for name, value in found.items()}
    calibration = (
        f"expected calibration error {results['ece']:.1f} %" if "ece" in results else "too few for calibration"
    )
    run.print(f"NLL {results['nll']:.3f}, {calibration}")
    drawn = draw(settings, model, run, dataset, labels, results, probabilities) if run.is_main else []
    run.finish(results, [picture, *drawn])
    return results


def rank_classes(logits: Tensor, labels: Tensor) -> tuple[dict[str, float], list[dict[str, float | None]]]:
    """How well each class's probability ranks its images before those of the others, by `several_metrics`: in the mean,
    in percent, and of each class, from 0 to 1 as scikit-learn's report. Nothing of images of one class alone, or of
    more classes than MOST_RANKED.
    """
    count = logits.shape[1]
    if len(labels.unique()) == 1 or count > MOST_RANKED:
        return {}, [dict.fromkeys(RANKED)] * count
    found = several_metrics(logits.double().softmax(dim=1), nn.functional.one_hot(labels, count))
    rows = zip(*(found[metric] for metric in RANKED.values()), strict=True)
    ranks = [dict(zip(RANKED, (None if each is None else each / 100 for each in row), strict=True)) for row in rows]
    return {name: found[name] for name in ("mean_ap", "mean_auc")}, ranks


def evaluate_several(settings: EvaluateSettings, model: Classifier, run: Run, dataset: Dataset) -> dict:
    """Of several labels an image: average precision and ROC-AUC of each class and in the mean."""
    assert dataset.labels is not None
    logits = map_together(model, dataset, run.accelerator, desc="logits", **settings.computing)
    found, table = report_several(run, logits, dataset.labels.cpu(), model.classes)
    run.print(describe_score(found["mean_ap"], len(dataset), str(settings.split), several=True))
    print_notes(run, dataset.labels, model.classes, str(settings.split))
    results = found | {"images": len(dataset)}
    run.finish(results, [table])
    return results


def draw(
    settings: EvaluateSettings, model: Classifier, run: Run, dataset: Dataset, labels: Tensor, results: dict,
    probabilities: Tensor,
) -> list[Path]:  # fmt: skip
    """The table by class, the reliability diagram and the errors."""
    table = write_table(results["by_class"], run.folder / "per_class.csv")
    diagram = figures.reliability(
        reliability(probabilities, labels), run.folder / "reliability.png",
        f"{settings.data_name} {settings.split}"
        + (f", calibration error {results['ece']:.1f} %" if "ece" in results else f", {len(dataset)} images"),
    )  # fmt: skip
    errors = show_errors(settings, dataset, labels, probabilities, model.classes, run.folder / "errors.png")
    return [table, diagram, errors]


def show_errors(
    settings: EvaluateSettings, dataset: Dataset, labels: Tensor, probabilities: Tensor, classes: list[str], path: Path
) -> Path:
    """A sheet of the most confident errors, with their rows."""
    confidence, predicted = probabilities.max(dim=1)
    wrong = (predicted != labels).nonzero()[:, 0]
    if not len(wrong):
        return write_sheet([], path, "no errors")
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)[:ERRORS]]
    images = dataset[worst][0].cpu()
    images = figures.viewable(images, settings.show_channels, figures.display_limits(images, settings.show_channels))
    tiles = []
    for row, image in zip(worst.tolist(), images, strict=True):
        lines = f"{dataset.names[row]}", f"{classes[labels[row]]}, not", f"{classes[predicted[row]]}"
        tiles.append(Tile(image, (*lines[:2], f"{lines[2]} {100 * confidence[row]:.0f} %")))
    return write_sheet(
        in_rows(tiles), path, f"{len(tiles)} of {len(wrong):,} errors, the most confident first: truth, not prediction"
    )


def write_table(by_class: dict[str, dict], path: Path) -> Path:
    """A line of CSV for each class; one that no image has is not judged, and has empty cells."""
    columns = (*REPORTED, "support", *RANKED)
    rows = (
        [name, *(None if row[each] is None else f"{row[each]:.6g}" for each in columns)]
        for name, row in by_class.items()
    )
    return write_csv(path, ["class", *columns], rows)


def choose_ratio(settings: EvaluateSettings, model: Autoencoder) -> float | None:
    """The ratio of patches to hide; None of a model that hides none. Raises InputError if it cannot be."""
    if not isinstance(model, PatchMasking):
        if settings.mask_ratio is not None:
            raise InputError(f"mask_ratio {settings.mask_ratio}: a {type(model).__name__} hides nothing; leave it out")
        return None
    ratio = model.mask_ratio if settings.mask_ratio is None else settings.mask_ratio
    count_hidden(model.num_patches, ratio)
    return ratio


def evaluate_autoencoder(
    settings: EvaluateSettings, model: Autoencoder, run: Run, dataset: Dataset, *, ratio: float | None
) -> dict:
    """Errors of the reconstructions with patches hidden and with none hidden, and a sheet of them."""

    def reconstruct(images: Tensor, batch: int) -> dict[str, Reconstruction]:
        if ratio is None or not isinstance(model, PatchMasking):
            return {"full": model.reconstruct(images)}
        mask = random_mask(len(images), model.num_patches, ratio, seeded(settings.seed, "masks", batch))
        masked = model.reconstruct(images, mask, statistics=settings.statistics)
        return {"masked": masked, "full": model.reconstruct(images, 0.0)}

    def score(images: Tensor) -> Tensor:
        """Errors (B, reconstructions, metrics)."""
        errors = [
            reconstruction_metrics(shown.original, shown.images if name == "masked" else shown.prediction)
            for name, shown in reconstruct(images, next(numbers)).items()
        ]
        return torch.stack([torch.stack([*of_one.values()], dim=1) for of_one in errors], dim=1)

    accelerator, batch_size = run.accelerator, settings.batch_size
    own = whole_batches(torch.arange(len(dataset)), batch_size, accelerator.num_processes)[accelerator.process_index]
    numbers = itertools.count(int(own[0]) // batch_size if len(own) else 0)  # of the batches that are this process's
    errors = map_together(score, dataset, accelerator, desc="reconstructions", **settings.computing)
    names, means = ["masked", "full"][-errors.shape[1] :], errors.double().mean(dim=0).tolist()
    totals = {
        name: dict(zip(RECONSTRUCTION_METRICS, row, strict=False)) for name, row in zip(names, means, strict=True)
    }
    results: dict = totals | {"images": len(dataset)}
    if isinstance(model, PatchMasking) and ratio is not None:  # visible patches are pasted: they have no error
        hidden = count_hidden(model.num_patches, ratio)
        totals["masked"]["mse_hidden"] = totals["masked"]["mse"] * model.num_patches / hidden
        results["mask_ratio"] = ratio
    some, _ = pick(dataset, 24)[torch.arange(min(24, len(dataset)))]
    shown = next(iter(reconstruct(some.to(accelerator.device), 0).values()))
    results["statistics"] = shown.statistics
    print_errors(run, totals, ratio, given=shown.statistics != "none")
    run.finish(results, [draw_reconstructions(settings, run, shown, some, ratio)])
    return results


def print_errors(run: Run, totals: dict[str, dict[str, float]], ratio: float | None, *, given: bool) -> None:
    """A line of errors with patches hidden, and one with none hidden; `given` if visible patches bring statistics."""
    full = "nothing hidden" + ", each patch with its own mean and std, which it was given" * given
    for name, what in {"masked": f"{ratio or 0:.0%} hidden, visible patches pasted", "full": full}.items():
        if name in totals:
            run.print(f"{what}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in totals[name].items()))


def draw_reconstructions(
    settings: EvaluateSettings, run: Run, shown: Reconstruction, images: Tensor, ratio: float | None
) -> Path:
    """The sheet of some images and what they were reconstructed as, which the main process draws."""
    title, sheet = f"{settings.data_name} {settings.split}", run.folder / "reconstructions.png"
    if ratio is not None:
        title += f", {ratio:.0%} hidden; patch statistics: {shown.statistics}"
    if run.is_main:
        channels, limits = settings.show_channels, figures.display_limits(images, settings.show_channels)
        figures.reconstruction_sheet(shown.columns, sheet, title, channels=channels, limits=limits)
    return sheet
