"""The masked autoencoder against the plain reference and timm: patches, masks, loss, features, files."""

import copy
import warnings

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from reference import cut, reference_loss
from running import edit_json, off_the_start, one_line

import tinymae
from tinymae import InputError, MaskedAutoencoder, export_timm, patchify, random_mask, unpatchify
from tinymae.models.base import LOOKS
from tinymae.models.classifier import build_classifier
from tinymae.models.flops import training_flops
from tinymae.models.masking import hide_lowest
from tinymae.models.vit import set_fused_attention

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


def small_model(**changes) -> MaskedAutoencoder:
    return MaskedAutoencoder(**{"image_size": 8, "patch_size": 2, **SMALL, **changes})


@pytest.mark.parametrize("channels,height,width,patch", [(3, 8, 8, 2), (1, 6, 9, 3), (5, 8, 4, (4, 1)), (3, 32, 32, 4)])
def test_patches_are_cut_row_by_row(channels, height, width, patch):
    images = torch.randn(2, channels, height, width)
    expected = torch.stack([cut(image, *(patch if isinstance(patch, tuple) else (patch, patch))) for image in images])
    assert torch.equal(patchify(images, patch), expected)


def test_every_patch_is_hidden_equally_often():
    share = random_mask(20_000, 16, 0.75, torch.Generator().manual_seed(1)).float().mean(dim=0)
    assert (share - 0.75).abs().max() < 5 * (0.75 * 0.25 / 20_000) ** 0.5  # five standard errors


def test_equal_chances_hide_as_many_patches_as_others():
    mask = hide_lowest(torch.tensor([[0.5, 0.5, 0.5, 0.1], [0.3, 0.2, 0.1, 0.4]]), 2)
    assert mask[0].sum() == 2 and mask[0, 3] and mask[1].tolist() == [False, True, True, False]


@pytest.mark.parametrize("fused", [True, False])
def test_flops_are_those_of_its_matrix_products(fused):
    """Forward and twice as much backward, but for the image, which needs no gradient."""
    model = MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=16, depth=2, num_heads=2, decoder_dim=8,
                              decoder_depth=1, decoder_heads=2)  # fmt: skip
    set_fused_attention(model, fused)

    def block(tokens: int, dim: int) -> int:
        return 2 * tokens * (4 * dim * dim + 2 * 4 * dim * dim) + 2 * 2 * tokens * tokens * dim

    embedding, rest = 2 * 4 * 12 * 16, 2 * block(5, 16) + 2 * 5 * 16 * 8 + block(17, 8) + 2 * 12 * 8 * 12
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    found = training_flops(lambda: model.training_losses(images)["loss"])
    assert found == 3 * (2 * embedding + 3 * rest)


@pytest.mark.parametrize(
    "encoder",
    ["vit_tiny_patch16_224", "vit_small_patch16_224", "vit_medium_patch16_gap_240", "vit_betwixt_patch16_reg4_gap_256"],
)
def test_unmasked_tokens_are_timms_own_features(encoder):
    model = off_the_start(MaskedAutoencoder(encoder, image_size=16, patch_size=4, depth=2)).eval()
    images = torch.randn(2, 3, 16, 16)
    pool = {"global_pool": "avg", "fc_norm": False}  # the norm comes before the pooling in every encoder
    plain = timm.create_model(encoder, img_size=16, patch_size=4, depth=2, num_classes=0, **pool).eval()
    plain.load_state_dict(model.encoder.state_dict(), strict=True)
    with torch.no_grad():
        expected = plain.forward_features(images)
        nothing_hidden = torch.zeros(model.num_patches, dtype=torch.bool)
        torch.testing.assert_close(model.encode_tokens(images), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.encode_tokens(images, nothing_hidden), expected, atol=1e-5, rtol=0)


REFERENCE_CASES = {
    "normalised pixels": {},
    "plain pixels": {"norm_pix_loss": False},
    "grey, not square": {"image_size": (6, 8), "in_channels": 1},
    "oblong patches": {"image_size": (8, 8), "patch_size": (4, 2)},
    "half hidden": {"mask_ratio": 0.5},
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("changes", REFERENCE_CASES.values(), ids=REFERENCE_CASES.keys())
def test_loss_and_gradients_equal_the_plain_reference(changes, fused):
    model = off_the_start(small_model(**changes))
    set_fused_attention(model, fused)
    images = torch.randn(3, model.in_channels, *model.image_size)
    mask = random_mask(3, model.num_patches, model.mask_ratio)
    weights = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    expected, _ = reference_loss(weights, model.config, images, mask)
    loss = model(images, mask).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, atol=1e-5, rtol=1e-4, msg=f"{name}: {{}}".format)


