"""What a masked autoencoder makes of the patches it does not see, and how far off it is."""

import pytest
import torch
from pictures import random_pictures, seeded
from running import off_the_start, one_line
from test_mae import small_model

from tinymae import InputError, patchify, random_mask, unpatchify
from tinymae.models.conv import ConvAutoencoder
from tinymae.models.masked_conv import MaskedConvAutoencoder
from tinymae.models.masking import denormalise_patches


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_reconstruction_pastes_visible_patches_and_paints_hidden_ones(norm_pix_loss):
    model = off_the_start(small_model(norm_pix_loss=norm_pix_loss, mean=(0.4,), std=(0.3,))).eval()
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    shown = model.reconstruct(images, generator=torch.Generator().manual_seed(3))
    again = model.reconstruct(images, generator=torch.Generator().manual_seed(3))
    hidden = unpatchify(shown.mask[..., None].expand(-1, -1, 12).float(), 2, (8, 8)).bool()
    torch.testing.assert_close(shown.images[~hidden], (images / 255)[~hidden], atol=1e-6, rtol=0)
    assert torch.equal(shown.images[hidden], shown.prediction[hidden])
    assert (shown.masked[hidden] == 0.5).all()
    assert torch.equal(shown.images, again.images)
    assert shown.statistics == ("visible" if norm_pix_loss else "none")
    output = model(images, shown.mask)
    torch.testing.assert_close(model.denormalise(output.reconstruction), shown.images, atol=1e-5, rtol=0)


def test_target_statistics_are_used_only_when_asked():
    model = off_the_start(small_model()).eval()
    images, mask = torch.randn(2, 3, 8, 8), random_mask(2, 16, 0.75)
    guessed, told = model.reconstruct(images, mask), model.reconstruct(images, mask, statistics="target")
    assert (guessed.statistics, told.statistics) == ("visible", "target")
    assert not torch.equal(guessed.images, told.images)
    with pytest.raises(InputError, match="statistics 'mine'"):
        model.reconstruct(images, mask, statistics="mine")


def test_a_hidden_patch_is_as_bright_as_the_visible_ones_weighted_by_distance():
    """Of a row of four patches the first two are hidden; one over the fourth power of distance is the weight."""
    patches = torch.tensor([0.9, 0.1, 0.2, 0.6])[None, :, None].expand(1, 4, 5)
    mask = torch.tensor([[True, True, False, False]])
    found = denormalise_patches(torch.zeros(1, 4, 5), patches, mask, grid_size=(1, 4), statistics="visible")
    first = (0.2 / 2**4 + 0.6 / 3**4) / (1 / 2**4 + 1 / 3**4)
    second = (0.2 / 1**4 + 0.6 / 2**4) / (1 / 1**4 + 1 / 2**4)
    assert found[0, :, 0].tolist() == pytest.approx([first, second, 0.2, 0.6])


def test_a_constant_image_gets_its_own_brightness_back():
    model = small_model(mean=(0.0,), std=(1.0,)).eval()
    shown = model.reconstruct(torch.full((1, 3, 8, 8), 0.7))
    torch.testing.assert_close(shown.images, torch.full((1, 3, 8, 8), 0.7), atol=0.01, rtol=0)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_errors_are_those_of_the_models_own_pixels(channels, norm_pix_loss):
    model = off_the_start(small_model(in_channels=channels, norm_pix_loss=norm_pix_loss)).eval()
    images = random_pictures(4, channels)
    shown = model.reconstruct(images, generator=seeded())
    squares = (patchify(shown.prediction, 2) - patchify(images / 255, 2)).square()  # (B, N, P*P*C)
    torch.testing.assert_close(shown.patch_error, squares.mean(2))
    torch.testing.assert_close(
        shown.error, torch.stack([s[m].mean() for s, m in zip(squares, shown.mask, strict=True)])
    )
    pasted = (shown.images - shown.original).square().mean(dim=(1, 2, 3))  # only hidden patches, 12 of 16, differ
    torch.testing.assert_close(shown.error, pasted * 16 / 12)


def test_errors_of_the_other_families():
    images = random_pictures(2)
    plain = ConvAutoencoder(image_size=8).eval().reconstruct(images)
    assert plain.patch_error is None
    torch.testing.assert_close(plain.error, (plain.images - images / 255).square().mean(dim=(1, 2, 3)))
    masked = MaskedConvAutoencoder(image_size=8, patch_size=2).eval().reconstruct(images, generator=seeded())
    hidden = (patchify(masked.images, 2) - patchify(images / 255, 2)).square().mean(dim=2)[masked.mask].view(2, -1)
    torch.testing.assert_close(masked.error, hidden.mean(dim=1))


@pytest.mark.parametrize("nothing", [0, 0.0, torch.zeros(16, dtype=torch.bool)], ids=["0", "0.0", "mask"])
def test_a_mask_that_hides_nothing_shows_the_encoder_all(nothing):
    model = off_the_start(small_model()).eval()
    images = random_pictures(3)
    shown = model.reconstruct(images, nothing)
    assert not shown.mask.any() and torch.equal(shown.images, shown.original)
    prediction = model.decode(model.encode_tokens(images), torch.zeros(16, dtype=torch.bool))
    patches = patchify(model.normalise(images), 2)
    again = denormalise_patches(prediction, patches, shown.mask, grid_size=(4, 4), statistics="visible")
    assert (shown.error > 0).all()  # of the model's own prediction: what is seen is not copied
    torch.testing.assert_close(patchify(shown.prediction, 2), model.denormalise(again), atol=1e-5, rtol=0)
    torch.testing.assert_close(shown.error, shown.patch_error.mean(1))


def test_a_share_hides_that_share_as_the_generator_says():
    model = small_model().eval()
    images = random_pictures(3)
    shown, again, other = (model.reconstruct(images, 0.25, generator=seeded(seed)) for seed in (1, 1, 2))
    assert shown.mask.sum(1).tolist() == [4, 4, 4]
    assert torch.equal(shown.prediction, again.prediction) and torch.equal(shown.patch_error, again.patch_error)
    assert not torch.equal(shown.mask, other.mask)


@pytest.mark.parametrize(
    "mask,message",
    [
        (1.0, r"mask 1.0 is outside \[0, 1\)"),
        (-0.1, "mask -0.1 is outside"),
        (0.99, "hides every patch"),
        (True, "mask is a bool"),
        ([True, False], "mask is a list"),
    ],
)
def test_a_share_that_cannot_be_is_refused(mask, message):
    with one_line(message):
        small_model().reconstruct(random_pictures(2), mask)


def test_a_reconstruction_is_shown_by_its_shapes():
    shown = repr(small_model().eval().reconstruct(random_pictures(2)))
    assert shown.startswith("Reconstruction(original=(2, 3, 8, 8), images=") and "mask=(2, 16), statistics=" in shown
