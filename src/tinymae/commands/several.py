"""Images that may have several labels: what probing, fine-tuning and evaluation say of them."""

from pathlib import Path

from torch import Tensor

from ..evaluation.metrics import several_metrics
from ..files import write_csv
from ..training.run import Run

COLUMNS = ["class", "images", "average_precision", "roc_auc"]


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
