"""Features of any layer: of its tokens, and as a map with each patch's feature in its place, as timm gives them."""

import pytest
import torch
from running import off_the_start
from test_mae import small_model

from tinymae import InputError, MaskedAutoencoder
from tinymae.models.classifier import build_classifier
from tinymae.models.conv import ConvAutoencoder


def wide_model() -> MaskedAutoencoder:
    return MaskedAutoencoder(image_size=(8, 12), patch_size=2, embed_dim=24, depth=3, num_heads=2).eval()


@pytest.mark.parametrize("layer", [0, 1, -1])
@torch.no_grad()
def test_a_map_is_what_timm_gives(layer):
    """Each patch's feature in its place, of a classifier too; their mean is what `encode` gives."""
    model, images = wide_model(), torch.randint(0, 256, (5, 3, 8, 12), dtype=torch.uint8)
    (expected,) = model.encoder.forward_intermediates(
        model.normalise(images), indices=[layer % 3], norm=True, output_fmt="NCHW", intermediates_only=True
    )
    assert expected.shape == (5, 24, 4, 6)
    assert torch.allclose(model.encode(images, layers=[layer]), expected.mean(dim=(2, 3)), atol=1e-6)
    classifier = build_classifier(model, classes=["a", "b"]).eval()
    for encoder in (model, classifier.encoder):
        assert torch.allclose(encoder.encode_dense(images, layer=layer), expected, atol=1e-5)


def test_what_has_no_map_is_refused():
    with pytest.raises(InputError, match=r"layers \[3\] must name some of this encoder's 3"):
        wide_model().encode_dense(torch.randn(1, 3, 8, 12), layer=3)
    with pytest.raises(InputError, match="a ConvAutoencoder is no ViT: it has no dense features"):
        ConvAutoencoder(image_size=8, in_channels=1, width=8, latent_dim=4).encode_dense(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("encoder", ["vit_tiny_patch16_224", "vit_medium_patch16_gap_240"])
def test_layers_are_timms_forward_intermediates(encoder, norm):
    model = off_the_start(MaskedAutoencoder(encoder, image_size=8, patch_size=2, depth=4)).eval()
    images, prefix = torch.randn(2, 3, 8, 8), model.num_prefix_tokens
    theirs = model.encoder.forward_intermediates(
        images, indices=[0, 2, 3], norm=norm, output_fmt="NLC", intermediates_only=True
    )
    ours = model.encode_layers(images, [3, 0, -2], norm=norm)
    for layer, expected in zip(ours, (theirs[2], theirs[0], theirs[1]), strict=True):
        assert torch.equal(layer[:, prefix:], expected)
    if norm:
        assert torch.equal(model.encode_layers(images, 1)[0], model.encode_tokens(images))
        features = model.encode(images, layers=[3, 0])
        torch.testing.assert_close(features, torch.cat([theirs[2].mean(1), theirs[0].mean(1)], dim=1))


def test_the_last_layers_come_by_their_number():
    model, images = off_the_start(small_model(depth=3)).eval(), torch.randn(2, 3, 8, 8)
    for ours, expected in zip(model.encode_layers(images, 2), model.encode_layers(images, [1, 2]), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("layers", [[2], [-3], 3, 0, []])
def test_layers_that_the_encoder_lacks_are_refused(layers):
    says = "layers .* must name some of this encoder's 2: (0 to 1|a number says how many)"
    with pytest.raises(InputError, match=says):
        small_model().encode_layers(torch.randn(1, 3, 8, 8), layers)