@pytest.mark.parametrize("in_channels", [1, 3])
def test_gradients_lie_in_memory_as_their_parameters_do(in_channels):
    """Or DDP copies them, and warns of it."""
    model = small_model(in_channels=in_channels)
    model(torch.rand(4, in_channels, 8, 8)).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.stride() == parameter.stride(), name


def test_bf16_stays_near_the_reference():
    model = off_the_start(small_model())
    images, mask = torch.randn(8, 3, 8, 8), random_mask(8, 16, 0.75)
    expected, _ = reference_loss(dict(model.named_parameters()), model.config, images, mask)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images, mask).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=0, rtol=0.02)


def test_nothing_hidden_reaches_the_prediction():
    model = off_the_start(small_model()).eval()
    images, mask = torch.randn(2, 3, 8, 8), random_mask(2, 16, 0.75)
    hidden = unpatchify(mask[..., None].expand(-1, -1, 12).float(), 2, (8, 8)).bool()
    changed = torch.where(hidden, torch.randn_like(images), images)
    assert torch.equal(model(images, mask).prediction, model(changed, mask).prediction)
    assert torch.equal(
        model.reconstruct(images, mask).prediction[hidden], model.reconstruct(changed, mask).prediction[hidden]
    )


def test_every_form_of_a_users_mask_means_the_same():
    model = small_model().eval()
    images = torch.randn(2, 3, 8, 8)
    grid = torch.zeros(4, 4, dtype=torch.bool)
    grid[1:3, 1:] = True
    forms = [grid, grid.flatten(), grid.expand(2, 4, 4), grid.flatten().expand(2, 16)]
    for function in (
        lambda m: model(images, m).loss,
        lambda m: model.encode_tokens(images, m),
        lambda m: model.reconstruct(images, m).images,
    ):
        first, *others = [function(form) for form in forms]
        assert all(torch.equal(first, other) for other in others)
    assert model.encode_tokens(images, grid).shape == (2, 1 + 10, 24)


@pytest.mark.parametrize(
    "mask,message",
    [
        (torch.ones(16, dtype=torch.bool), "hides all 16 patches"),
        (torch.zeros(16, dtype=torch.bool), "hides no patch"),
        (torch.zeros(16), "wanted torch.bool"),
        (torch.zeros(15, dtype=torch.bool), r"shape \(15,\)"),
        (torch.eye(2, 16).bool().logical_or(torch.tensor([[True], [False]]) & (torch.arange(16) < 3)), "from 1 to 3"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(mask, message):
    with pytest.raises(InputError, match=message):
        small_model()(torch.randn(2, 3, 8, 8), mask)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"patch_size": 3}, "image_size 8 is not a multiple of patch_size 3"),
        ({"mask_ratio": 1.0}, r"mask_ratio 1.0 is outside \(0, 1\)"),
        ({"mask_ratio": 0.01}, "hides no patch"),
        ({"mask_ratio": 0.99}, "hides every patch"),
        ({"encoder": "resnet18"}, "ResNet, not a timm VisionTransformer|cannot be built"),
        ({"encoder": "vit_tinny"}, "is not a timm model"),
        ({"num_heads": 5}, "cannot be built"),
        ({"decoder_dim": 18}, "decoder_dim 18"),
        ({"mean": (0.1, 0.2)}, "mean has 2 values for in_channels 3"),
        ({"patch_size": 1, "in_channels": 1}, "norm_pix_loss"),
        ({"norm_eps": 1e-5}, "norm_eps 1e-05 is outside"),  # which a classifier could not keep
    ],
)
def test_arguments_that_cannot_work_are_named(changes, message):
    with one_line(message):
        small_model(**changes)


def test_images_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"\(2, 1, 8, 8\)"):
        small_model()(torch.randn(2, 1, 8, 8))


