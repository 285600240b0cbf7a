"""Looking into a model: anomaly maps, and where it attends."""

import itertools

import pytest
import torch
from pictures import random_pictures, seeded
from reference import layer_norm
from running import off_the_start
from test_mae import small_model

from tinymae import InputError, adapt, anomaly_map, attention_maps, load
from tinymae.evaluation.explain import covering_masks
from tinymae.models.classifier import build_classifier
from tinymae.models.conv import ConvAutoencoder


def test_one_image_is_a_batch_of_one():
    model = off_the_start(small_model()).eval()
    image = random_pictures(1)[0]
    for function in (
        lambda images: model.reconstruct(images, generator=seeded()).images,
        lambda images: anomaly_map(model, images, generator=seeded()),
        lambda images: attention_maps(model, images),
        model.encode,
    ):
        assert torch.equal(function(image), function(image[None])) and len(function(image)) == 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (attention_maps, "model is a Classifier without a ViT: give a MaskedAutoencoder, or a classifier of one"),
        (anomaly_map, "model is a Classifier, which hides no patches: give a MaskedAutoencoder"),
        (lambda model, images: adapt(model, image_size=16), "model is a Classifier: give a MaskedAutoencoder"),
        (lambda model, images: load(model.classes), "weights are of type list: give a folder, a file, a Hub id or"),
    ],
)
def test_a_model_of_another_kind_is_named(function, message):
    classifier = build_classifier(ConvAutoencoder(image_size=8), classes=["a", "b"])
    with pytest.raises(InputError, match=message):
        function(classifier, random_pictures(1))


# ---- anomaly maps


@pytest.mark.parametrize("patches,hidden,passes", [(16, 4, 4), (16, 12, 4), (49, 37, 8), (49, 25, 2), (7, 3, 3)])
def test_masks_cover_every_patch_about_equally_often(patches, hidden, passes):
    masks = covering_masks(patches, num_hidden=hidden, passes=passes, generator=seeded())
    times = masks.sum(0)
    assert (masks.sum(1) == hidden).all() and times.min() >= 1
    assert times.max() - times.min() <= 2
    if patches % passes == 0 and patches % hidden == 0:
        assert (times == times[0]).all()


@pytest.mark.parametrize("passes", [0, 1, 3])
def test_passes_that_cannot_cover_are_refused(passes):
    model = small_model(mask_ratio=0.25)
    with pytest.raises(InputError, match=f"passes {passes} .* cannot cover all: give at least 4"):
        anomaly_map(model, random_pictures(1), passes=passes)
    assert anomaly_map(model, random_pictures(1), passes=4).isfinite().all()


@pytest.mark.parametrize("changes", [{}, {"norm_pix_loss": False}, {"patch_size": (4, 2)}])
def test_anomaly_map_is_the_mean_error_over_the_passes_that_hid_a_pixel(changes):
    """As if the image was alone: none depends on its company."""
    model = off_the_start(small_model(**changes)).eval()
    images = random_pictures(2)
    found = anomaly_map(model, images, passes=5, mask_ratio=0.5, generator=seeded(3))
    masks = covering_masks(model.num_patches, num_hidden=model.num_patches // 2, passes=5, generator=seeded(3))
    height, width = model.patch_size
    for number, (row, column) in itertools.product(range(2), [(0, 0), (3, 5), (7, 7)]):
        patch = row // height * model.grid_size[1] + column // width
        errors = []
        for mask in masks[masks[:, patch]]:
            shown = model.reconstruct(images[number], mask)
            errors.append((shown.images - shown.original)[0, :, row, column].square().mean())
        torch.testing.assert_close(found[number, row, column], torch.stack(errors).mean(), atol=1e-5, rtol=1e-4)


# ---- attention


@pytest.mark.parametrize("fused", [True, False])
def test_attention_maps_are_the_softmax_of_queries_and_keys(fused):
    model = off_the_start(small_model(depth=3)).eval()
    for block in model.encoder.blocks:
        block.attn.fused_attn = fused
    images, weights = torch.randn(2, 3, 8, 8), dict(model.encoder.named_parameters())
    maps = attention_maps(model, images)
    assert maps.shape == (2, 3, 2, 17, 17)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 2, 17))
    kernel = weights["patch_embed.proj.weight"]
    embedded = torch.nn.functional.conv2d(images, kernel, weights["patch_embed.proj.bias"], stride=2)
    tokens = torch.cat([weights["cls_token"].expand(2, -1, -1), embedded.flatten(2).mT], dim=1) + weights["pos_embed"]
    before = [tokens, *model.encode_layers(images, [0, 1], norm=False)]
    for layer, inputs in enumerate(before):
        name = f"blocks.{layer}."
        normed = layer_norm(inputs, weights[name + "norm1.weight"], weights[name + "norm1.bias"])
        qkv = normed @ weights[name + "attn.qkv.weight"].T + weights[name + "attn.qkv.bias"]  # (B, T, 3 x 24)
        for head in range(2):
            query, key = (qkv[..., start + 12 * head : start + 12 * (head + 1)] for start in (0, 24))
            scores = (query @ key.mT / 12**0.5).exp()
            torch.testing.assert_close(maps[:, layer, head], scores / scores.sum(-1, keepdim=True))


def test_a_classifier_attends_as_its_encoder_does():
    model, images = off_the_start(small_model()).eval(), random_pictures(2)
    classifier = build_classifier(model, classes=["a", "b"]).eval()
    for given in (classifier, classifier.encoder):
        torch.testing.assert_close(attention_maps(given, images), attention_maps(model, images))


def test_looking_at_attention_leaves_the_model_as_it_was():
    model, images = off_the_start(small_model()).eval(), torch.randn(1, 3, 8, 8)
    before = model.encode(images)
    attention_maps(model, images)
    assert torch.equal(model.encode(images), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_attention_of_another_kind_is_refused():
    model = small_model()
    model.encoder.blocks[1].attn = torch.nn.Identity()
    with pytest.raises(InputError, match="does not attend by timm's plain Attention"):
        attention_maps(model, torch.randn(1, 3, 8, 8))
