"""Any torch Dataset: images that it gives as Pillow images, tensors or arrays, with or without labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import InputError
from ..images import fit_array, from_pillow, to_depth
from .arrays import require_few_classes, to_array
from .source import PartedSource, Reading


class TorchSource(PartedSource):
    """Map-style torch Datasets, one after another; an item is an image, or an image and a label.

    Their transforms should leave the pixels alone: images are resized here, and augmented in training.
    """

    label_remedy = "let its items be (image, label)"

    def __init__(self, name: str, parts: Sequence[Any], *, shape: tuple[int, int, int], reading: Reading):
        for part in parts:
            if not (hasattr(part, "__len__") and hasattr(part, "__getitem__")):
                raise InputError(f"data {type(part).__name__} has no length: give a map-style torch Dataset")
        super().__init__(name, parts)
        self.kind, self.image_shape = "torch Dataset", shape
        self.pixel_range, self.fit = reading.pixel_range, reading.fit
        if not len(self):
            raise InputError(f"data {name} has no images")
        first = self.item(0)
        if isinstance(first, dict):
            raise InputError(
                f"data {name} has items with the keys {', '.join(map(str, first))}: let its __getitem__ return (image, "
                "label), or the image alone"
            )
        image = first[0] if isinstance(first, tuple | list) else first
        if isinstance(image, Image.Image):
            deep = image.mode.startswith(("I", "F"))
        else:
            image = to_array(image, f"image {name} item 0") if isinstance(image, Tensor) else np.asarray(image)
            deep = image.dtype not in (np.uint8, np.bool_)
            if reading.image_size is None and image.ndim in (2, 3):  # they have a size, as those of an array
                self.image_shape = shape[0], *self.to_channels_last(image, f"{name} item 0").shape[:2]
        self.depth = "uint16" if deep else "uint8"
        self.shown = f"items of {type(parts[0]).__name__}"
        has_label = isinstance(first, tuple | list) and len(first) > 1
        unlabelled = getattr(parts[0], "lists_labels", False) and parts[0].labels is None
        if has_label and not unlabelled:
            labels = self.find_labels()
            if (labels >= 0).any():  # else none has a label
                count = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
                require_few_classes(count, len(self), f"data {name}: labels")
                self.labels, self.classes = labels, list(map(str, getattr(parts[0], "classes", range(count))))
                if len(self.classes) < count or (labels.ndim == 2 and len(self.classes) > count):
                    raise InputError(
                        f"data {name} has labels of {count} classes, and {len(self.classes)} in its attribute "
                        "`classes`: give it a name for each"
                    )

    def item(self, row: int) -> Any:
        """The item of a row."""
        ((part,), (place,)) = self.locate(np.array([row]))
        return self.parts[part][int(place)]

    def find_labels(self) -> np.ndarray:
        """From the data set's own list where it has one; else every item is asked once."""
        listed = [labels_of(part) for part in self.parts]
        if all(each is not None and len(each) == len(part) for each, part in zip(listed, self.parts, strict=True)):
            return np.concatenate(listed)  # type: ignore[arg-type]
        return np.array([self.label(row) for row in range(len(self))], dtype=np.int64)

    def label(self, row: int) -> int:
        """The label of a row. Raises InputError for what is no number."""
        label = self.item(row)[1]
        try:
            return int(label)
        except (TypeError, ValueError, RuntimeError):
            remedy = "give numbers from 0, -1 for none; the data set's attribute `classes` names them"
            if isinstance(label, list | tuple) or getattr(label, "ndim", None):
                remedy = "for several an image, give the data set an attribute `targets`, (N, classes) of 0 and 1"
            raise InputError(f"data {self.name} item {row} has the label {label!r}: {remedy}") from None

    def read(self, rows: np.ndarray) -> Tensor:
        """See `Source.read`."""
        return torch.stack([self.convert(self.item(int(row)), int(row)) for row in rows])

    def convert(self, item: Any, row: int) -> Tensor:
        """An item's image as pixels."""
        image, name = item[0] if isinstance(item, tuple | list) else item, f"{self.name} item {row}"
        if isinstance(image, Image.Image):
            return from_pillow(image, self.image_shape, self.depth, self.pixel_range, self.fit, name)
        values = to_array(image, f"image {name}") if isinstance(image, Tensor) else np.asarray(image)
        if values.dtype.kind not in "buif":
            raise InputError(f"image {name} is {values.dtype}: give pixels, which are uint8, uint16 or floats")
        values = self.to_channels_last(values, name)
        return fit_array(to_depth(values, self.depth, self.pixel_range, name), self.image_shape, self.fit, name)

    def to_channels_last(self, values: np.ndarray, name: str) -> np.ndarray:
        """Values (H, W, C) of (H, W), (C, H, W) or (H, W, C). Raises InputError for another number of channels."""
        channels = self.image_shape[0]
        values = values[None] if values.ndim == 2 else values
        if values.ndim == 3 and values.shape[0] == channels:
            values = np.moveaxis(values, 0, 2)
        if values.ndim != 3 or values.shape[2] != channels:
            remedy = "give (C, H, W) or (H, W, C)"
            if values.ndim == 3:
                found = min(values.shape[0], values.shape[2])
                remedy = f"give in_channels {found} when pretraining, or channels {found} to load_dataset"
            raise InputError(
                f"image {name} has shape {values.shape}, not {channels} channel{'s'[: channels != 1]}: {remedy}"
            )
        return values


def labels_of(part: Any) -> np.ndarray | None:
    """Labels (N,) of a set of torchvision's; None where there are none, which STL-10 marks by -1."""
    for attribute in ("targets", "labels", "_labels"):
        if (labels := getattr(part, attribute, None)) is not None:
            try:
                numbers = np.asarray(labels).astype(np.int64)
            except (TypeError, ValueError):  # names, which are numbered in its items
                return None
            if numbers.ndim == 2 and numbers.shape[1] == 1:
                numbers = numbers[:, 0]
            if numbers.ndim == 2:  # of several an image
                return numbers.astype(np.uint8) if np.isin(numbers, (0, 1)).all() else None
            return None if (numbers < 0).all() else numbers
    try:
        return np.array([label for _, label in part._samples], dtype=np.int64)
    except (AttributeError, TypeError, ValueError):  # it has none, or what a set of the user's own calls so
        return None
