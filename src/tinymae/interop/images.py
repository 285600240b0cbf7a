"""One image for a model, read as its own were."""

from pathlib import Path

from torch import Tensor

from ..data.images import read_image
from .load import Model


def load_image(source: str | Path | bytes, model: Model) -> Tensor:
    """An image file, or the bytes of one, as pixels (C, H, W), uint8 or uint16, of a model's size and channels.

    It is read as the commands read the images that the model learned from: upright, transparent parts onto white,
    resized and cropped or padded. The model takes one image, or several that are stacked.

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
    content, name = (source, "of bytes") if isinstance(source, bytes) else (Path(source), str(source))
    options = {"depth": "uint8", "name": name} | model.reading
    return read_image(content, (model.in_channels, *model.image_size), **options)
