"""The other families: what each promises, and what all of them share."""

import copy
import inspect
import json
import pickle
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from running import SMALLEST, tiny_mae
from sklearn.decomposition import PCA

import tinymae
from tinymae import Classifier, InputError, MaskedAutoencoder, load_dataset, patchify, random_mask, unpatchify
from tinymae.models.classifier import build_classifier
from tinymae.models.conv import ConvAutoencoder, VariationalAutoencoder, halvings
from tinymae.models.masked_conv import MaskedConvAutoencoder, VisibleResponseNorm
from tinymae.models.pca import PrincipalComponents
from tinymae.models.unet import ResNetUNet
from tinymae.models.vqvae import VectorQuantizer, VQAutoencoder
from tinymae.randomness import Draws

FAMILIES: dict[str, tuple[Any, dict]] = {
    "conv_ae": (ConvAutoencoder, {"width": 16, "latent_dim": 10}),
    "conv_ae, its map": (ConvAutoencoder, {"width": 16, "depth": 1}),
    "vae": (VariationalAutoencoder, {"width": 16, "latent_dim": 10}),
    "vqvae": (VQAutoencoder, {"width": 16, "latent_dim": 6, "codebook_size": 20}),
    "resnet_unet": (ResNetUNet, {"encoder": "test_resnet"}),
    "resnet_unet without skips": (ResNetUNet, {"encoder": "test_resnet", "skips": False}),
    "masked_conv": (MaskedConvAutoencoder, {"encoder": "test_convnext2", "decoder_dim": 16}),
    "masked_conv, plain pixels": (
        MaskedConvAutoencoder,
        {"encoder": "test_convnext2", "norm_pix_loss": False, "loss": "ssim+l1"},
    ),
    "pca": (PrincipalComponents, {"latent_dim": 10}),
}
TRAINED = [name for name, (family, _) in FAMILIES.items() if not family.fitted]


def build(name: str, **arguments):
    family, own = FAMILIES[name]
    torch.manual_seed(0)
    data = {"image_size": (16, 24), "in_channels": 2, "mean": (0.4, 0.6), "std": (0.2, 0.3)}
    return family(**data | own | arguments)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (6, 2, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_encodes_trains_and_reconstructs(name, images):
    model = build(name)
    output = model(images, **model.draw(Draws(0, 3, 6, torch.arange(6), "cpu")))
    assert output.loss.ndim == 0 and output.loss.dtype == torch.float32 and output.reconstruction.shape == images.shape
    model.eval()
    features = model.encode(images)
    assert features.shape == (6, model.num_features)
    torch.testing.assert_close(model.encode(model.normalise(images)), features)
    shown = model.reconstruct(images)
    assert shown.images.shape == images.shape and 0 <= shown.images.min() <= shown.images.max() <= 1
    torch.testing.assert_close(shown.original, images / 255)
    one = model.reconstruct(images[0])  # a batch of one
    assert one.images.shape == one.original.shape == (1, 2, 16, 24) and len(model.encode(images[0])) == 1
    with pytest.raises(InputError, match=r"this model wants \(batch, 2, 16, 24\)"):
        model.encode(images[:, :1])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_saved_and_read_back(name, images, tmp_path):
    model = build(name).eval()
    model.write_weights(tmp_path)
    again = tinymae.load(tmp_path)
    assert type(again) is type(model) and again.config == model.config
    assert torch.equal(again.encode(images), model.encode(images))
    model.save_pretrained(tmp_path / "hub")
    assert torch.equal(type(model).from_pretrained(tmp_path / "hub").encode(images), model.encode(images))


def test_a_config_is_what_the_constructor_was_given_and_its_defaults():
    model = ResNetUNet("resnet10t", image_size=16, mean=(1 / 2,))
    assert model.config == {
        "encoder": "resnet10t", "image_size": [16, 16], "in_channels": 3, "skips": True, "loss": "mse", "mean": [0.5],
        "std": [0.5],
    }  # fmt: skip
    assert ResNetUNet(**model.config).config == model.config


class Wide(VariationalAutoencoder):
    """A family of a user: an argument without default, others that it hands on, one without annotation."""

    def __init__(self, *, width, gain=1.0, image_size=16, in_channels=2, mean=(0.4,), std=(0.2,), **kwargs: Any):
        super().__init__(
            width=width, image_size=image_size, in_channels=in_channels, mean=mean, std=std, depth=1, **kwargs
        )
        self.gain = gain


class Nameless(MaskedAutoencoder):
    def __init__(self, *args, alpha: float = 0.1, mean=(0.5,), **kwargs):
        super().__init__(*args, mean=mean, **kwargs)


def test_a_constructor_without_defaults_or_with_kwargs_is_copied_pickled_classified_and_saved(tmp_path):
    model = Wide(width=8, latent_dim=6, gain=2.0).eval()
    assert model.config == {
        "width": 8, "gain": 2.0, "image_size": [16, 16], "in_channels": 2, "mean": [0.4], "std": [0.2], "latent_dim": 6
    }  # fmt: skip
    images = torch.randint(0, 256, (3, 2, 16, 16), dtype=torch.uint8)
    model.save_pretrained(tmp_path)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), Wide.from_pretrained(tmp_path)):
        assert type(again) is Wide and again.config == model.config and again.gain == 2.0
        assert torch.equal(again.encode(images), model.encode(images))
    assert build_classifier(model, classes=["a", "b"])(images).shape == (3, 2)
    with pytest.raises(TypeError, match="required keyword-only argument: 'width'"):
        Wide()  # type: ignore[call-arg]
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "Wide", **model.config, "latent_dim": "6"}))
    with pytest.raises(InputError, match="latent_dim '6' is not int"):
        Wide.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "Wide", **model.config, "heads": 6}))
    with pytest.raises(InputError, match="has 'heads', which a Wide does not know"):
        Wide.from_pretrained(tmp_path)


