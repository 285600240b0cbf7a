"""Batched augmentation: pixels (B, C, H, W) in, pixels of the same type out, on whatever device the images are.

Every image gets draws of its own, from a `Draws` object, so a batch is augmented by a few tensor operations.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import equalize

from ..errors import InputError
from ..randomness import Draws
from ..tensors import LEVELS, constant, movable, pick_pixels, to_device


def random_flip(images: Tensor, draws: Draws) -> Tensor:
    """Mirror left and right, each image with probability 1/2."""
    flipped = draws.uniform() < 0.5
    signed = movable(images)
    return torch.where(flipped[:, None, None, None], signed.flip(3), signed).view(images.dtype)


def random_rotate90(images: Tensor, draws: Draws) -> Tensor:
    """Turn square images by 0, 90, 180 or 270 degrees, each with probability 1/4."""
    quarters = (draws.uniform() * 4).floor()[:, None, None, None]
    turned = movable(images)
    turned = torch.where(quarters % 2 == 1, turned.rot90(dims=(2, 3)), turned)
    return torch.where(quarters >= 2, turned.flip(2, 3), turned).view(images.dtype)


def padded_crop(images: Tensor, draws: Draws, padding: int) -> Tensor:
    """Shift each image by up to `padding` pixels either way; what comes in at the border mirrors the image.

    Raises InputError for a padding that is negative, or as large as a side.
    """
    if not 0 <= padding < min(images.shape[2:]):
        raise InputError(f"crop_padding {padding} is not within 0 and the {min(images.shape[2:])} pixels of a side")
    shifts = (draws.uniform(2) * (2 * padding + 1)).long().clamp(max=2 * padding) - padding  # (B, 2)
    rows, columns = (
        reflect(torch.arange(size, device=images.device) + shift[:, None], size)
        for size, shift in zip(images.shape[2:], shifts.unbind(1), strict=True)
    )
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return pick_pixels(images, (image, channel, rows[:, None, :, None], columns[:, None, None, :]))


def reflect(index: Tensor, size: int) -> Tensor:
    """Fold indices outside 0..size-1 back in, without repeating the border."""
    last = size - 1
    return last - (last - index.abs()).abs()


def random_resized_crop(
    images: Tensor,
    draws: Draws,
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Cut out a part, of a relative area in `scale` and an aspect in `ratio`, and resize it (bilinear) to the old size.

    As torchvision's RandomResizedCrop (Inception crop), except that a cut too wide for the image is narrowed to it
    instead of drawn again.
    """
    area, aspect, down, right = draws.uniform(4).unbind(1)
    area = scale[0] + (scale[1] - scale[0]) * area
    low, high = (math.log(r) for r in ratio)
    aspect = (low + (high - low) * aspect).exp()  # width / height
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    matrix = images.new_zeros(len(images), 2, 3, dtype=torch.float32)
    matrix[:, 0, 0], matrix[:, 1, 1] = width, height
    matrix[:, 0, 2], matrix[:, 1, 2] = (2 * right - 1) * (1 - width), (2 * down - 1) * (1 - height)
    return to_pixels(resample(images.float(), matrix, padding_mode="border"), images.dtype)


def random_erasing(images: Tensor, draws: Draws, *, probability: float) -> Tensor:
    """Fill one rectangle of an image with noise, with `probability` (Zhong et al., arXiv 1708.04896).

    It covers 2 % to a third of the image, and one of its sides is at most 3.3 times the other.
    """
    size_h, size_w = images.shape[2:]
    chance, area, aspect, down, right = draws.uniform(5).unbind(1)
    area = (0.02 + (1 / 3 - 0.02) * area) * size_h * size_w
    low, high = math.log(0.3), math.log(1 / 0.3)
    aspect = (low + (high - low) * aspect).exp()
    height = (area * aspect).sqrt().round().clamp(1, size_h)
    width = (area / aspect).sqrt().round().clamp(1, size_w)
    top, left = (down * (size_h - height + 1)).floor(), (right * (size_w - width + 1)).floor()

    def inside(start: Tensor, length: Tensor, size: int) -> Tensor:
        places = torch.arange(size, device=images.device)
        return (places >= start[:, None]) & (places < (start + length)[:, None])  # (B, size)

    erased = inside(top, height, size_h)[:, None, :, None] & inside(left, width, size_w)[:, None, None, :]
    erased &= (chance < probability)[:, None, None, None]
    noise = (draws.uniform(*images.shape[1:]) * (LEVELS[images.dtype] + 1)).to(images.dtype)
    return torch.where(erased, movable(noise), movable(images)).view(images.dtype)


