"""The contrast of views, against the sums of the papers written out."""

import math

import pytest
import torch
from torch import nn

from tinymae import InputError, MaskedAutoencoder, random_mask
from tinymae.models import contrast
from tinymae.models.contrast import ContrastiveLearner, ReconstructionLearner, nt_xent

TINY = {"image_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 2, "decoder_dim": 16}


def learner_of(model: MaskedAutoencoder, **changes) -> ContrastiveLearner:
    settings = {"weight": 0.3, "temperature": 0.2, "num_views": 2, "decoded_views": 2}
    return ContrastiveLearner(model, **{**settings, **changes})


def test_nt_xent_is_equation_1_of_simclr():
    """Against the paper's sum, written out pair by pair."""
    first, second = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    rows = [*first, *second]

    def similarity(i, j):
        return math.exp(float(rows[i] @ rows[j] / (rows[i].norm() * rows[j].norm())) / 0.3)

    losses = []
    for i in range(10):
        others = sum(similarity(i, k) for k in range(10) if k != i)
        losses.append(-math.log(similarity(i, (i + 5) % 10) / others))
    assert float(nt_xent(torch.stack([first, second]), temperature=0.3)) == pytest.approx(sum(losses) / 10, rel=1e-5)


def test_nt_xent_of_four_views_is_the_mean_over_pairs_of_positives():
    """Against the sum of Khosla et al., written out: every ordered pair of views of one image, all other rows below."""
    views = torch.randn(4, 3, 7, dtype=torch.float64)
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


def test_learning_brings_the_views_of_an_image_together(monkeypatch):
    """The right partner of 32 ends up nearest for most images, under a mask of its own."""
    monkeypatch.setattr(contrast, "HIDDEN", 128)
    torch.manual_seed(0)
    model = MaskedAutoencoder(**TINY, mask_ratio=0.5)
    learner, images = learner_of(model, weight=1.0), torch.randn(32, 3, 8, 8)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=2e-3)
    for _ in range(40):
        learner(images.repeat(2, 1, 1, 1), random_mask(64, 16, 0.5))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    features = nn.functional.normalize(learner.projector(model(images.repeat(2, 1, 1, 1)).features), dim=1)
    nearest = (features[:32] @ features[32:].T).argmax(dim=1)
    assert (nearest == torch.arange(32)).float().mean() > 0.4


def test_a_temperature_that_is_not_positive_is_refused():
    with pytest.raises(InputError, match=r"temperature 0 is not positive"):
        learner_of(MaskedAutoencoder(**TINY), temperature=0)


def test_numbers_of_views_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"views 1 leaves nothing to contrast"):
        learner_of(MaskedAutoencoder(**TINY), num_views=1)
    for decoded in (5, -1):
        with pytest.raises(InputError, match=f"decoded_views {decoded} is not within 1 and the 4 views"):
            learner_of(MaskedAutoencoder(**TINY), num_views=4, decoded_views=decoded)
