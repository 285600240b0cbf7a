"""Score frozen features: k-NN and a classifier trained on them, on the encoder of a pretraining run."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..data.datasets import Dataset, has_several, with_label
from ..evaluation.metrics import describe_score, with_intervals
from ..evaluation.neighbours import knn_scores
from ..evaluation.probes import choose_probe, label_score, linear_fits, mlp_fits, predict_score
from ..files import digest, write_tensors
from ..interop.load import load_autoencoder
from ..models.base import Autoencoder
from ..models.classifier import Classifier, build_classifier, feature_function, fold_probe
from ..tensors import to_unit
from ..training.run import Run
from .by_class import class_means, report_classes
from .features import remark_on_known, require_fit, split_features
from .fields import keywords_of
from .probing import LinearProbeSettings, score_with_controls
from .results import Result
from .segmentation import probe_segmentation

VALUES = 4096  # of an image, of which the raw pixels that are compared with are a linear probe's features

Kept = dict[tuple[str, str], dict[str, Tensor]]  # of each split, by the encoder's digest, "" of pixels, and the pooling


def run(settings: LinearProbeSettings, kept: Kept | None = None) -> Result[Any]:
    """Score the frozen features of a pretrained encoder by k-NN and a probe.

    Features are extracted once, by the unmasked encoder. The head's regularisation is chosen on validation; test is
    scored once, or with no_test not even loaded. With a linear head, `.model` and the output folder are a classifier:
    of a ViT, a stock timm one.

    Where an image may have several labels (a table's `cat;dog`), the loss is the sum of the classes' binary
    cross-entropies and the score their mean average precision.

    With `masks` a 1x1 convolution on the feature maps of a ViT, upsampled bilinearly, is scored by mean
    intersection over union; `.model` gives the logits of each pixel's class.

    A study that trains several heads on the same images hands the features on in `kept`.

    Raises InputError for settings or data that cannot work.
    """
    if settings.masks is not None:
        return probe_segmentation(settings)
    settings, accelerator, model = settings.begin(load_autoencoder)
    model.require_pool(settings.pool)
    loaded = settings.load_labelled(image_size=model.image_size, channels=model.in_channels)
    splits = {name: with_label(split) for name, split in loaded.items()}
    require_fit(model, splits["train"])
    remark_on_known(model, splits[settings.split_names[-1]])
    chosen = settings.choose_labels(splits)
    with settings.open_run(accelerator, splits=splits, weights=model) as run:
        splits = {name: split.to(accelerator.device) for name, split in chosen.items()}
        results, head, logits = probe(settings, model, run, splits, {} if kept is None else kept)
        return finish(settings, model, run, splits, results, head, logits)


linear_probe = keywords_of(run, LinearProbeSettings)


def probe(
    settings: LinearProbeSettings, model: Autoencoder, run: Run, splits: dict[str, Dataset], kept: Kept
) -> tuple[dict, nn.Module, Tensor]:
    """Scores and the controls' scores, the chosen head, and its logits."""
    judged, several = list(splits)[-1], has_several(splits["train"])

    def score_one(name: str, encoder: Autoencoder | None) -> tuple[dict, nn.Module, Tensor]:
        key = "" if encoder is None else digest(encoder.state_dict()), settings.pool
        if key not in kept:
            function = few_values if encoder is None else feature_function(encoder, pool=settings.pool)
            kept[key] = split_features(function, splits, run.accelerator, **settings.computing)
        row, head, logits = score(settings, kept[key], splits, run)
        neighbours, found, count = row[f"knn_{judged}"], row[f"probe_{judged}"], row[f"num_{judged}_labels"]
        what = describe_score(found, count, judged, several=several)
        run.print(
            f"{name:12} k-NN {neighbours:.{1 if count < 1000 else 2}f} %, {settings.head} {what}; "
            f"{row['num_features']} features, {row['num_labels']} labels, regularisation {row['chosen']:g}"
        )
        return row, head, logits

    return score_with_controls(settings, model, run.accelerator, score_one)


def few_values(images: Tensor) -> Tensor:
    """Pixels (B, C, H, W) as values (B, F) in [0, 1], averaged over neighbours until they are at most VALUES."""
    channels, height, width = images.shape[1:]
    values = to_unit(images)
    shrink = max(1.0, (channels * height * width / VALUES) ** 0.5)
    size = (max(1, int(height / shrink)), max(1, int(width / shrink)))
    return (values if shrink == 1 else nn.functional.adaptive_avg_pool2d(values, size)).flatten(1)


def score(
    settings: LinearProbeSettings, features: dict[str, Tensor], splits: dict[str, Dataset], run: Run
) -> tuple[dict, nn.Module, Tensor]:
    """k-NN and the head: (scores, the chosen head, its logits on the last split)."""
    device = features["train"].device
    labels = {name: split.labels.to(device) for name, split in splits.items() if split.labels is not None}
    num_classes = len(splits["train"].classes)
    fits = partial(mlp_fits, seed=settings.seed) if settings.head == "mlp" else linear_fits
    head, chosen, tried = choose_probe(
        fits(features["train"], labels["train"], num_classes=num_classes),
        lambda probe: predict_score(probe, features["val"], labels["val"]),
        tolerance=0.0 if labels["val"].ndim == 2 else 100 / len(labels["val"]),  # an image has no part of a mean AP
        desc=f"{settings.head} probes" if run.is_main else None,
    )
    neighbours = partial(knn_scores, features["train"], labels["train"], num_classes=num_classes)
    scores: dict = {}
    for split in list(splits)[1:]:  # validation, then test
        with torch.no_grad():
            logits = head(features[split])
        given = {f"knn_{split}": neighbours(features[split]), f"probe_{split}": logits}
        found = {name: label_score(values, labels[split]) for name, values in given.items()}
        count = scores[f"num_{split}_labels"] = len(labels[split])
        scores |= with_intervals(found, count) if labels[split].ndim == 1 else found
    if labels[split].ndim == 1:
        scores |= class_means(logits, labels[split], split)
    scores |= {
        "chosen": chosen,
        "tried_on_val": {str(setting): value for setting, value in tried.items()},
        "num_features": features["train"].shape[1],
        "num_labels": len(labels["train"]),
    }
    return scores, head, logits


def finish(
    settings: LinearProbeSettings, model: Autoencoder, run: Run, splits: dict[str, Dataset], results: dict,
    head: nn.Module, logits: Tensor,
) -> Result[Classifier | nn.Module]:  # fmt: skip
    """Write the head, and what is said of each class."""
    judged, classes = list(splits)[-1], splits["train"].classes
    labels = splits[judged].labels
    assert labels is not None
    title = f"{settings.head} probe on {settings.data_name} {judged}, {results[f'probe_{judged}']:.1f} %"
    title += f" of {len(labels):,} images"
    by_class, shown = report_classes(run, logits, labels, classes, split=judged, title=title)
    results |= {"classes": classes} | by_class
    names = [shown.name]
    if settings.head == "linear":
        several = has_several(splits["train"])
        classifier = build_classifier(model, classes=classes, several=several, pool=settings.pool)
        assert isinstance(head, nn.Sequential)
        fold_probe(classifier.head, head)
        classifier.reading = settings.reading_kept(splits["train"])
        if run.is_main:
            classifier.write_weights(run.folder)
        head = classifier.eval()
        names += ["model.safetensors", "config.json"]
    else:
        names.append("head.safetensors")
        if run.is_main:
            write_tensors(head.state_dict(), run.folder / names[-1])
    run.finish(results, [run.folder / name for name in names])
    return Result(head, results, run.folder)