def color_jitter(images: Tensor, draws: Draws, *, strength: float) -> Tensor:
    """SimCLR's colour distortion (Chen et al., arXiv 2002.05709, appendix A); it used `strength` 0.5 on CIFAR-10.

    With probability 0.8 brightness, contrast and saturation change by factors in 1 +- 0.8 x strength and the hue by up
    to 0.2 x strength of a turn, in this order; then, with probability 0.2, the image turns grey. Grey images know
    brightness and contrast alone. Images are uint8 of 1 or 3 channels.
    """
    chances = draws.uniform(6)
    jittered, turned_grey = (chances[:, k, None, None, None] < ratio for k, ratio in ((4, 0.8), (5, 0.2)))
    signed = 2 * chances - 1
    brightness, contrast, saturation = ((1 + 0.8 * strength * signed[:, :3]).clamp(min=0)).unbind(1)
    changed = adjust_contrast(adjust_brightness(images.float(), brightness), contrast)
    if images.shape[1] == 3:
        changed = rotate_hue(adjust_saturation(changed, saturation), 0.2 * strength * signed[:, 3])
    changed = torch.where(jittered, changed, images.float())
    return to_pixels(torch.where(turned_grey, to_grey(changed), changed), images.dtype)


# ---- TrivialAugment: Mueller and Hutter, arXiv 2103.10158, in its wide version


def trivial_augment(images: Tensor, draws: Draws) -> Tensor:
    """Apply to each image, uint8 of 1 or 3 channels, one of TrivialAugment's 14 operations, at a strength uniform over
    its range ("wide").
    """
    # Chosen and sorted on the CPU, as the number of images that get an operation shapes its tensors.
    chosen = (draws.uniform_on_cpu() * len(TRIVIAL_AUGMENT)).long()
    counts = chosen.bincount(minlength=len(TRIVIAL_AUGMENT)).tolist()
    order = to_device(chosen.argsort(stable=True), images.device)
    strength, sign = draws.uniform(2)[order].unbind(1)
    signed = torch.where(sign < 0.5, strength, -strength)
    done = []
    for (operation, takes_sign), some, unsigned_level, signed_level in zip(
        TRIVIAL_AUGMENT.values(), images[order].split(counts), strength.split(counts), signed.split(counts), strict=True
    ):
        if len(some):
            done.append(to_pixels(operation(some.float(), signed_level if takes_sign else unsigned_level), torch.uint8))
    return torch.empty_like(images).index_copy_(0, order, torch.cat(done))


def to_pixels(images: Tensor, dtype: torch.dtype) -> Tensor:
    return images.round().clamp(0, LEVELS[dtype]).to(dtype)


def resample(images: Tensor, matrix: Tensor, padding_mode: str = "zeros") -> Tensor:
    """Images (B, C, H, W) seen through affine maps (B, 2, 3) from output to input places, in [-1, 1] coordinates."""
    grid = nn.functional.affine_grid(matrix, list(images.shape), align_corners=False)
    if padding_mode == "border" and images.device.type == "mps":  # which lacks it before torch 2.13
        height, width = images.shape[2:]
        inside = constant((1 - 1 / width, 1 - 1 / height), images.device)  # as far out as the centres of pixels
        grid, padding_mode = grid.clamp(-inside, inside), "zeros"
    return nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False)


