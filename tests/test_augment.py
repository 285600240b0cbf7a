"""Augmentations draw for the global batch, and do what torchvision's do."""

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from tinymae.data import augment
from tinymae.randomness import Draws

AUGMENTATIONS = {
    "flip": augment.random_flip,
    "rotate90": augment.random_rotate90,
    "padded crop": lambda images, draws: augment.padded_crop(images, draws, 3),
    "resized crop": augment.random_resized_crop,
    "erasing": lambda images, draws: augment.random_erasing(images, draws, probability=0.5),
    "trivial augment": augment.trivial_augment,
    "colour jitter": lambda images, draws: augment.color_jitter(images, draws, strength=0.5),
}


def pictures(count=64, channels=3, size=16):
    """Smooth random pictures, as uint8: (count, channels, size, size)."""
    rough = torch.rand(count, channels, 5, 5)
    smooth = torch.nn.functional.interpolate(rough, (size, size), mode="bicubic")
    return (smooth * 255).round().clamp(0, 255).to(torch.uint8)


def draws_for(positions, batch_size=64, step=5):
    return Draws(0, step, batch_size, positions, "cpu")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_part_of_the_batch_is_augmented_as_in_the_whole(name, channels):
    images, function = pictures(channels=channels), AUGMENTATIONS[name]
    whole = function(images, draws_for(torch.arange(64)))
    part = torch.tensor([3, 60, 61, 17])
    assert whole.dtype == torch.uint8 and whole.shape == images.shape
    assert torch.equal(whole[part], function(images[part], draws_for(part)))
    assert not torch.equal(whole, images)
    assert not torch.equal(whole, function(images, draws_for(torch.arange(64), step=6)))


def test_about_half_the_images_are_flipped_and_nothing_else_happens():
    images = pictures(1000)
    flipped = augment.random_flip(images, draws_for(torch.arange(1000), 1000))
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    same = (flipped == images).flatten(1).all(1)
    assert (mirrored | same).all() and 400 < mirrored.sum() < 600


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_each_quarter_turn_is_of_about_a_fourth_of_the_images(dtype):
    images = pictures(1000).to(dtype)
    turned = augment.random_rotate90(images, draws_for(torch.arange(1000), 1000))
    turns = [
        [torch.equal(after, before.rot90(k, (1, 2))) for after, before in zip(turned, images, strict=True)]
        for k in range(4)
    ]
    assert turned.dtype == dtype and torch.tensor(turns).sum(0).eq(1).all()
    assert all(200 < sum(found) < 300 for found in turns)


def test_padded_crops_are_crops_of_the_mirrored_picture():
    images = pictures(300, size=8)
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    seen = set()
    for image, cropped in zip(padded, augment.padded_crop(images, draws_for(torch.arange(300), 300), 2), strict=True):
        places = [(i, j) for i in range(5) for j in range(5) if torch.equal(image[:, i : i + 8, j : j + 8], cropped)]
        assert places
        seen.add(places[0])
    assert len(seen) == 25  # all shifts by up to two pixels


def test_a_whole_area_crop_is_the_picture():
    images = pictures()
    assert torch.equal(
        augment.random_resized_crop(images, draws_for(torch.arange(64)), scale=(1, 1), ratio=(1, 1)), images
    )


@pytest.mark.parametrize("axis", [2, 3])
def test_crops_come_from_everywhere(axis):
    ramp = torch.linspace(0, 255, 32).round().to(torch.uint8)
    images = (ramp[:, None] if axis == 2 else ramp).expand(500, 1, 32, 32)
    draws = draws_for(torch.arange(500), 500)
    places = augment.random_resized_crop(images, draws, scale=(0.1, 0.1), ratio=(1, 1)).float().mean(dim=(1, 2, 3))
    # Uniform, but for a margin of half a crop: the mean of 500 is known to +-2.3.
    assert abs(places.mean() - 127.5) < 13 and places.min() < 60 and places.max() > 195


def test_crops_have_every_area_and_shape_of_their_range():
    """The range of a ramp that a crop shows is its relative width or height."""
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8)
    images = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64)]).expand(500, 2, 64, 64)
    crops = augment.random_resized_crop(images, draws_for(torch.arange(500), 500), scale=(0.2, 0.6)).float().flatten(2)
    width, height = ((crops.amax(2) - crops.amin(2)) / 255).unbind(1)
    for found, low, high in ((width * height, 0.2, 0.6), ((width / height).log(), math.log(3 / 4), math.log(4 / 3))):
        quarters = torch.linspace(low, high, 5)
        assert found.quantile(torch.linspace(0, 1, 5)).tolist() == pytest.approx(quarters.tolist(), abs=0.04)


