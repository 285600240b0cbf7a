"""Images that cannot be read, and what is raised for them."""

import contextlib
import struct
import zlib
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from ..errors import InputError, first_line, ran_out_of_memory

# What Pillow raises for files that are no image, are cut short, lie about their size, or are absurdly large.
UNREADABLE = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError, OverflowError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip


OF_MANY = ", remove it, or give --skip-unreadable"


class UnreadableImage(InputError):
    """An image that cannot be read."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"image {name} cannot be read ({reason}): repair it{OF_MANY}")


class OtherChannels(UnreadableImage):
    """An image that has another number of channels than is wanted."""

    def __init__(self, message: str):
        InputError.__init__(self, message + OF_MANY)


@contextlib.contextmanager
def needed() -> Iterator[None]:
    """Inside, an image is not one of many: what is raised does not say how to leave it out."""
    try:
        yield
    except UnreadableImage as error:
        error.args = (str(error).removesuffix(OF_MANY),)
        raise


def unreadable(name: str, error: Exception) -> Exception:
    """What to raise for an error met in an image: see `errors.refusal`."""
    if ran_out_of_memory(error):
        return error
    # Pillow's own words have the address of a buffer in them.
    known = not isinstance(error, UnidentifiedImageError)
    return UnreadableImage(name, first_line(error) if known else "it is in no format that Pillow knows")


def require_safe_size(height: int, width: int) -> None:
    """Raises one of UNREADABLE for more pixels than Pillow thinks safe: it warns of them, and reads twice as many."""
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS")
