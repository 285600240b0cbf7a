"""Classes: those of images matched with those of weights, and what is said of each, for one label an image or more."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor

from ..data.datasets import Dataset, has_several, with_classes
from ..errors import InputError, list_some
from ..evaluation import figures
from ..evaluation.metrics import describe_absent, describe_constant, several_metrics
from ..files import write_csv
from ..interop.load import Model, describe_source
from ..models.classifier import Classifier
from ..training.processes import print_once
from ..training.run import Run

RARE = 0.5  # of an even share of the images: such a class hardly counts in the accuracy


def report_classes(
    run: Run, logits: Tensor, labels: Tensor, classes: list[str], *, split: str, title: str
) -> tuple[dict, Path]:
    """The means of recall and F1 over the classes that the images have, in percent, and the confusion matrix, of logits
    (N, classes); and its picture, which the main process draws. Of several labels an image, the figures and the table
    of `report_several`.
    """
    print_notes(run, labels, classes, split)
    if labels.ndim == 2:
        found, table = report_several(run, logits, labels.cpu(), classes)
        return {f"{name}_{split}": value for name, value in found.items()}, table
    labels, predictions = labels.cpu(), logits.argmax(dim=1).cpu()
    matrix = confusion_matrix(labels, predictions, labels=range(len(classes)))
    picture = run.folder / "confusion_matrix.png"
    if run.is_main:
        figures.confusion_matrix(matrix, classes, picture, title)
    means, counts = class_means(logits, labels, split), labels.unique(return_counts=True)[1]
    if describe_constant(labels, classes) or counts.min() < RARE * len(labels) / len(classes):
        run.print(f"balanced accuracy {means[f'balanced_accuracy_{split}']:.1f} %, the mean recall")
    return means | {"confusion_matrix": matrix.tolist()}, picture


def class_means(logits: Tensor, labels: Tensor, split: str) -> dict[str, float]:
    """The means of recall and F1 over the classes that the images have, in percent."""
    labels, predictions = labels.cpu(), logits.argmax(dim=1).cpu()
    _, recall, f1, _ = precision_recall_fscore_support(
        labels, predictions, labels=labels.unique(), average="macro", zero_division=0
    )
    return {f"balanced_accuracy_{split}": 100 * float(recall), f"macro_f1_{split}": 100 * float(f1)}


def print_notes(run: Run, labels: Tensor, classes: list[str], split: str) -> None:
    """Which classes are not judged, and what a constant guess would score."""
    for note in (describe_absent(labels, len(classes), split), describe_constant(labels, classes)):
        if note:
            run.print(note)


def report_several(run: Run, scores: Tensor, labels: Tensor, classes: list[str]) -> tuple[dict, Path]:
    """Average precision and ROC-AUC of scores (N, classes) against labels (N, classes), in percent, and their table by
    class, from 0 to 1, which the main process writes.
    """
    found, table = several_metrics(scores, labels), run.folder / "per_class.csv"
    counts = labels.long().sum(dim=0).tolist()
    cells = ([None if value is None else f"{value / 100:.4g}" for value in found[name]] for name in ("ap", "auc"))
    if run.is_main:
        columns = ["class", "images", "average_precision", "roc_auc"]
        write_csv(table, columns, zip(classes, counts, *cells, strict=True))
    return found, table


def match_classes(model: Classifier, dataset: Dataset, *, source: str, weights: str | Path | Model) -> Dataset:
    """The dataset with its labels numbered as the classifier's, by the names of the classes, see `spell_like`. Where
    one side has numbers for names, as arrays do, classes are taken by their order, and that is said.

    Raises InputError for images of classes that the classifier does not know.
    """
    weights = describe_source(weights)
    if model.several and not has_several(dataset):  # the other way round, the data are not loaded
        raise InputError(f"{source} has one label an image, weights {weights} know several: give data as in training")
    classes = spell_like(dataset.classes, model.classes)
    if not {*dataset.classes} & {*classes}:
        numbers = [str(number) for number in range(len(classes))]
        if {*dataset.classes} <= {*numbers}:
            meant = [model.classes[int(number)] for number in dataset.classes]
        elif classes == numbers and len(dataset.classes) == len(classes):
            meant = model.classes
        else:
            raise InputError(
                f"weights {weights} know {len(model.classes)} classes ({list_some(model.classes)}), {source} has "
                f"{len(dataset.classes)} others ({list_some(dataset.classes)}): give the same names, or the classes' "
                "numbers from 0, in the order of the weights"
            )
        pairs = list_some([*map(" = ".join, zip(dataset.classes, meant, strict=True))], 3)
        print_once(f"{source} names its classes otherwise than the weights: taken by their order, {pairs}")
        return with_classes(replace(dataset, classes=meant), model.classes)
    assert dataset.labels is not None
    present = dataset.labels.sum(dim=0) if model.several else dataset.labels[dataset.labels >= 0].bincount()
    strangers = [dataset.classes[number] for number in present.nonzero()[:, 0]]
    if strangers := [name for name in strangers if name not in classes]:
        raise InputError(
            f"{source} has images of {list_some(strangers)}, which weights {weights} do not know "
            f"({list_some(model.classes)}): leave them out, or give them one of these names"
        )
    if unmet := [name for name in dataset.classes if name not in classes]:
        print_once(
            f"{source} knows {list_some(unmet)} as well, which weights {weights} do not: no image of these is used here"
        )
    return dataset if dataset.classes == classes else with_classes(dataset, classes)


def spell_like(given: list[str], names: list[str]) -> list[str]:
    """`names` as `given` spells them, where that differs only in case and in spaces around; two that differ in nothing
    else stay as they are.

    >>> spell_like([" Cat", "DOG", "owl", "Owl"], ["dog", "cat", "owl", "fox"])
    ['DOG', ' Cat', 'owl', 'fox']
    """

    def plain(name: str) -> str:
        return name.strip().casefold()

    of_given, of_names = (Counter(map(plain, each)) for each in (given, names))
    spelled = {plain(name): name for name in given if of_given[plain(name)] == of_names[plain(name)] == 1}
    return [spelled.get(plain(name), name) for name in names]
