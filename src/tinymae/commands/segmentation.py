"""The linear probe of segmentation: a 1x1 convolution on frozen feature maps, learned from masks."""

import hashlib
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.datasets import Dataset, StreamedDataset
from ..data.masks import IGNORED, read_masks
from ..errors import InputError
from ..evaluation import figures
from ..evaluation.probes import choose_probe
from ..evaluation.segmentation import Segmenter, patch_pixels, predict_masks, segmentation_fits, segmentation_metrics
from ..files import write_tensors
from ..interop.load import load_mae
from ..models.mae import MaskedAutoencoder
from ..training.run import Run
from .features import remark_on_known, require_fit, split_features
from .probing import LinearProbeSettings, score_with_controls
from .results import Result

SHOWN = 32  # images on the sheet


def probe_segmentation(settings: LinearProbeSettings) -> Result[Segmenter]:
    """Score the frozen feature maps of a ViT on masks: see `linear_probe`."""
    settings, accelerator, model = settings.begin(load_mae)
    size, channels = model.image_size, model.in_channels
    options = {"image_size": size, "channels": channels, "masked": True, "no_test": settings.no_test}
    splits = settings.load_splits(settings.split_names, **options)
    require_fit(model, splits["train"])
    remark_on_known(model, splits[settings.split_names[-1]])
    splits = settings.choose_labels(splits)
    masks, num_classes = load_masks(settings, splits)
    fingerprint = hashlib.sha256(b"".join(part.numpy().tobytes() for part in masks.values())).hexdigest()
    with settings.open_run(accelerator, splits=splits, weights=model, masks_sha256=fingerprint) as run:
        splits = {name: split.to(accelerator.device) for name, split in splits.items()}
        masks = {name: part.to(accelerator.device) for name, part in masks.items()}
        results, head, predictions = probe(settings, model, run, splits, masks, num_classes)
        judged = [*splits][-1]
        title = f"segmentation of {settings.data_name} {judged}, mean IoU {results[f'miou_{judged}']:.1f} %"
        if run.is_main:
            write_sheet(settings, splits[judged], masks[judged], predictions, run, title)
            write_tensors(head.state_dict(), run.folder / "head.safetensors")
        run.finish(results, [run.folder / name for name in ("masks.png", "head.safetensors")])
    return Result(Segmenter(model, head, classes=results["classes"]).eval(), results, run.folder)


def load_masks(settings: LinearProbeSettings, splits: dict[str, Dataset]) -> tuple[dict[str, Tensor], int]:
    """The masks of each split, and how many classes those of train have. Raises InputError for fewer than two."""
    assert settings.masks is not None  # resolved
    for split in splits.values():
        if isinstance(split, StreamedDataset) and split.skip_unreadable:
            raise InputError("skip_unreadable: images that are read batch by batch would get the masks of others")
    train = read_masks(settings.masks, splits["train"], fit=settings.fit or "crop")
    found = train[train != IGNORED].unique().tolist()
    if len(found) < 2:
        raise InputError(
            f"masks {settings.masks} have one class alone in train ({found}): their pixels are the numbers of classes, "
            f"from 0, and {IGNORED} is a pixel without a class"
        )
    num_classes = found[-1] + 1
    others = {
        name: read_masks(settings.masks, split, classes=num_classes, fit=settings.fit or "crop")
        for name, split in splits.items()
        if name != "train"
    }
    return {"train": train} | others, num_classes


def probe(
    settings: LinearProbeSettings, model: MaskedAutoencoder, run: Run, splits: dict[str, Dataset],
    masks: dict[str, Tensor], num_classes: int,
) -> tuple[dict, nn.Module, Tensor]:  # fmt: skip
    """Scores and the controls' scores, the head that was chosen, and its predictions of the last split."""
    judged, size = [*splits][-1], masks["val"].shape[1:]
    judge = partial(segmentation_metrics, num_classes=num_classes)

    def score_one(name: str, encoder: MaskedAutoencoder | None) -> tuple[dict, nn.Module, Tensor]:
        function = partial(patch_pixels, patch_size=model.patch_size) if encoder is None else encoder.encode_dense
        maps = split_features(function, splits, run.accelerator, **settings.computing)
        head, chosen, tried = choose_probe(
            segmentation_fits(maps["train"], masks["train"], num_classes=num_classes, seed=settings.seed),
            lambda head: judge(predict_masks(head, maps["val"], size), masks["val"])["miou"],
        )
        row: dict = {"chosen": chosen, "tried_on_val": {str(name): value for name, value in tried.items()},
                     "num_features": maps["train"].shape[1]}  # fmt: skip
        for split in [*splits][1:]:  # validation, then test
            predictions = predict_masks(head, maps[split], size)
            row |= {f"{name}_{split}": value for name, value in judge(predictions, masks[split]).items()}
        run.print(
            f"{name:12} mean IoU {row[f'miou_{judged}']:.2f} %, pixel accuracy {row[f'pixel_accuracy_{judged}']:.2f} % "
            f"of the {judged} images ({row['num_features']} features a patch, weight decay {chosen:g})"
        )
        return row, head, predictions

    scores, head, predictions = score_with_controls(settings, model, run.accelerator, score_one)
    classes = [str(number) for number in range(num_classes)]
    about = {"classes": classes, "num_labels": len(splits["train"]), "num_val_labels": len(splits["val"])}
    return scores | about, head, predictions


def write_sheet(
    settings: LinearProbeSettings, dataset: Dataset, masks: Tensor, predictions: Tensor, run: Run, title: str
) -> Path:
    """Some images beside their masks and the predicted ones."""
    rows = torch.linspace(0, len(dataset) - 1, min(SHOWN, len(dataset))).long()
    images, channels = dataset[rows][0].cpu(), settings.show_channels
    columns = {
        "image": figures.viewable(images, channels, figures.display_limits(images, channels)),
        "mask": figures.colour_classes(masks[rows.to(masks.device)]),
        "predicted": figures.colour_classes(predictions[rows.to(masks.device)]),
    }
    return figures.reconstruction_sheet(columns, run.folder / "masks.png", title)
