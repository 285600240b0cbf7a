"""Classify new images: a table of classes and probabilities, and a sheet of each class."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..data.datasets import Dataset, with_label
from ..data.sources.columns import SEPARATOR
from ..errors import InputError, list_some
from ..evaluation.calibration import MOST, fit_temperature, probability_metrics
from ..evaluation.sheets import Tile, in_rows, write_sheet
from ..files import write_csv
from ..interop.load import load_classifier
from ..models.classifier import Classifier
from ..training.device import Precision
from .by_class import match_classes
from .features import JoinedSettings, JoinedSplits, Split, map_images, map_together, remark_on_known, require_fit
from .fields import Several, keywords_of, setting, with_default
from .results import Result

SHOWN = 40  # images on a sheet
LEAST_CONFIDENT = "#d1495b"  # their frame
NAMED = 10  # classes that are printed
FEW = 100  # images, of which the temperature is uncertain by a tenth or more


@dataclass(frozen=True, kw_only=True)
class PredictSettings(JoinedSettings):
    """Settings of predictions."""

    further = "calibrate"
    output_dir: str | Path = with_default(JoinedSettings, "output_dir", "runs/predict")
    split: Several[Split] = with_default(JoinedSettings, "split", ("all",))
    mixed_precision: Precision = with_default(JoinedSettings, "mixed_precision", "no")  # on any processor the same
    calibrate: str | Path | None = setting(
        None, "labelled data, as --data: its validation images set the temperature of the probabilities"
    )


def run(settings: PredictSettings) -> Result[Classifier]:
    """Classify images, which need no labels.

    predictions.csv has a line for each image: its class and the next best, with their probabilities, and the
    probability of each class; of weights that know several labels an image, all classes of a probability of at least
    1/2, and the probability of each. classes/ has a sheet of the images of each class, the most confident first.
    With `calibrate` the probabilities are those of logits divided by one temperature, found on validation; the classes
    stay as they are. Unlike other commands it computes in float32 by default: a threshold of a probability then holds
    on any processor.

    Raises InputError for weights without a head, or for settings or data that cannot work.
    """
    settings, accelerator, model = settings.begin(load_classifier)
    images = settings.open_images(model, accelerator, unlabelled=True)
    if model.several and settings.calibrate is not None:
        raise InputError("calibrate is for one label an image, and these weights know several: leave it out")
    held_out = None if settings.calibrate is None else open_validation(settings, model, accelerator)
    opened = images.parts | ({} if held_out is None else {"calibrate": held_out})
    with settings.open_run(accelerator, splits=opened, weights=model) as run:
        results: dict = {"images": len(images), "temperature": 1.0}
        if held_out is not None:
            logits = map_together(model, held_out, accelerator, **settings.computing, desc="validation")
            assert held_out.labels is not None
            results |= calibrate(logits, held_out.labels.cpu())
            few = ", which are few" * (len(held_out) < FEW)
            run.print(f"temperature {results['temperature']:.2f} from {len(held_out)} validation images{few}")
            if not 1.01 / MOST < results["temperature"] < 0.99 * MOST:
                run.print("which is the end of what is tried: the weights are no use on these images, or they are few")
        logits = map_images(model, images, accelerator, **settings.computing, desc="predictions")
        probabilities = model.probabilities(logits / results["temperature"])
        found = find_classes(probabilities, several=model.several)
        results |= summarise(probabilities, found, model)
        run.print(describe(results))
        if held_out is None and not model.several:
            run.print(
                "the probabilities are not calibrated: --calibrate DATA, the labelled data of training, does that, "
                "with the same split flags (--group-column, --val-fraction, ...)"
            )
        run.finish(results, write(images, probabilities, found, model, run.folder) if run.is_main else [])
    return Result(model, results, run.folder)


predict = keywords_of(run, PredictSettings)


def open_validation(settings: PredictSettings, model: Classifier, accelerator: Accelerator) -> Dataset:
    """The labelled validation images that set the temperature, read as the others are."""
    size, channels = model.image_size, model.in_channels
    dataset = settings.load_splits(["val"], further=True, image_size=size, channels=channels, labelled=True)["val"]
    require_fit(model, dataset)
    dataset = match_classes(
        model, with_label(dataset), source=f"calibrate {settings.calibrate}", weights=settings.weights
    )
    remark_on_known(model, dataset)
    return dataset.to(accelerator.device)


def calibrate(logits: Tensor, labels: Tensor) -> dict:
    """The temperature, and what validation says of the probabilities before and after.

    It is the same validation that sets the temperature, so what is said of them after it is a little too good.
    """
    temperature = fit_temperature(logits, labels)
    before, after = (probability_metrics((logits / t).softmax(dim=1), labels) for t in (1.0, temperature))
    return {"temperature": temperature, "uncalibrated_val": before, "calibrated_val": after}


def find_classes(probabilities: Tensor, *, several: bool) -> Tensor:
    """Which images have which class, bool (N, classes): the likeliest one, or `several` above one half."""
    if several:
        return probabilities >= 0.5
    return nn.functional.one_hot(probabilities.argmax(dim=1), probabilities.shape[1]).bool()


def summarise(probabilities: Tensor, found: Tensor, model: Classifier) -> dict:
    """Images by class, the median of each image's largest probability, and how many have none of several classes."""
    results = {
        "by_class": dict(zip(model.classes, found.sum(dim=0).tolist(), strict=True)),
        "median_confidence": float(probabilities.max(dim=1).values.median()),
    }
    return results | ({"images_without_class": int((~found.any(dim=1)).sum())} if model.several else {})


