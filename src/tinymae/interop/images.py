"""One image for a model, read as its own were."""

import os
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..data.images import read_image
from ..data.unreadable import needed
from ..errors import InputError
from .load import Model


def load_image(source: str | Path | bytes | Image.Image, model: Model) -> Tensor:
    """An image file, its bytes or an image of Pillow as pixels (C, H, W), uint8 or uint16, of a model's size and
    channels.

    It is read as the commands read the images that the model learned from: upright, transparent parts onto white,
    resized and cropped or padded. A large JPEG that Pillow has opened is decoded whole, which a file is not: pixels
    differ by a level or two. The model takes one image, or several that are stacked.

    >>> import io
    >>> from PIL import Image
    >>> from tinymae import MaskedAutoencoder
    >>> model = MaskedAutoencoder(image_size=8, patch_size=2, depth=1).eval()
    >>> Image.new("L", (30, 20)).save(upload := io.BytesIO(), "png")
    >>> image = load_image(upload.getvalue(), model)
    >>> image.shape, model.encode(image).shape
    (torch.Size([3, 8, 8]), torch.Size([1, 192]))

    Raises UnreadableImage, an InputError, for what is no image, InputError for one of other channels.
    """
    shape, options = (model.in_channels, *model.image_size), {"depth": "uint8"} | model.reading
    name = None
    if isinstance(source, bytes | Image.Image):
        name = "of bytes" if isinstance(source, bytes) else "of Pillow"
    elif isinstance(source, str | os.PathLike):
        source = Path(source)
    else:
        raise InputError(f"source is of type {type(source).__name__}: give an image file, its bytes or a Pillow image")
    with needed():
        return read_image(source, shape, name=name, **options)