def test_uint8_images_are_normalised_by_the_config():
    model = small_model(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).eval()
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    scaled = (images / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(model.encode(images), model.encode(scaled))


def test_pooling():
    model = small_model().eval()
    images = torch.randn(2, 3, 8, 8)
    tokens = model.encode_tokens(images)
    assert torch.equal(model.encode(images, pool="cls"), tokens[:, 0])
    torch.testing.assert_close(model.encode(images), tokens[:, 1:].mean(1))
    with pytest.raises(InputError, match="pool 'max'"):
        model.encode(images, pool="max")
    registers = small_model(encoder="vit_betwixt_patch16_reg4_gap_256").eval()
    with pytest.raises(InputError, match="pool 'cls' is not 'avg', which is what a Masked"):
        registers.encode(images, pool="cls")


@pytest.mark.parametrize("encoder", ["vit_betwixt_patch16_reg4_gap_256", "vit_base_patch16_siglip_224"])
def test_an_encoder_with_a_head_of_its_own_leaves_it_out_and_can_be_classified(encoder, tmp_path):
    model = MaskedAutoencoder(encoder, image_size=8, patch_size=2, embed_dim=24, depth=1, num_heads=2).eval()
    images = torch.randn(2, 3, 8, 8)
    model(images).loss.backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []
    classifier = build_classifier(model, classes=["cat", "dog"]).eval()
    torch.testing.assert_close(classifier.vit.head(model.encode(images)), classifier(images))
    export_timm(model, tmp_path)
    timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


@pytest.mark.parametrize("encoder", ["deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224"])
def test_an_encoder_that_is_no_plain_vit_is_refused(encoder):
    with pytest.raises(InputError, match=f"encoder '{encoder}'"):
        MaskedAutoencoder(encoder, image_size=32, patch_size=8)


def test_floats_of_any_width_are_taken_and_other_integers_refused():
    model = small_model().eval()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(model.encode(images), model.encode(images.float()))
    with pytest.raises(InputError, match="images are torch.int64: give torch.uint8"):
        model.encode(images.long())


def test_positions_start_as_sines_and_cosines():
    positions = small_model().encoder.pos_embed[0, 1:]  # (16, 24)
    torch.testing.assert_close(positions.square().sum(1), torch.full((16,), 12.0))  # sin^2 + cos^2, 12 times
    assert len(positions.round(decimals=4).unique(dim=0)) == 16


def test_weights_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere.* does not exist"):
        MaskedAutoencoder.from_pretrained(tmp_path / "nowhere")
    small_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="model.safetensors is truncated or damaged"):
        MaskedAutoencoder.from_pretrained(tmp_path)
    file.write_bytes(whole)
    edit_json(tmp_path / "config.json", {"depth": 3})
    with pytest.raises(InputError, match="another architecture"):
        MaskedAutoencoder.from_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", {"depth": 2, "decoder_dim": 32})
    with pytest.raises(InputError, match="of shape"):
        MaskedAutoencoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json is not valid JSON"):
        MaskedAutoencoder.from_pretrained(tmp_path)


def test_floats_that_nobody_normalised_are_warned_of_once():
    """In 0 to 1 or in 0 to 255; uint8 and normalised images are not remarked on."""
    model = MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=1, num_heads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bright = torch.randint(128, 256, (2, 3, 8, 8), dtype=torch.uint8)  # normalised, all lie in [0, 1]
        model.encode(bright), model.reconstruct(bright), tinymae.anomaly_map(model, bright, passes=2)
    with pytest.warns(UserWarning, match="lie in .0, 1., and are taken as normalised"):
        model.encode(torch.rand(2, 3, 8, 8))
    pixels = torch.randint(0, 256, (2, 3, 8, 8)).float()
    with pytest.warns(UserWarning, match="from 0 to 255, while normalised ones reach 1, and are taken as normalised"):
        MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=1, num_heads=2).encode(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(torch.rand(2, 3, 8, 8))
        MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=1, num_heads=2).encode(
            torch.randn(2, 3, 8, 8)
        )


@pytest.mark.parametrize("call", ["encode", "encode_layers", "__call__", "reconstruct", "a classifier", "Features"])
def test_the_warning_points_at_the_users_line(call):
    images, model = torch.rand(2, 3, 8, 8), small_model().eval()
    functions = {
        "encode": model.encode, "encode_layers": lambda images: model.encode_layers(images, 1), "__call__": model,
        "reconstruct": model.reconstruct, "a classifier": tinymae.build_classifier(model, classes=["a", "b"]),
        "Features": tinymae.Features(model).fit_transform,
    }  # fmt: skip
    with pytest.warns(UserWarning, match="taken as normalised") as found:
        functions[call](images)
    assert [warning.filename for warning in found] == [__file__]


def test_a_good_batch_does_not_spend_the_warning_and_a_long_training_looks_at_few():
    model = small_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(LOOKS - 1):
            model(torch.randn(2, 3, 8, 8))
    with pytest.warns(UserWarning, match="taken as normalised"):
        copy.deepcopy(model)(torch.rand(2, 3, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(2, 3, 8, 8))
        model(torch.rand(2, 3, 8, 8))  # one more than it looks at
    model.eval()  # where training normalises, evaluation may have forgotten it
    with pytest.warns(UserWarning, match="taken as normalised"):
        model.encode(torch.rand(2, 3, 8, 8))


def test_gradients_of_each_sample_are_torch_funcs():
    """The first floats that a model sees are not looked at inside of its transforms, where no value can be read."""
    model, images = small_model(), torch.randn(3, 3, 8, 8)
    mask = random_mask(3, model.num_patches, 0.75, torch.Generator().manual_seed(0))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights, image, mask):
        output = torch.func.functional_call(model, weights, (image[None], mask[None]), {"num_hidden": 12})
        return output.loss

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, images, mask)
    model(images[1:2], mask[1:2]).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name][1], parameter.grad, atol=1e-5, rtol=1e-4)


