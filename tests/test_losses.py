"""Losses against torchmetrics, and sums of them."""

import pytest
import torch
from running import one_line
from torchmetrics.functional import mean_absolute_error, mean_squared_error
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.regression import log_cosh_error

from tinymae import InputError
from tinymae.models import losses
from tinymae.models.conv import ConvAutoencoder, VariationalAutoencoder
from tinymae.models.masked_conv import MaskedConvAutoencoder
from tinymae.models.unet import ResNetUNet
from tinymae.models.vqvae import VQAutoencoder


@pytest.mark.parametrize("size", [8, 32])
def test_losses_and_their_gradients_agree_with_torchmetrics(size):
    prediction, target = torch.rand(2, 4, 3, size, size)
    prediction.requires_grad_()
    sigma = 1.5 if size >= 16 else 0.5
    theirs = {
        "mse": mean_squared_error(prediction, target),
        "l1": mean_absolute_error(prediction, target),
        "log_cosh": log_cosh_error(prediction.flatten(), target.flatten()),
        "ssim": 1 - structural_similarity_index_measure(prediction, target, data_range=1.0, sigma=sigma),
    }
    assert theirs.keys() == losses.LOSSES.keys()
    for name, value in theirs.items():
        ours = losses.LOSSES[name](prediction, target)
        torch.testing.assert_close(ours, value, atol=1e-5, rtol=0)
        gradients = [torch.autograd.grad(loss, prediction)[0] for loss in (ours, value)]
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_log_cosh_of_a_huge_error_is_finite():
    assert losses.log_cosh(torch.tensor([1e4]), torch.tensor([0.0])) == pytest.approx(1e4 - 0.6931, abs=0.01)


def test_ssim_keeps_float32_under_autocast():
    target = torch.rand(2, 1, 32, 32)
    prediction = target + 0.01 * torch.randn_like(target)
    exact = losses.ssim(prediction, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert losses.ssim(prediction, target) == exact


def test_a_sum_of_losses_is_the_weighted_sum():
    assert losses.parse_loss("0.8*ssim + 0.2*l1") == [(0.8, "ssim"), (0.2, "l1")]
    images, guess = torch.rand(2, 2, 3, 16, 16)
    parts = {
        name: ConvAutoencoder(image_size=16, loss=name).reconstruction_loss(guess, images) for name in ("ssim", "l1")
    }
    whole = ConvAutoencoder(image_size=16, loss="0.8*ssim+0.2*l1").reconstruction_loss(guess, images)
    torch.testing.assert_close(whole, 0.8 * parts["ssim"] + 0.2 * parts["l1"])


def test_ssim_is_that_of_the_pixels_and_mse_that_of_what_the_model_sees():
    pixels, guess = torch.rand(2, 2, 3, 16, 16)
    for name, seen in {"ssim": (guess, pixels), "mse": ((guess - 0.4) / 0.3, (pixels - 0.4) / 0.3)}.items():
        model = ConvAutoencoder(image_size=16, loss=name, mean=(0.4,), std=(0.3,))
        found = model.reconstruction_loss((guess - 0.4) / 0.3, (pixels - 0.4) / 0.3)
        torch.testing.assert_close(found, losses.LOSSES[name](*seen), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("text", ["", "huber", "mse+", "-1*mse", "x*mse", "nan*mse", "inf*l1", "2*"])
def test_other_losses_are_refused(text):
    with pytest.raises(InputError, match="is not a sum of mse, l1, log_cosh, ssim"):
        losses.parse_loss(text)


@pytest.mark.parametrize("image_size", [2, (2, 8), (8, 1)])
def test_ssim_of_images_below_three_pixels_is_refused_when_the_model_is_built(image_size):
    for family, arguments in (
        (ConvAutoencoder, {"width": 8, "depth": 1}), (VariationalAutoencoder, {"width": 8, "depth": 1}),
        (VQAutoencoder, {"width": 8, "depth": 1}), (ResNetUNet, {"encoder": "test_resnet"}),
        (MaskedConvAutoencoder, {"encoder": "test_convnext2"}),
    ):  # fmt: skip
        with one_line(r"loss '0.8\*ssim\+l1' of image_size .* leave it out"):
            family(**arguments, image_size=image_size, loss="0.8*ssim+l1")


def test_ssim_of_three_pixels_is_a_loss():
    model = ConvAutoencoder(image_size=3, width=8, depth=1, loss="ssim")
    assert model(torch.randint(0, 256, (2, 3, 3, 3), dtype=torch.uint8)).loss.isfinite()
