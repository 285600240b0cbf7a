"""The contrast of views, against the sums of the papers written out."""

import math

import pytest
import torch

from tinymae import InputError, MaskedAutoencoder, random_mask
from tinymae.models.contrast import ContrastiveLearner, ReconstructionLearner, nt_xent

TINY = {"image_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 2, "decoder_dim": 16}


def learner_of(model: MaskedAutoencoder, **changes) -> ContrastiveLearner:
    settings = {"weight": 0.3, "temperature": 0.2, "num_views": 2, "decoded_views": 2}
    return ContrastiveLearner(model, **{**settings, **changes})


@pytest.mark.parametrize("count", [2, 4])
def test_nt_xent_is_the_mean_over_pairs_of_positives(count):
    """Against the sum of Khosla et al., written out: every ordered pair of views of one image, all other rows below.

    Of two views it is equation 1 of SimCLR.
    """
    views = torch.randn(count, 3, 7, dtype=torch.float64)
    rows = [(image, row / row.norm()) for view in views for image, row in enumerate(view)]
    losses = []
    for i, (image, row) in enumerate(rows):
        others = sum(math.exp(float(row @ other) / 0.2) for j, (_, other) in enumerate(rows) if j != i)
        pairs = [other for j, (partner, other) in enumerate(rows) if partner == image and j != i]
        losses += [-math.log(math.exp(float(row @ positive) / 0.2) / others) for positive in pairs]
    assert float(nt_xent(views, temperature=0.2)) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_only_the_decoded_views_are_reconstructed():
    """Loss and prediction are those of the first views alone; the features are those of all."""
    model, images, mask = MaskedAutoencoder(**TINY), torch.randn(8, 3, 8, 8), random_mask(8, 16, 0.75)
    losses = learner_of(model, num_views=4, decoded_views=1)(images, mask)
    first, every = model(images[:2], mask[:2]), model(images, mask)
    reconstruction, prediction, features = model.forward_masked(images, mask, decoded=2)
    for loss in (losses["reconstruction_loss"], reconstruction):
        torch.testing.assert_close(loss, first.loss)
    torch.testing.assert_close(prediction, first.prediction)
    torch.testing.assert_close(features, every.features)


def test_features_are_the_mean_of_the_visible_patches():
    model, images = MaskedAutoencoder(**TINY), torch.randn(3, 3, 8, 8)
    mask = random_mask(3, 16, 0.75)
    torch.testing.assert_close(model(images, mask).features, model.encode_tokens(images, mask)[:, 1:].mean(dim=1))


def test_the_loss_is_the_reconstruction_and_the_weighted_contrast():
    model, images = MaskedAutoencoder(**TINY), torch.randn(6, 3, 8, 8)
    mask = random_mask(6, 16, 0.75)
    losses = learner_of(model)(images, mask)
    assert losses.keys() == {"loss", "reconstruction_loss", "contrastive_loss"}
    torch.testing.assert_close(losses["reconstruction_loss"], model(images, mask).loss)
    torch.testing.assert_close(losses["loss"], losses["reconstruction_loss"] + 0.3 * losses["contrastive_loss"])


def test_without_a_contrast_the_losses_are_the_models_own():
    model, images = MaskedAutoencoder(**TINY), torch.randn(6, 3, 8, 8)
    mask = random_mask(6, 16, 0.75)
    losses = ReconstructionLearner(model)(images, mask=mask)
    assert losses.keys() == {"loss"} and torch.equal(losses["loss"], model(images, mask).loss)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0}, "temperature 0 is not positive"),
        ({"num_views": 1}, "views 1 leaves nothing to contrast"),
        ({"num_views": 4, "decoded_views": 5}, "decoded_views 5 is not within 1 and the 4 views"),
        ({"decoded_views": -1}, "decoded_views -1 is not within 1 and the 2 views"),
    ],
)
def test_what_cannot_be_contrasted_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        learner_of(MaskedAutoencoder(**TINY), **changes)