def describe(results: dict) -> str:
    """The summary as it is printed; of many classes those of most images.

    >>> describe({"images": 3, "by_class": {"cat": 1, "dog": 2, "owl": 0}, "median_confidence": 0.8})
    '3 images (dog: 2, cat: 1, none: owl), median confidence 80 %'
    """
    ranked = sorted(((count, name) for name, count in results["by_class"].items() if count), key=lambda each: -each[0])
    parts = [f"{name}: {count:,}" for count, name in ranked[:NAMED]]
    if len(ranked) > NAMED:
        parts.append(f"{len(ranked) - NAMED} other classes: {sum(count for count, _ in ranked[NAMED:]):,}")
    if absent := [name for name, count in results["by_class"].items() if not count]:
        parts.append(f"none: {list_some(absent, NAMED)}")
    if "images_without_class" in results:
        parts.append(f"no class: {results['images_without_class']:,}")
    median = f"median confidence {100 * results['median_confidence']:.0f} %"
    return f"{results['images']:,} images ({', '.join(parts)}), {median}"


def write(images: JoinedSplits, probabilities: Tensor, found: Tensor, model: Classifier, folder: Path) -> list[Path]:
    """The table, and the sheet of each class."""
    path = folder / "predictions.csv"
    if model.several:
        table = write_several(images, probabilities, found, model.classes, path)
    else:
        table = write_table(images, probabilities, model.classes, path)
    return [table, *write_sheets(images, probabilities, found, model.classes, folder / "classes")]


def write_several(images: JoinedSplits, probabilities: Tensor, found: Tensor, classes: list[str], path: Path) -> Path:
    """A line of CSV for each image: its classes, separated as in a table of labels, and all probabilities."""
    every = torch.arange(len(images))
    rows = (
        [name, split, SEPARATOR.join(classes[k] for k in has.nonzero()[:, 0]), *map(as_cell, values)]
        for (name, split, _), has, values in zip(images.about(every), found, probabilities.tolist(), strict=True)
    )
    return write_csv(path, with_classes_after(["name", "split", "classes"], classes), rows)


def write_table(images: JoinedSplits, probabilities: Tensor, classes: list[str], path: Path) -> Path:
    """A line of CSV for each image: its class and the next best, and all probabilities."""
    every = torch.arange(len(images))
    best, index = probabilities.topk(min(2, len(classes)), dim=1)
    columns = ["name", "split", "class", "probability", "next_class", "next_probability"]
    rows = []
    for (name, split, _), values, numbers, every_one in zip(
        images.about(every), best.tolist(), index.tolist(), probabilities.tolist(), strict=True
    ):
        guesses = [(classes[number], as_cell(value)) for number, value in zip(numbers, values, strict=True)]
        rows.append([name, split, *(cell for guess in guesses for cell in guess), *map(as_cell, every_one)])
    return write_csv(path, with_classes_after(columns[: 2 + 2 * best.shape[1]], classes), rows)


def with_classes_after(columns: list[str], classes: list[str]) -> list[str]:
    """Columns, then one for each class.

    >>> with_classes_after(["name", "class"], ["cat", "class"])
    ['name', 'class', 'cat', 'probability of class']
    """
    return columns + [f"probability of {name}" if name in columns else name for name in classes]


def as_cell(probability: float) -> str:
    """With six digits, however small: a logarithm is taken of some.

    >>> as_cell(0.25), as_cell(1.2345678e-7)
    ('0.25', '1.23457e-07')
    """
    return f"{probability:.6g}"


def write_sheets(
    images: JoinedSplits, probabilities: Tensor, found: Tensor, classes: list[str], folder: Path
) -> list[Path]:
    """A sheet of the images of each class that was found (N, classes), the most confident first."""
    written = []
    for number in found.any(dim=0).nonzero()[:, 0].tolist():
        confidence, members = probabilities[:, number], found[:, number].nonzero()[:, 0]
        members = members[confidence[members].argsort(descending=True, stable=True)]
        some = members
        if len(members) > SHOWN:  # the first half and the last half
            some = torch.cat([members[: SHOWN // 2], members[-SHOWN // 2 :]])
        about = zip(images.look_closer(some), images.about(some), confidence[some].tolist(), strict=True)
        tiles = [Tile(image, (name, f"{100 * sure:.1f} %")) for image, (name, *_), sure in about]
        order = "the most confident first"
        if len(members) > SHOWN:
            order = f"the {SHOWN // 2} most confident and, framed, the {SHOWN // 2} least"
            for tile in tiles[SHOWN // 2 :]:
                tile.frame = LEAST_CONFIDENT
        title = f"{classes[number]}: {len(members):,} images, {order}"
        # Of a class's name only letters and digits, of any script; the number keeps two of them apart.
        name = re.sub(r"[^\w-]+", "_", classes[number])[:40]
        written.append(write_sheet(in_rows(tiles), folder / f"{number:03}_{name}.png", title))
    return written