def test_floats_that_are_given_stay_as_they_are():
    """What one model made of them is nothing that the next one, or a file that they are saved in, should know."""
    images = torch.rand(2, 3, 8, 8)
    for _ in range(2):
        with pytest.warns(UserWarning, match="lie in .0, 1., and are taken as normalised"):
            MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=1, num_heads=2).reconstruct(images)
    assert not vars(images)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 8, 8).numpy(), [torch.zeros(3, 8, 8)], Image.new("RGB", (8, 8)), "cat.png"]
)
def test_what_is_no_tensor_is_refused_and_the_way_to_give_it_is_named(images):
    model = small_model()
    for function in (model.encode, model.reconstruct, model, build_classifier(model, classes=["a"])):
        with pytest.raises(InputError, match=r"images are of type \w+: give a tensor \(batch, 3, 8, 8\).*from_numpy"):
            function(images)


def test_a_batch_without_images_has_features_and_no_loss():
    model, images = small_model(), torch.zeros(0, 3, 8, 8)
    assert model.encode(images).shape == (0, model.num_features)
    for function in (model, model.reconstruct):
        with pytest.raises(InputError, match="images are an empty batch: give at least one image"):
            function(images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_probabilities_are_of_logits_and_not_of_images(dtype):
    classifier = build_classifier(small_model(), classes=["a", "b"])
    message = r"logits have shape \(2, 3, 8, 8\), not \(batch, 2\): .* classifier.probabilities\(classifier\(images\)\)"
    with pytest.raises(InputError, match=message):
        classifier.probabilities(torch.zeros(2, 3, 8, 8, dtype=dtype))


# ---- of any shape


sides = st.integers(1, 4)


@settings(max_examples=60, deadline=None)
@given(rows=sides, columns=sides, high=sides, wide=sides, channels=st.integers(1, 5), batch=st.integers(1, 4))
def test_patchify_is_undone_for_any_shape(rows, columns, high, wide, channels, batch):
    images = torch.randn(batch, channels, rows * high, columns * wide)
    patches = patchify(images, (high, wide))
    assert patches.shape == (batch, rows * columns, high * wide * channels)
    assert torch.equal(unpatchify(patches, (high, wide), (rows * high, columns * wide)), images)


@settings(max_examples=100, deadline=None)
@given(batch=st.integers(1, 9), patches=st.integers(2, 80), ratio=st.floats(0.001, 0.999))
def test_any_mask_hides_what_it_says(batch, patches, ratio):
    hidden = round(patches * ratio)
    if not 0 < hidden < patches:
        with pytest.raises(InputError, match="mask_ratio"):
            random_mask(batch, patches, ratio)
    else:
        mask = random_mask(batch, patches, ratio)
        assert mask.dtype == torch.bool and (mask.sum(1) == hidden).all()


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 4), columns=st.integers(2, 4), patch=st.integers(1, 3), channels=st.integers(1, 4),
    batch=st.integers(1, 5), ratio=st.floats(0.05, 0.95), norm_pix_loss=st.booleans(),
)  # fmt: skip
def test_any_model_trains_encodes_and_reconstructs(rows, columns, patch, channels, batch, ratio, norm_pix_loss):
    arguments = {
        "image_size": (rows * patch, columns * patch), "patch_size": patch, "in_channels": channels,
        "mask_ratio": ratio, "embed_dim": 8, "depth": 1, "num_heads": 2, "decoder_dim": 8, "decoder_depth": 1,
        "decoder_heads": 2, "norm_pix_loss": norm_pix_loss,
    }  # fmt: skip
    count = rows * columns
    possible = 0 < round(ratio * count) < count and not (norm_pix_loss and patch == channels == 1)
    if not possible:
        with pytest.raises(InputError):
            MaskedAutoencoder(**arguments)
        return
    model = MaskedAutoencoder(**arguments)
    images = torch.randint(0, 256, (batch, channels, rows * patch, columns * patch), dtype=torch.uint8)
    output = model(images)
    output.loss.backward()
    assert torch.isfinite(output.loss) and output.reconstruction.shape == images.shape
    assert (output.mask.sum(1) == round(ratio * count)).all()
    assert model.encode(images).shape == (batch, 8)
    assert model.encode_tokens(images, output.mask).shape == (batch, 1 + count - round(ratio * count), 8)
    pictures = model.reconstruct(images).images
    assert pictures.shape == images.shape and 0 <= pictures.min() <= pictures.max() <= 1
