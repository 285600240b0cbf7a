"""Images in the formats of files, wherever their bytes are: what they are is seen in some of their headers."""

import contextlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..fit import Fit, describe_fit, fitted_size
from ..images import largest_value, look_at_header, read_image, remark_on_range
from ..unreadable import UNREADABLE
from .source import Reading, Source, some_rows

LOOKED_AT = 16  # headers that decide on the depth and describe the images
Content = tuple[Path | bytes, str]  # a file, or its bytes, and its name for messages


class EncodedSource(Source):
    """Images that are decoded when they are read. A subclass says where they are."""

    pixel_range: tuple[float, float] | None
    fit: Fit

    def contents(self, rows: np.ndarray) -> list[Content]:
        """The encoded images of these rows. Raises UnreadableImage for one that is missing."""
        raise NotImplementedError

    def read(self, rows: np.ndarray) -> Tensor:
        """See `Source.read`."""
        shape, depth, pixel_range, fit = self.image_shape, self.depth, self.pixel_range, self.fit
        return torch.stack([
            read_image(content, shape, depth=depth, pixel_range=pixel_range, fit=fit, name=name)
            for content, name in self.contents(rows)
        ])  # fmt: skip

    def settle(self, reading: Reading) -> None:
        """How they are read: of the depth that most have, seen in some, which are described as well."""
        self.image_shape, self.pixel_range, self.fit = reading.shape, reading.pixel_range, reading.fit
        found = []
        for row in some_rows(len(self), LOOKED_AT):
            with contextlib.suppress(*UNREADABLE):  # it is refused or left out when it is read
                ((content, name),) = self.contents(np.array([row]))
                header = look_at_header(content, self.image_shape[0], name)
                fitted_size(header[1:3], self.image_shape[1:], self.fit, name)
                found.append(((content, name), header))
        sizes = Counter(
            f"{width} x {height} pixels, {channels} channel{'s'[: channels != 1]} of {values}"
            for _, (channels, height, width, values) in found
        )
        self.shown = ", ".join(shown for shown, _ in sizes.most_common(2)) + (" and others" if len(sizes) > 2 else "")
        bits = [8 * np.dtype(values).itemsize for _, (*_, values) in found]
        if (deep := sum(each > 8 for each in bits)) and 2 * deep >= len(bits):
            self.depth = "uint16"
        kept = 8 * np.dtype(self.depth).itemsize
        if odd := [each for each in bits if (each > 8) != (kept > 8)]:
            self.shown += f", some of {odd[0]} bits, converted to {kept}"
        if self.depth == "uint16" and self.pixel_range is None:
            self.shown += remark_on_range(self.largest_values([each for each, (*_, v) in found if v == "uint16"]), None)
        size = self.image_shape[1:]
        fits = (describe_fit((height, width), size, self.fit, self.name) for _, (_, height, width, _) in found)
        self.shown += next(filter(None, fits), "")

    def largest_values(self, contents: list[Content]) -> np.ndarray:
        """Of 16-bit images, uint16; 0 of one that cannot be read."""
        values = [0]
        for content, name in contents:
            with contextlib.suppress(*UNREADABLE):
                values.append(largest_value(content, self.image_shape, name))
        return np.array(values, dtype=np.uint16)