def affine(images: Tensor, entries: dict[tuple[int, int], Tensor]) -> Tensor:
    """Resample by the identity map with some (row, column) entries of its matrix replaced, in pixel units."""
    height, width = images.shape[2:]
    matrix = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
    for (row, column), value in entries.items():
        matrix[:, row, column] = value
    # Pixel units to [-1, 1] units: a pixel is 2 / width wide and 2 / height high.
    matrix[:, 0, 1] *= height / width
    matrix[:, 1, 0] *= width / height
    matrix[:, 0, 2] *= 2 / width
    matrix[:, 1, 2] *= 2 / height
    return resample(images, matrix)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn about the centre, counter-clockwise."""
    angle = torch.deg2rad(degrees)
    sin, cos = angle.sin(), angle.cos()
    return affine(images, {(0, 0): cos, (0, 1): -sin, (1, 0): sin, (1, 1): cos})


def blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """`factor` (B,) of the image and 1 - factor of another."""
    return (other + (images - other) * factor[:, None, None, None]).clamp(0, 255)


def to_grey(images: Tensor) -> Tensor:
    """Luma (B, 1, H, W) by ITU-R 601 for RGB; the mean of the channels otherwise."""
    if images.shape[1] == 3:
        red, green, blue = images.split(1, dim=1)
        return 0.2989 * red + 0.587 * green + 0.114 * blue
    return images.mean(1, keepdim=True)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    return blend(images, torch.zeros_like(images), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    return blend(images, to_grey(images).floor(), factor)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    return blend(images, to_grey(images).floor().mean(dim=(1, 2, 3), keepdim=True), factor)


YIQ = ((0.2989, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))  # from RGB
RGB = tuple(map(tuple, torch.linalg.inv(torch.tensor(YIQ)).tolist()))  # from YIQ


def rotate_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the chroma of RGB images by `turns` (B,) of a full circle in YIQ space: luma stays, unless pixels clip."""
    to_yiq, to_rgb = constant(YIQ, images.device), constant(RGB, images.device)
    angle = 2 * math.pi * turns
    sin, cos = angle.sin(), angle.cos()
    turn = torch.eye(3, device=images.device).repeat(len(images), 1, 1)
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cos, -sin, sin, cos
    matrix = to_rgb @ turn @ to_yiq  # (B, 3, 3)
    return (matrix @ images.flatten(2)).view_as(images).clamp(0, 255)


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    if min(images.shape[2:]) < 3:
        return images
    blurred = images.clone()  # the border stays as it is
    centre = images[:, :, 1:-1, 1:-1]
    blurred[:, :, 1:-1, 1:-1] = ((9 * nn.functional.avg_pool2d(images, 3, stride=1) + 4 * centre) / 13).round()
    return blend(images, blurred, factor)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest `bits` (B,) of each pixel's 8."""
    step = 2 ** (8 - bits)[:, None, None, None]
    return (images / step).floor() * step


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the pixels at or above the threshold (B,)."""
    return torch.where(images >= threshold[:, None, None, None], 255 - images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel to the whole range 0..255."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    return torch.where(high > low, (images - low) * 255 / (high - low).clamp(min=1), images)


FARTHEST = 32  # pixels that a translation moves an image, as in torchvision's wide space

# name -> (operation of images and a strength in [0, 1], or in [-1, 1] where the sign counts)
TRIVIAL_AUGMENT: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], bool]] = {
    "identity": (lambda x, _: x, False),
    "shear_x": (lambda x, s: affine(x, {(0, 1): 0.99 * s}), True),
    "shear_y": (lambda x, s: affine(x, {(1, 0): 0.99 * s}), True),
    "translate_x": (lambda x, s: affine(x, {(0, 2): min(x.shape[3], FARTHEST) * s}), True),
    "translate_y": (lambda x, s: affine(x, {(1, 2): min(x.shape[2], FARTHEST) * s}), True),
    "rotate": (lambda x, s: rotate(x, 135 * s), True),
    "brightness": (lambda x, s: adjust_brightness(x, 1 + 0.99 * s), True),
    "saturation": (lambda x, s: adjust_saturation(x, 1 + 0.99 * s), True),
    "contrast": (lambda x, s: adjust_contrast(x, 1 + 0.99 * s), True),
    "sharpness": (lambda x, s: adjust_sharpness(x, 1 + 0.99 * s), True),
    "posterize": (lambda x, s: posterize(x, 8 - (6 * s).round()), False),
    "solarize": (lambda x, s: solarize(x, 255 * (1 - s)), False),
    "autocontrast": (lambda x, _: autocontrast(x), False),
    "equalize": (lambda x, _: equalize(x.to(torch.uint8)).float(), False),
}