def test_erasing_fills_one_rectangle_of_the_stated_size_with_noise():
    images = torch.zeros(500, 1, 32, 32, dtype=torch.uint8)
    filled = augment.random_erasing(images, draws_for(torch.arange(500), 500), probability=1.0)
    assert all(50 < image[image > 0].float().std() < 100 for image in filled)  # of 0 to 255 it is 74
    erased = filled > 0
    for image in erased[:, 0]:
        rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
        height, width = (int(edge.max() - edge.min()) + 1 for edge in (rows, columns))
        assert height * width <= 32 * 32 * 0.45 and image.float().mean() > 0.85 * height * width / 1024
    assert torch.equal(augment.random_erasing(images, draws_for(torch.arange(500), 500), probability=0.0), images)


LEVELS = torch.tensor([0.1, 0.5, 0.9])
AGAINST_TORCHVISION = {
    "brightness": (augment.adjust_brightness, tv.adjust_brightness, 1 + LEVELS),
    "darkness": (augment.adjust_brightness, tv.adjust_brightness, 1 - LEVELS),
    "saturation": (augment.adjust_saturation, tv.adjust_saturation, 1 - LEVELS),
    "contrast": (augment.adjust_contrast, tv.adjust_contrast, 1 + LEVELS),
    "sharpness": (augment.adjust_sharpness, tv.adjust_sharpness, 1 + LEVELS),
    "blur": (augment.adjust_sharpness, tv.adjust_sharpness, 1 - LEVELS),
    "posterize": (augment.posterize, tv.posterize, torch.tensor([2, 5, 8])),
    "solarize": (augment.solarize, tv.solarize, torch.tensor([0.0, 128.0, 255.0])),
    "autocontrast": (lambda x, _: augment.autocontrast(x), lambda x, _: tv.autocontrast(x), LEVELS),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", AGAINST_TORCHVISION)
def test_operations_agree_with_torchvision(name, channels):
    ours, theirs, levels = AGAINST_TORCHVISION[name]
    images = pictures(3, channels, size=32) // 2 + 40
    if channels == 1 and name == "saturation":
        pytest.skip("grey has none")
    result = augment.to_pixels(ours(images.float(), levels.float()), torch.uint8)
    for image, level, mine in zip(images, levels, result, strict=True):
        difference = (theirs(image, level.item()).int() - mine.int()).abs()
        assert difference.max() <= 1, f"{name} {level}: {difference.max()}"  # they truncate, we round


def test_turning_the_hue_keeps_luma_and_grey_and_comes_round():
    images = (pictures(3, size=32) // 4 + 96).float()  # far from clipping
    for turns in (0.0, 1.0):
        torch.testing.assert_close(augment.rotate_hue(images, torch.full((3,), turns)), images, atol=0.01, rtol=0)
    turned = augment.rotate_hue(images, torch.tensor([0.1, -0.3, 0.5]))
    assert (turned - images).abs().amax(dim=(1, 2, 3)).min() > 5
    torch.testing.assert_close(augment.to_grey(turned), augment.to_grey(images), atol=0.05, rtol=0)
    back = augment.rotate_hue(turned, torch.tensor([-0.1, 0.3, -0.5]))
    torch.testing.assert_close(back, images, atol=0.01, rtol=0)
    grey = augment.to_grey(images).expand(-1, 3, -1, -1)
    torch.testing.assert_close(augment.rotate_hue(grey, torch.tensor([0.1, -0.3, 0.5])), grey, atol=0.15, rtol=0)


def test_colour_jitter_changes_about_four_images_in_five_and_makes_one_in_five_grey():
    images = pictures(1000)
    draws = draws_for(torch.arange(1000), 1000)
    changed = augment.color_jitter(images, draws, strength=0.5)
    same = (changed == images).flatten(1).all(1).sum()
    grey = (changed == changed[:, :1]).flatten(1).all(1).sum()
    assert 130 < same < 190 and 160 < grey < 240  # 0.2 x 0.8 stay as they are
    colours = augment.color_jitter(images, draws_for(torch.arange(1000), 1000), strength=0.0)
    close = (colours.int() - images.int()).abs().flatten(1).amax(1) <= 1
    assert close.sum() == 1000 - grey


def test_colour_jitter_is_uniform_over_its_ranges():
    """Of two colours: their mean luma shows brightness, its difference contrast, their chroma saturation and hue."""
    colours = torch.tensor([[150, 110, 95], [175, 135, 120]]).T  # (3, 2)
    images = colours.to(torch.uint8)[:, None].expand(3000, 3, 2, 2)
    changed = augment.color_jitter(images, draws_for(torch.arange(3000), 3000), strength=0.25)[:, :, 0].float()
    changed = changed[(changed != changed[:, :1]).flatten(1).any(dim=1) & (changed != colours).flatten(1).any(dim=1)]

    def properties(pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        luma, i, q = (torch.tensor(augment.YIQ) @ pixels).unbind(-2)
        chroma = torch.complex(i, q).mean(-1)
        return luma.mean(-1), luma[..., 1] - luma[..., 0], chroma.abs(), chroma.angle() / (2 * math.pi)

    (light, range_, chroma, turn), before = properties(changed), properties(colours.float())
    brightness, stretched, vivid = light / before[0], range_ / before[1], chroma / before[2]
    found = {"brightness": brightness, "contrast": stretched / brightness, "saturation": vivid / stretched}
    found = {name: values - 1 for name, values in found.items()} | {"hue": (turn - before[3] + 0.5) % 1 - 0.5}
    for name, values in found.items():
        reach = 0.05 if name == "hue" else 0.2
        quarters = values.quantile(torch.linspace(0, 1, 5)) / reach
        assert quarters.tolist() == pytest.approx([-1, -0.5, 0, 0.5, 1], abs=0.3), name


@pytest.mark.parametrize("degrees", [0.0, 30.0, -77.0, 90.0])
def test_rotation_agrees_with_torchvision(degrees):
    images = pictures(1, size=32).float()
    expected = tv.rotate(images, degrees, interpolation=tv.InterpolationMode.BILINEAR)
    torch.testing.assert_close(augment.rotate(images, torch.tensor([degrees])), expected, atol=0.6, rtol=0)


@pytest.mark.parametrize("name", ["translate_x", "translate_y"])
def test_translation_moves_by_whole_pixels(name):
    images = torch.rand(1, 3, 16, 20) * 255
    axis = 3 if name == "translate_x" else 2
    shift = 4 / images.shape[axis]
    moved = augment.TRIVIAL_AUGMENT[name][0](images, torch.tensor([shift]))
    kept = images.shape[axis] - 4
    torch.testing.assert_close(moved.narrow(axis, 0, kept), images.narrow(axis, 4, kept), atol=0.05, rtol=0)
    assert moved.narrow(axis, kept, 4).abs().max() < 0.05


def test_shear_agrees_with_torchvision():
    images = pictures(1, size=32).float()
    factor = 0.3
    degrees = torch.atan(torch.tensor(factor)).rad2deg().item()
    ours = augment.TRIVIAL_AUGMENT["shear_x"][0](images, torch.tensor([factor / 0.99]))
    either = [
        tv.affine(images, 0, [0, 0], 1, [sign * degrees, 0], interpolation=tv.InterpolationMode.BILINEAR)
        for sign in (1, -1)
    ]
    assert min((ours - theirs).abs().max() for theirs in either) < 0.6


STRONGEST = {
    "rotate": lambda images: tv.rotate(images.float(), 135, interpolation=tv.InterpolationMode.BILINEAR),
    "brightness": lambda images: tv.adjust_brightness(images, 1.99),
    "saturation": lambda images: tv.adjust_saturation(images, 1.99),
    "contrast": lambda images: tv.adjust_contrast(images, 1.99),
    "sharpness": lambda images: tv.adjust_sharpness(images, 1.99),
    "posterize": lambda images: tv.posterize(images, 2),
    "solarize": lambda images: tv.solarize(images, 0),
}


@pytest.mark.parametrize("name", STRONGEST)
def test_the_strongest_of_an_operation_is_that_of_torchvisions_wide_space(name):
    images = pictures(2, size=32) // 2 + 40
    ours = augment.TRIVIAL_AUGMENT[name][0](images.float(), torch.ones(2))
    torch.testing.assert_close(ours, STRONGEST[name](images).float(), atol=1.1, rtol=0)


def test_an_operation_with_a_sign_goes_either_way(monkeypatch):
    monkeypatch.setattr(augment, "TRIVIAL_AUGMENT", {"brightness": augment.TRIVIAL_AUGMENT["brightness"]})
    images = torch.full((1000, 1, 4, 4), 100, dtype=torch.uint8)
    levels = augment.trivial_augment(images, draws_for(torch.arange(1000), 1000))[:, 0, 0, 0].float()
    quarters = [1, 50.5, 100, 149.5, 199]
    assert levels.quantile(torch.linspace(0, 1, 5)).tolist() == pytest.approx(quarters, abs=8)


def test_a_translation_moves_large_images_by_at_most_32_pixels():
    """As in torchvision's wide space, whatever the width."""
    images = torch.zeros(1, 1, 8, 224)
    images[..., 100] = 255.0
    for strength, place in ((1.0, 68), (-1.0, 132)):
        moved = augment.TRIVIAL_AUGMENT["translate_x"][0](images, torch.tensor([strength]))
        assert int(moved[0, 0, 4].argmax()) == place