def test_a_constructor_that_leaves_out_what_every_family_has_is_told_so():
    with pytest.raises(InputError, match="of Nameless does not name image_size, in_channels, std: give it these"):
        Nameless(embed_dim=24)
    with pytest.raises(InputError, match="Nameless is given 'vit_small_patch16_224' without a name"):
        Nameless("vit_small_patch16_224", image_size=8)


def test_a_class_that_load_does_not_know_is_told_how_to_read_its_weights(tmp_path):
    Wide(width=8).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"'Wide', which tinymae does not know: .*, Wide\.from_pretrained reads it"):
        tinymae.load(tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_does_what_its_class_declares_and_nothing_else(name, images):
    model = build(name).eval()
    if model.samples:
        assert model.sample(2).shape == (2, 2, 16, 24)
    else:
        with pytest.raises(InputError, match=f"a {type(model).__name__} has nothing to sample from"):
            model.sample(2)
    assert hasattr(model, "fit") == model.fitted
    for function in (model.forward, model.reconstruct):
        assert ("mask" in inspect.signature(function).parameters) == model.hides_patches
    build_classifier(model, classes=["a", "b"], pool=model.pools[0])
    with pytest.raises(InputError, match=f"pool 'cls' is not 'avg', which is what a {type(model).__name__}"):
        build_classifier(model, classes=["a", "b"], pool="cls")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_features_make_no_use_of_the_parts_that_are_declared_the_decoders(name, images):
    model = build(name).eval()
    features = model.encode(images)
    with torch.no_grad():
        for part in model.decoder_parts:
            for parameter in getattr(model, part).parameters():
                parameter.fill_(torch.nan)
    assert torch.equal(model.encode(images), features)


@pytest.mark.parametrize("name", TRAINED)
def test_the_losses_of_training_are_those_of_a_forward_pass(name, images):
    model = build(name).eval()
    drawn = model.draw(Draws(0, 3, 6, torch.arange(6), "cpu"))
    losses, output = model.training_losses(images, **drawn), model(images, **drawn)
    assert losses.keys() == {"loss", *output.terms} and torch.equal(losses["loss"], output.loss)


@pytest.mark.parametrize("name", ["mae", "vae", "vqvae", "resnet_unet", "masked_conv"])
def test_a_training_pass_is_one_graph_for_the_compiler(name):
    """No value decides what is computed: else `fullgraph` raises."""
    model = tinymae.models.families.FAMILIES[name](image_size=16, **SMALLEST[name])
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    drawn = model.draw(Draws(0, 1, 4, torch.arange(4), "cpu"))
    torch._dynamo.reset()
    compiled = torch.compile(model.training_losses, backend="aot_eager" if name == "mae" else "eager", fullgraph=True)
    losses = compiled(images, **drawn)
    torch.testing.assert_close(losses, model.training_losses(images, **drawn))
    losses["loss"].backward()


@pytest.mark.parametrize("name", TRAINED)
def test_a_draw_is_of_the_global_batch(name, images):
    model = build(name).eval()
    whole = model(images, **model.draw(Draws(0, 7, 6, torch.arange(6), "cpu"))).reconstruction
    part = torch.tensor([4, 1])
    half = model(images[part], **model.draw(Draws(0, 7, 6, part, "cpu"))).reconstruction
    torch.testing.assert_close(half, whole[part], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_lowers_the_loss_and_reaches_every_parameter(name, images):
    model = build(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    drawn = model.draw(Draws(0, 3, 6, torch.arange(6), "cpu"))
    losses = []
    for step in range(12):
        loss = model(images, **drawn).loss
        loss.backward()
        if step == 1:  # in the first one layer scales may still be zero
            assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        model.after_step(Accelerator(cpu=True), torch.Generator().manual_seed(step))
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]


def test_classes_are_texts_and_each_has_a_name_of_its_own(tmp_path):
    build_classifier(tiny_mae(), classes=np.arange(2)).save_pretrained(tmp_path)
    assert tinymae.load(tmp_path).classes == ["0", "1"]
    for classes in (["a", "b", "a"], np.zeros(3)):
        with pytest.raises(InputError, match=f"classes has {classes[0]!s} more than once: give each class a name"):
            build_classifier(tiny_mae(), classes=classes)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_classifier_starts_at_the_features_and_freezes_what_it_does_not_use(name, images, tmp_path):
    autoencoder = build(name).eval()
    classifier = build_classifier(autoencoder, classes=["a", "b", "c"]).eval()
    assert isinstance(classifier, Classifier) and classifier.vit is None
    torch.testing.assert_close(classifier(images), classifier.head(autoencoder.encode(images)))
    torch.testing.assert_close(classifier(images[0]), classifier(images[:1]))  # one image is a batch of one
    classifier(images).sum().backward()
    for parameter in classifier.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
    classifier.write_weights(tmp_path)
    again = tinymae.load(tmp_path)
    assert again.classes == ["a", "b", "c"] and torch.equal(again(images), classifier(images))


def test_halving_stops_at_two_pixels_unless_told_otherwise():
    assert halvings((32, 32), None) == [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
    assert halvings((28, 40), None)[-1] == (2, 3)
    assert halvings((9, 9), 4)[-1] == (1, 1)
    with pytest.raises(InputError, match=r"image_size \(1, 8\) is one pixel wide or high: it cannot be halved"):
        ResNetUNet(image_size=(1, 8))
    with pytest.raises(InputError, match=r"depth 5 halves image_size \(9, 9\) below one pixel: at most 4"):
        halvings((9, 9), 5)
    with pytest.raises(InputError, match="depth 0 leaves"):
        halvings((9, 9), 0)


# ---- variational


def test_what_has_no_default_is_asked_for_by_its_name():
    with pytest.raises(InputError, match=r"^image_size \(2, 2\) is halved only where depth says so: give depth 1, or"):
        ConvAutoencoder(image_size=2)
    assert ConvAutoencoder(image_size=2, depth=1, width=8).map_shape == (8, 1, 1)
    with pytest.raises(InputError, match="^latent_dim None: the latents of a VariationalAutoencoder are a vector"):
        VariationalAutoencoder(latent_dim=None)


def test_kl_is_torchs_own(images):
    model = build("vae")
    mean, log_variance = model.encode_distribution(images)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    theirs = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(dim=1).mean()
    output = model(images)
    torch.testing.assert_close(output.terms["kl"], theirs)
    values = images[0].numel()
    torch.testing.assert_close(output.loss, output.terms["reconstruction_loss"] + theirs / values)


def test_beta_rises_from_zero():
    model = build("vae", beta=4.0, kl_warmup_steps=10)
    betas = [model.draw(Draws(0, step, 2, torch.arange(2), "cpu"))["beta"].item() for step in (0, 5, 10, 99)]
    assert betas == [0, 2, 4, 4]


def test_a_vae_reconstructs_from_the_mean_and_samples_by_the_generator(images):
    model = build("vae").eval()
    assert torch.equal(model.reconstruct(images).images, model.reconstruct(images).images)
    samples = [model.sample(3, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*samples) and samples[0].shape == (3, 2, 16, 24)


# ---- vector-quantised


def test_each_vector_gets_the_nearest_code_and_gradients_pass_straight_through():
    quantizer = VectorQuantizer(30, 5, 7)
    vectors = torch.randn(4, 7, 5, requires_grad=True)
    codes, indices = quantizer(vectors)
    assert torch.equal(indices, torch.cdist(vectors, quantizer.codes[None]).argmin(dim=2))
    torch.testing.assert_close(codes, quantizer.codes[indices])
    codes.backward(torch.ones_like(codes) * 3)
    assert (vectors.grad == 3).all()


def test_the_commitment_counts_as_much_as_it_is_told_to():
    model = VQAutoencoder(image_size=8, width=8, latent_dim=4, codebook_size=16, commitment=0.25)
    output = model(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8))
    expected = output.terms["reconstruction_loss"] + 0.25 * output.terms["commitment"]
    torch.testing.assert_close(output.loss, expected)


def test_codes_move_to_the_means_of_what_they_stand_for():
    quantizer = VectorQuantizer(3, 2, 1, decay=0.5)
    centres = torch.tensor([[-5.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    quantizer.codes.copy_(centres * 0.5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        vectors = (centres[torch.randint(3, (300,))] + 0.1 * torch.randn(300, 2))[:, None]
        quantizer(vectors, learn=True)
        quantizer.update(Accelerator(cpu=True), generator)
    torch.testing.assert_close(quantizer.codes, centres, atol=0.05, rtol=0)


def test_dead_codes_come_back_beside_the_used_ones():
    quantizer = VectorQuantizer(8, 2, 1, decay=0.5)
    quantizer.codes[1:] += 100  # nobody will choose these
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        _, indices = quantizer(torch.randn(200, 1, 2), learn=True)
        quantizer.update(Accelerator(cpu=True), generator)
    assert len(indices.unique()) == 8


def test_a_codebook_learns_the_same_from_micro_batches():
    whole = VectorQuantizer(10, 3, 4)
    parts = copy.deepcopy(whole)
    vectors = torch.randn(12, 4, 3)
    whole(vectors, learn=True)
    for part in vectors.split(3):
        parts(part, learn=True)
    for quantizer in (whole, parts):
        quantizer.update(Accelerator(cpu=True), torch.Generator().manual_seed(2))
    torch.testing.assert_close(parts.codes, whole.codes)
    torch.testing.assert_close(parts.place_counts, whole.place_counts)


def test_in_a_loop_of_ones_own_the_codebook_moves_without_an_accelerator(images):
    model = build("vqvae")
    copied, before = copy.deepcopy(model), model.quantizer.codes.clone()
    for own, accelerator in ((model, None), (copied, Accelerator(cpu=True))):
        own(images).loss.backward()
        own.after_step(accelerator, torch.Generator().manual_seed(2))
    assert not torch.equal(model.quantizer.codes, before)
    assert torch.equal(model.quantizer.codes, copied.quantizer.codes)
    model(images)
    model.after_step()  # by torch's own generator


def test_perplexity_counts_the_codes_in_use(images):
    model = build("vqvae")
    perplexity = model(images).terms["perplexity"]
    indices = model.quantizer(model.encode_vectors(images))[1]
    share = np.bincount(indices.flatten().numpy(), minlength=20) / indices.numel()
    assert perplexity == pytest.approx(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()), rel=1e-5)
    assert model.sample(3).shape == (3, 2, 16, 24)


# ---- U-Net


def test_only_with_skips_do_fine_details_pass_an_empty_bottleneck(images):
    """With the bottleneck set to zero, the decoder still tells images apart by the skips, and by nothing else."""
    for name, told_apart in (("resnet_unet", True), ("resnet_unet without skips", False)):
        model = build(name).eval()
        original = model.encoder.forward

        def emptied(x, original=original):
            *finer, bottom = original(x)
            return [*finer, torch.zeros_like(bottom)]

        model.encoder.forward = emptied
        reconstructions = model(images).reconstruction
        assert (reconstructions.std(dim=0).max() > 1e-3) == told_apart


@pytest.mark.parametrize("size", [2, 3, 8, 9, 28])
def test_the_unet_halves_no_map_of_one_pixel(size):
    model = ResNetUNet(image_size=size, in_channels=1, skips=True)
    sides = [size, *(found.shape[-1] for found in model.encoder(torch.zeros(1, 1, size, size)))]
    assert all(before > 1 for before in sides[:-1]) and len(sides) <= 5
    images = torch.randn(4, 1, size, size)
    assert model(images).reconstruction.shape == images.shape and model.encode(images).shape == (4, model.num_features)


def test_the_default_bottleneck_is_256x2x2():
    assert ResNetUNet(image_size=32).num_features == 1024
    assert ResNetUNet(image_size=96).num_features == 1024


def test_a_codebook_learns_nothing_of_images_that_are_only_shown(images):
    model = build("vqvae").train()
    before = copy.deepcopy(model.state_dict())
    model.reconstruct(images)
    model.after_step(Accelerator(cpu=True), torch.Generator().manual_seed(0))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", TRAINED)
def test_weights_of_half_precision_take_the_same_images(name, dtype, images):
    model = build(name).eval()
    whole, half = model.encode(images), copy.deepcopy(model).to(dtype).encode(images)
    assert half.dtype in (dtype, torch.float32) and (half.float() - whole).abs().mean() < 0.1 * whole.std()
    classifier = build_classifier(model, classes=["a", "b"]).eval()
    torch.testing.assert_close(classifier.to(dtype)(images), classifier.float()(images), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", tinymae.models.families.FAMILIES)
def test_weights_of_any_float_type_train_reconstruct_and_sample(name, dtype):
    family, images = tinymae.models.families.FAMILIES[name], torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    torch.manual_seed(0)
    whole = family(image_size=16, **SMALLEST[name])
    model = copy.deepcopy(whole).to(dtype)
    drawn = model.draw(Draws(0, 3, 4, torch.arange(4), "cpu"))
    found, expected = model(images, **drawn), whole(images, **drawn)
    assert found.loss.dtype == torch.float32
    torch.testing.assert_close(found.loss, expected.loss, rtol=0.05, atol=0)
    if not family.fitted:
        found.loss.backward()
        model.after_step(Accelerator(cpu=True), torch.Generator().manual_seed(0))
    shown = model.reconstruct(images, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(shown.original, whole.reconstruct(images).original, atol=0.01, rtol=0)
    assert shown.images.shape == images.shape and shown.images.isfinite().all()
    if family.samples:
        assert model.sample(2).isfinite().all()


@pytest.mark.parametrize("name", tinymae.models.families.FAMILIES)
def test_half_precision_and_back_leaves_mean_and_std_as_they_were(name, tmp_path):
    statistics = {"mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26]}
    model = tinymae.models.families.FAMILIES[name](image_size=16, **statistics, **SMALLEST[name])
    classifier = build_classifier(model, classes=["a", "b"]).to(torch.bfloat16)
    halved = model.to(torch.bfloat16)
    assert halved.normalise(torch.zeros(3, 16, 16, dtype=torch.uint8)).dtype == torch.bfloat16
    classifier.write_weights(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    kept = about["autoencoder"] if "autoencoder" in about else about["pretrained_cfg"]
    assert {key: kept[key] for key in statistics} == statistics
    for encoder in (halved, halved.float(), classifier.encoder, tinymae.load(tmp_path).encoder):
        for key, values in statistics.items():
            assert torch.equal(getattr(encoder, key).flatten(), torch.tensor(values))


# ---- masked convolutions


@pytest.mark.parametrize("encoder", ["convnext_atto", "convnextv2_atto"])
def test_nothing_of_a_hidden_patch_reaches_the_answer(encoder, images):
    model = build("masked_conv", encoder=encoder).eval()
    mask = random_mask(6, model.num_patches, 0.6, torch.Generator().manual_seed(0))
    hidden = unpatchify(mask[..., None].expand(-1, -1, 32), 4, (16, 24))
    other = torch.where(hidden, torch.randint(0, 256, images.shape, dtype=torch.uint8), images)
    assert torch.equal(model.reconstruct(other, mask).images[hidden], model.reconstruct(images, mask).images[hidden])
    visible = ~hidden
    shown = model.reconstruct(images, mask)
    torch.testing.assert_close(shown.images[visible], (images / 255)[visible])
    assert torch.equal(shown.images[hidden], shown.prediction[hidden])
    assert (shown.patch_error > 0).all()  # of the model's own pixels, in visible patches too
    for refused, message in ((torch.ones_like(mask), "hides all"), (torch.zeros_like(mask), "hides no patch")):
        with pytest.raises(InputError, match=message):
            model(images, refused)
    with pytest.raises(InputError, match="hides all"):
        model.reconstruct(images, torch.ones_like(mask))


@pytest.mark.parametrize("conv_mlp", [False, True])
def test_the_response_norm_of_convnext_v2_knows_visible_places_alone(conv_mlp):
    """As a sparse convolution's does, which has no others."""
    norm = VisibleResponseNorm(5, channels_last=not conv_mlp)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    x, shown = torch.randn(1, 5, 4, 6), (torch.rand(1, 1, 4, 6) < 0.5).float()
    visible = shown[0, 0] > 0
    alone = x[:, :, visible][..., None]  # (1, C, n, 1)

    def call(maps):
        return norm(maps) if conv_mlp else norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    expected = call(alone)[..., 0]
    norm.shown = shown
    torch.testing.assert_close(call(x)[:, :, visible], expected)


def test_outside_of_a_masked_pass_and_with_nothing_hidden_convnext_v2_is_timms_own(images):
    model = build("masked_conv", encoder="convnextv2_atto").eval()
    assert sum(isinstance(module, VisibleResponseNorm) for module in model.encoder.modules()) == 12
    model.reconstruct(images, generator=torch.Generator().manual_seed(0))
    plain = timm.create_model("convnextv2_atto", in_chans=2, num_classes=0, patch_size=1).eval()
    plain.load_state_dict(model.encoder.state_dict(), strict=True)
    pixels, nothing = model.normalise(images), torch.zeros(model.num_patches, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(images), plain(pixels))
        *_, coarsest = model.forward_encoder(pixels, model.choose_mask(nothing, pixels, None))
        torch.testing.assert_close(coarsest, plain.forward_features(pixels), atol=1e-5, rtol=1e-5)


def test_a_place_that_covers_a_visible_patch_is_visible():
    model = build("masked_conv", image_size=(32, 48), patch_size=(8, 2), stem_size=4, decoder_dim=8)
    mask, places = torch.zeros(1, 4, 24, dtype=torch.bool), torch.Size([8, 12])
    mask[:, :, ::2] = True  # every other column of narrow patches; a place of the first map covers two
    assert model.shown_places(mask.flatten(1), places).min() == 1
    mask[:, 0, :2] = True
    assert model.shown_places(mask.flatten(1), places)[0, 0, :, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


def test_the_loss_is_over_hidden_patches_alone(images):
    model = build("masked_conv, plain pixels", loss="mse").eval()
    mask = random_mask(6, model.num_patches, 0.5)
    output = model(images, mask)
    error = patchify((output.reconstruction - model.normalise(images)).square(), 4).mean(dim=2)
    torch.testing.assert_close(output.loss, error[mask].mean())
    assert error[~mask].max() == 0


# ---- principal components


def test_pca_is_scikit_learns():
    digits = load_dataset("digits", "train")
    model = PrincipalComponents(image_size=8, in_channels=1, latent_dim=12, mean=(0.3,), std=(0.4,))
    model.fit(digits.images)
    pixels = model.normalise(digits.images).flatten(1).numpy()
    theirs = PCA(12, svd_solver="full").fit(pixels)
    np.testing.assert_allclose(model.encode(digits.images).abs().numpy(), np.abs(theirs.transform(pixels)), atol=1e-3)
    ours = model(digits.images).reconstruction.flatten(1)
    np.testing.assert_allclose(ours.numpy(), theirs.inverse_transform(theirs.transform(pixels)), atol=1e-3)


NO_STATISTICS = "is not finite, or a std not above 0"
REFUSED = {
    "width": (ConvAutoencoder, {"width": 12}, "width 12 is not a multiple of 8"),
    "loss": (ConvAutoencoder, {"loss": "huber"}, "loss 'huber' is not a sum of"),
    "beta": (VariationalAutoencoder, {"beta": -1.0}, "beta -1.0 is negative"),
    "codebook": (VQAutoencoder, {"codebook_size": 1}, "codebook_size 1 is below 2"),
    "u-net encoder": (ResNetUNet, {"encoder": "resnet_none"}, "encoder 'resnet_none' is not a timm model"),
    "conv encoder": (MaskedConvAutoencoder, {"encoder": "resnet18"}, "'resnet18' cannot be built as a timm ConvNeXt"),
    "latent": (VariationalAutoencoder, {"latent_dim": -1}, "latent_dim -1 is below 1"),
    "small image": (MaskedConvAutoencoder, {"image_size": 8, "stem_size": 2}, "is below 32, the last stride"),
    "stem": (MaskedConvAutoencoder, {"stem_size": 3}, "stem_size 3 is not 1, 2 or 4"),
    "patch": (MaskedConvAutoencoder, {"patch_size": 5}, "is not a multiple of patch_size 5"),
    "norm_pix_loss": (MaskedConvAutoencoder, {"loss": "l1"}, "loss 'l1' does not go with norm_pix_loss"),
    "components": (PrincipalComponents, {"latent_dim": 4000}, "latent_dim 4000 is not within 1 and the image's 3072"),
    "mean": (ConvAutoencoder, {"mean": (0.1, 0.2)}, "mean has 2 values for in_channels 3"),
    "infinite mean": (ConvAutoencoder, {"mean": (float("inf"),)}, NO_STATISTICS),
    "std of zero": (ConvAutoencoder, {"std": (0.2, 0.0, 0.3)}, NO_STATISTICS),
    "negative std": (ConvAutoencoder, {"std": (-1.0,)}, NO_STATISTICS),
    "no std": (ConvAutoencoder, {"std": (float("nan"),)}, NO_STATISTICS),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_named(case):
    family, arguments, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        family(**arguments)


@pytest.mark.parametrize("num_dead", [0, 1, 3, 40])
def test_dead_codes_restart_beside_the_most_used_ones(num_dead):
    """Against the same written with indices of the dead codes."""
    quantizer, dead = VectorQuantizer(64, 16, positions=4), torch.randperm(64)[:num_dead]
    quantizer.counts.copy_(torch.rand(64) + 0.5)
    quantizer.counts[dead] = 1e-4 * torch.rand(num_dead)
    counts, sums, jitter = quantizer.counts.clone(), quantizer.sums.clone(), torch.randn(64, 16)
    quantizer.restart_dead(jitter)

    dead, used = dead.sort().values, counts.argsort(descending=True)[:num_dead]
    counts[used] /= 2
    sums[used] /= 2
    counts[dead] = counts[used]
    sums[dead] = sums[used] + 0.01 * counts[used, None] * quantizer.codes.std() * jitter[:num_dead]
    assert torch.equal(quantizer.counts, counts) and torch.equal(quantizer.sums, sums)
