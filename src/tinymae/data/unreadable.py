"""Images that cannot be read, and what is raised for them."""

import struct
import zlib

from PIL import Image

from ..errors import InputError, first_line, ran_out_of_memory

# What Pillow raises for files that are no image, are cut short, lie about their size, or are absurdly large.
UNREADABLE = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError, OverflowError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip


class UnreadableImage(InputError):
    """One image of many that cannot be read."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"image {name} cannot be read ({reason}): repair it, remove it, or give --skip-unreadable")


class OtherChannels(UnreadableImage):
    """One image of many that has another number of channels than is wanted."""

    def __init__(self, message: str):
        InputError.__init__(self, f"{message}, remove it, or give --skip-unreadable")


def unreadable(name: str, error: Exception) -> Exception:
    """What to raise for an error met in an image: see `errors.refusal`."""
    return error if ran_out_of_memory(error) else UnreadableImage(name, first_line(error))


def require_safe_size(height: int, width: int) -> None:
    """Raises one of UNREADABLE for more pixels than Pillow thinks safe: it warns of them, and reads twice as many."""
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS")
