"""What probing, fine-tuning and evaluation say of each class, where images have one label and where several."""

from pathlib import Path

from sklearn.metrics import confusion_matrix
from torch import Tensor

from ..evaluation import figures
from ..evaluation.metrics import describe_constant, several_metrics
from ..files import write_csv
from ..training.run import Run

COLUMNS = ["class", "images", "average_precision", "roc_auc"]


def report_classes(
    run: Run, logits: Tensor, labels: Tensor, classes: list[str], *, split: str, title: str
) -> tuple[dict, Path]:
    """The confusion matrix of logits (N, classes), and its picture, which the main process draws; of several labels an
    image, the figures and the table of `report_several`.
    """
    if labels.ndim == 2:
        found, table = report_several(run, logits, labels.cpu(), classes)
        return {f"{name}_{split}": value for name, value in found.items()}, table
    if constant := describe_constant(labels, classes):
        run.print(constant)
    matrix = confusion_matrix(labels.cpu(), logits.argmax(dim=1).cpu(), labels=range(len(classes)))
    picture = run.folder / "confusion_matrix.png"
    if run.is_main:
        figures.confusion_matrix(matrix, classes, picture, title)
    return {"confusion_matrix": matrix.tolist()}, picture


def report_several(run: Run, scores: Tensor, labels: Tensor, classes: list[str]) -> tuple[dict, Path]:
    """Average precision and ROC-AUC of scores (N, classes) against labels (N, classes), and their table by class, which
    the main process writes.
    """
    found, table = several_metrics(scores, labels), run.folder / "per_class.csv"
    counts = labels.long().sum(dim=0).tolist()
    cells = ([None if value is None else f"{value:.2f}" for value in found[name]] for name in ("ap", "auc"))
    if run.is_main:
        write_csv(table, COLUMNS, zip(classes, counts, *cells, strict=True))
    return found, table
