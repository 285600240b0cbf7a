"""Other libraries' weights, held against the libraries themselves; the official code by the plain reference."""

import argparse
import os
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from reference import reference_loss
from running import assert_same_weights, edit_json, off_the_start, one_line
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN
from timm.models._manipulate import adapt_input_conv
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

import tinymae
from tinymae import Classifier, InputError, MaskedAutoencoder, adapt, export_timm, patchify, random_mask, unpatchify
from tinymae.interop.sizes import infer_sizes
from tinymae.models.classifier import build_classifier
from tinymae.models.conv import ConvAutoencoder

SIZES = {
    "image_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "decoder_dim": 16,
    "decoder_depth": 2, "decoder_heads": 2,
}  # fmt: skip
HEADS = {"num_heads": 2, "decoder_heads": 2}
STATISTICS = {"mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.4)}
CLASSES = ["cat", "dog", "eel"]


def small_model(**changes) -> MaskedAutoencoder:
    return off_the_start(MaskedAutoencoder(**{**SIZES, **changes})).eval()


def small_classifier(*, pool: str = "cls", **changes) -> Classifier:
    return off_the_start(build_classifier(small_model(**changes, **STATISTICS), classes=CLASSES, pool=pool)).eval()


def official_state(*, patch=4, channels=3, patches=16, width=32, decoder_width=16) -> dict:
    """Random weights under the names and shapes of the official code, two blocks each."""

    def blocks(prefix, width):
        shapes = {
            "norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width), "norm2": (width,),
            "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width),
        }  # fmt: skip
        return {f"{prefix}.{n}.{name}": shape for n in range(2) for name, shape in shapes.items()}

    layers = {
        "patch_embed.proj": (width, channels, patch, patch), **blocks("blocks", width), "norm": (width,),
        "decoder_embed": (decoder_width, width), **blocks("decoder_blocks", decoder_width),
        "decoder_norm": (decoder_width,), "decoder_pred": (patch * patch * channels, decoder_width),
    }  # fmt: skip
    shapes = {
        "cls_token": (1, 1, width), "pos_embed": (1, patches + 1, width), "mask_token": (1, 1, decoder_width),
        "decoder_pos_embed": (1, patches + 1, decoder_width),
    }  # fmt: skip
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {name: torch.randn(shape) / max(shape[-1], 1) ** 0.5 for name, shape in shapes.items()}


def without_decoder(state: dict) -> dict:
    return {name: tensor for name, tensor in state.items() if not name.startswith(("decoder", "mask"))}


# ---- the official MAE


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_an_official_checkpoint_predicts_what_the_paper_says(tmp_path, norm_pix_loss):
    state = official_state()
    settings = argparse.Namespace(norm_pix_loss=norm_pix_loss)
    torch.save({"model": state, "args": settings, "epoch": 799}, tmp_path / "mae.pth")
    model = tinymae.from_official(tmp_path / "mae.pth", **HEADS, norm_pix_loss=norm_pix_loss)
    images, mask = torch.randn(2, 3, 16, 16), random_mask(2, 16, 0.75)
    weights = {n if n.startswith(("decoder", "mask")) else f"encoder.{n}": tensor for n, tensor in state.items()}
    loss, predictions = reference_loss(weights, {**SIZES, **model.config}, images, mask)
    torch.testing.assert_close(model.decode(model.encode_tokens(images, mask), mask), predictions, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(images, mask).loss, loss, atol=1e-5, rtol=0)
    assert not model.training and model.config["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert_same_weights(tinymae.load(tmp_path / "mae.pth", **HEADS), model)


def test_what_is_written_for_the_official_code_comes_back_bit_for_bit(tmp_path):
    model = small_model(image_size=(16, 8), in_channels=2, **dict.fromkeys(("mean", "std"), (0.4, 0.5)))
    tinymae.to_official(model, tmp_path / "mae.pth")
    written = torch.load(tmp_path / "mae.pth", weights_only=True)
    assert written.keys() == {"model", "heads", "statistics"}
    assert written["model"].keys() == official_state().keys()
    # Which finds heads, mean and std in it.
    back = tinymae.from_official(tmp_path / "mae.pth", image_size=(16, 8), norm_pix_loss=True)
    assert_same_weights(model, back)
    assert back.config == model.config and back.reading == {}
    assert os.listdir(tmp_path) == ["mae.pth"]
    model.reading = {"fit": "pad", "depth": "uint16"}  # how files were read goes along
    tinymae.to_official(model, tmp_path / "mae.pth")
    assert tinymae.from_official(tmp_path / "mae.pth", image_size=(16, 8)).reading == model.reading
    other = {"mean": (0.1, 0.2), "std": (0.3, 0.4)}  # given ones count
    given = tinymae.from_official(tmp_path / "mae.pth", image_size=(16, 8), **other).config
    assert {name: tuple(given[name]) for name in other} == other
    for wrong in ({"mean": "0.5", "std": [0.5]}, {"mean": [0.5]}, [0.5]):
        torch.save(written | {"statistics": wrong}, tmp_path / "wrong.pth")
        with pytest.raises(InputError, match="statistics|mean|std"):
            tinymae.from_official(tmp_path / "wrong.pth", image_size=(16, 8))


@pytest.mark.parametrize(
    "width,patch,encoder,heads",
    [
        (768, 16, "vit_base_patch16_224", 12),
        (1024, 16, "vit_large_patch16_224", 16),
        (1280, 14, "vit_huge_patch14_224", 16),
        (192, 4, "vit_tiny_patch16_224", 3),
        (384, 8, "vit_small_patch16_224", 6),
    ],
)
def test_the_sizes_of_known_models_are_read_off_their_shapes(width, patch, encoder, heads):
    vit = timm.create_model(encoder, patch_size=patch, depth=1, num_classes=0)
    state = {f"encoder.{name}": tensor for name, tensor in vit.state_dict().items()}
    sizes = infer_sizes(state, source="a.pth", image_size=None, num_heads=None)
    assert sizes == {
        "encoder": encoder, "image_size": (224, 224), "patch_size": (patch, patch), "in_channels": 3,
        "embed_dim": width, "depth": 1, "num_heads": heads,
    }  # fmt: skip


def test_the_papers_decoder_has_16_heads_and_others_are_64_wide(tmp_path):
    torch.save({"model": official_state(width=64, decoder_width=512)}, tmp_path / "paper.pth")
    torch.save({"model": official_state(width=64, decoder_width=128)}, tmp_path / "other.pth")
    paper = tinymae.from_official(tmp_path / "paper.pth", num_heads=1).config
    with pytest.warns(UserWarning, match="does not say its decoder_heads: taken for 2, 64 wide"):
        other = tinymae.from_official(tmp_path / "other.pth", num_heads=1).config
    assert (paper["num_heads"], paper["decoder_heads"], other["decoder_heads"]) == (1, 16, 2)


def test_an_encoder_alone_is_loaded_with_a_warning_about_the_decoder(tmp_path):
    state = official_state()
    torch.save({"model": without_decoder(state)}, tmp_path / "encoder.pth")
    with pytest.warns(UserWarning, match="an encoder alone: the decoder is at its initialisation"):
        model = tinymae.from_official(tmp_path / "encoder.pth", num_heads=2, decoder_dim=24, decoder_heads=2)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.encoder.state_dict().items())
    assert (model.config["decoder_dim"], model.config["decoder_depth"]) == (24, 8)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_a_file_that_could_run_code_is_refused_and_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": official_state(), "args": Trap()}, "trap.pth")
    with pytest.raises(
        InputError, match="holds a (posix|nt).mkdir, and to unpickle more than tensors could run code"
    ) as error:
        tinymae.from_official("trap.pth", **HEADS)
    assert not Path("sprung").exists() and "\n" not in str(error.value)


REFUSED = {
    "fine-tuned": (lambda s: without_decoder(s) | {"head.weight": torch.zeros(3, 32)}, {}, "holds a classifier"),
    "another decoder": (lambda s: s, {"decoder_dim": 32}, "decoder_dim 32 contradicts .* has 16"),
    "unknown heads": (lambda s: s, {"num_heads": None}, "num_heads of .* width 32 .*; pass num_heads"),
    "unknown decoder heads": (lambda s: s, {"decoder_heads": None}, "pass decoder_heads"),
    "no square": (lambda s: s | {"pos_embed": torch.zeros(1, 13, 32)}, {}, "12 patches do not form a square"),
    "another size": (lambda s: s, {"image_size": 32}, "image_size .* does not give the 16 patches"),
    "an extra tensor": (lambda s: s | {"gamma": torch.zeros(1)}, {}, "another architecture .*gamma"),
    "a lost tensor": (lambda s: {n: t for n, t in s.items() if n != "norm.bias"}, {}, "missing .'encoder.norm.bias"),
    "wide MLP": (lambda s: s | {"blocks.0.mlp.fc1.bias": torch.zeros(9)}, {}, "fc1.bias of shape"),
    "no convolution": (lambda s: s | {"patch_embed.proj.weight": torch.zeros(32, 48)}, {}, "is no convolution"),
    "something else": (lambda s: {"weight": torch.zeros(1)}, {}, "holds no masked autoencoder or ViT"),
    "no tensors": (lambda s: {"model": 1}, {}, "holds no weights"),
}


@pytest.mark.parametrize("change,arguments,message", REFUSED.values(), ids=REFUSED.keys())
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path, change, arguments, message):
    torch.save({"model": change(official_state())}, tmp_path / "mae.pth")
    with one_line(message):
        tinymae.from_official(tmp_path / "mae.pth", **{**HEADS, **arguments})


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(InputError, match="nothing.pth does not exist"):
        tinymae.from_official(tmp_path / "nothing.pth")
    path = tmp_path / "mae.pth"
    torch.save({"model": official_state()}, path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(content)
        with one_line("mae.pth is"):
            tinymae.from_official(path)


@pytest.mark.parametrize(
    "encoder", ["vit_betwixt_patch16_reg4_gap_256", "vit_base_patch16_clip_quickgelu_224", "vit_base_patch16_rpn_224"]
)
def test_an_encoder_that_others_do_not_know_is_not_written(tmp_path, encoder):
    model = MaskedAutoencoder(encoder, **{**SIZES, "depth": 1})
    for write in (tinymae.to_official, tinymae.to_transformers):
        with pytest.raises(InputError, match=f"{encoder}' is no plain ViT"):
            write(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- transformers


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def hugging_face_mae(transformers, **changes):
    config = transformers.ViTMAEConfig(**{
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
        "image_size": 16, "patch_size": 4, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 4, "decoder_intermediate_size": 64, **changes,
    })  # fmt: skip
    return transformers.ViTMAEForPreTraining(config).eval()


def load_cleanly(model_class, folder):
    model, report = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@torch.no_grad()
def assert_same_predictions(ours: MaskedAutoencoder, theirs):
    images = torch.randn(3, ours.in_channels, *ours.image_size)
    mask = random_mask(3, ours.num_patches, 0.75)
    answer = theirs(images, noise=mask.float())  # it hides where the noise is largest
    assert torch.equal(answer.mask.bool(), mask)
    torch.testing.assert_close(ours.decode(ours.encode_tokens(images, mask), mask), answer.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(images, mask).loss, answer.loss, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes", [{}, {"layer_norm_eps": 1e-6, "norm_pix_loss": True}, {"num_channels": 1, "image_size": 8}]
)
@pytest.mark.parametrize("start", ["as initialised", "off it"])
def test_a_vitmae_of_transformers_predicts_the_same_here(tmp_path, transformers, changes, start):
    theirs = hugging_face_mae(transformers, **changes)
    if start == "off it":
        off_the_start(theirs)
    theirs.save_pretrained(tmp_path / "hf")
    ours = tinymae.from_transformers(tmp_path / "hf")
    assert_same_predictions(ours, theirs)
    assert ours.norm_pix_loss == theirs.config.norm_pix_loss
    ours.write_weights(tmp_path / "ours")
    assert_same_predictions(tinymae.load(tmp_path / "ours"), theirs)


def test_an_autoencoder_predicts_the_same_in_transformers_and_comes_back_bit_for_bit(tmp_path, transformers):
    model = small_model(**STATISTICS, norm_pix_loss=False)
    tinymae.to_transformers(model, tmp_path)
    theirs = load_cleanly(transformers.ViTMAEForPreTraining, tmp_path)
    assert_same_predictions(model, theirs)
    theirs.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "preprocessor_config.json").exists()
    for folder in (tmp_path, tmp_path / "again"):
        assert_same_weights(again := tinymae.from_transformers(folder), model)
        statistics = {name: pytest.approx(values) for name, values in STATISTICS.items()}
        sizes = {name: model.config[name] for name in ("encoder", "embed_dim", "depth", "num_heads")}
        assert again.config | sizes == model.config | statistics


def test_the_names_of_transformers_own_modules_are_read_too(tmp_path, transformers):
    theirs = off_the_start(hugging_face_mae(transformers))
    theirs.save_pretrained(tmp_path)
    save_file(
        {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, tmp_path / "model.safetensors"
    )
    assert_same_predictions(tinymae.from_transformers(tmp_path), theirs)


@pytest.mark.parametrize("sizes", [{}, {"image_size": (16, 8)}, {"image_size": (16, 8), "patch_size": (8, 4)}])
def test_a_classifier_gives_the_same_logits_in_transformers_and_back(tmp_path, transformers, sizes):
    model = small_classifier(**sizes)
    tinymae.to_transformers(model, tmp_path)
    theirs = load_cleanly(transformers.ViTForImageClassification, tmp_path)
    images = torch.randint(0, 256, (3, 3, *model.image_size), dtype=torch.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, model.normalise(images), atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixels).logits, model(images), atol=1e-5, rtol=0)
    assert theirs.config.id2label == {0: "cat", 1: "dog", 2: "eel"}
    back = tinymae.classifier_from_transformers(tmp_path)
    assert_same_weights(back.vit, model.vit)
    assert back.classes == CLASSES and torch.equal(tinymae.load(tmp_path)(pixels), back(pixels))
    torch.testing.assert_close(back.encoder.mean, model.encoder.mean)
    torch.testing.assert_close(back.encoder.std, model.encoder.std)


def test_a_classifier_of_transformers_gives_the_same_logits_here(tmp_path, transformers):
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=16, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    theirs = off_the_start(transformers.ViTForImageClassification(config)).eval()
    theirs.save_pretrained(tmp_path)
    ours, images = tinymae.classifier_from_transformers(tmp_path), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images).logits, atol=1e-5, rtol=0)
    assert ours.classes == ["LABEL_0", "LABEL_1", "LABEL_2"] and ours.encoder.mean.flatten().tolist() == [0.5]
    edit_json(tmp_path / "config.json", {"id2label": {"2": "eel", "0": "cat", "1": "dog"}})  # in whatever order
    assert tinymae.classifier_from_transformers(tmp_path).classes == CLASSES


@pytest.mark.parametrize("changes", [{"do_normalize": False}, {"do_normalize": None}, {"rescale_factor": 0.003921569}])
def test_pixels_are_normalised_as_by_the_processor_of_transformers(tmp_path, transformers, changes):
    for model in (small_classifier(), small_model(**STATISTICS)):
        tinymae.to_transformers(model, tmp_path)
        edit_json(tmp_path / "preprocessor_config.json", changes)
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
        images = torch.randint(0, 256, (3, 3, *model.image_size), dtype=torch.uint8)
        pixels = processor(list(images), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(tinymae.load(tmp_path).normalise(images), pixels, atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", [{"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"rescale_factor": 10**400}])
def test_pixels_of_another_scale_are_refused_unless_mean_and_std_are_given(tmp_path, changes):
    tinymae.to_transformers(small_classifier(), tmp_path)
    edit_json(tmp_path / "preprocessor_config.json", changes)
    with one_line("does not scale pixels by 1/255"):
        tinymae.load(tmp_path)
    given = tinymae.classifier_from_transformers(tmp_path, **STATISTICS).encoder.mean
    assert given.flatten().tolist() == pytest.approx(STATISTICS["mean"])


@torch.no_grad()
def test_several_labels_an_image_have_the_same_probabilities_in_transformers_and_back(tmp_path, transformers):
    model = small_classifier()
    model.several = True
    tinymae.to_transformers(model, tmp_path / "ours")
    theirs = load_cleanly(transformers.ViTForImageClassification, tmp_path / "ours")
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    pipeline = transformers.ImageClassificationPipeline(
        model=theirs, image_processor=transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
    )
    answers = pipeline([Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images])
    scores = torch.tensor([[{a["label"]: a["score"] for a in answer}[name] for name in CLASSES] for answer in answers])
    theirs.save_pretrained(tmp_path / "theirs")
    expected = model.probabilities(model(images))
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    for folder in (tmp_path / "ours", tmp_path / "theirs"):
        back = tinymae.load(folder)
        torch.testing.assert_close(back.probabilities(back(model.normalise(images))), expected)
    export_timm(model, tmp_path / "timm")
    assert tinymae.load(tmp_path / "timm").several  # nor is it lost there


@pytest.mark.parametrize("problem", ["regression", [], 3])
def test_a_vit_that_is_no_classifier_is_refused(tmp_path, problem):
    tinymae.to_transformers(small_classifier(), tmp_path)
    edit_json(tmp_path / "config.json", {"problem_type": problem})
    with one_line("problem_type .* is no classification"):
        tinymae.load(tmp_path)


def test_what_transformers_cannot_express_is_refused(tmp_path):
    for model, message in [
        (small_classifier(pool="avg"), "classifies by the class token; fine-tune with pool 'cls'"),
        (small_model(image_size=(16, 8)), "not square, which ViTMAE wants"),
        (small_model(patch_size=(8, 4)), "not square, which ViTMAE wants"),
        (build_classifier(ConvAutoencoder(image_size=8), classes=CLASSES), "on a ConvAutoencoder is no ViT"),
        (ConvAutoencoder(image_size=8), "model is a ConvAutoencoder"),
    ]:
        with pytest.raises(InputError, match=message):
            tinymae.to_transformers(model, tmp_path / "out")
    for model, kind in [(small_classifier(), "Classifier"), (ConvAutoencoder(image_size=8), "ConvAutoencoder")]:
        with pytest.raises(InputError, match=f"model is a {kind}: an official checkpoint holds a masked autoencoder"):
            tinymae.to_official(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change,message",
    [
        ({"model_type": "vit"}, "holds model_type 'vit', not 'vit_mae'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"qkv_bias": False}, "qkv_bias False"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05"),
        ({"decoder_num_hidden_layers": 3}, "another architecture"),
        ({"image_size": 32}, "does not give the 16 patches"),
    ],
)
def test_a_folder_of_transformers_that_does_not_fit_is_refused(tmp_path, change, message):
    tinymae.to_transformers(small_model(), tmp_path)
    edit_json(tmp_path / "config.json", change)
    with one_line(message):
        tinymae.from_transformers(tmp_path)


def test_a_null_mean_is_none(tmp_path):
    tinymae.to_transformers(small_model(**STATISTICS), tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    edit_json(tmp_path / "config.json", {"image_mean": None})
    again = tinymae.from_transformers(tmp_path).config
    assert again["mean"] == list(IMAGENET_DEFAULT_MEAN) and again["std"] == pytest.approx(STATISTICS["std"])


def test_an_official_file_of_tensors_without_content_is_refused(tmp_path):
    model = small_model()
    tinymae.to_official(model, tmp_path / "mae.pth")
    content = torch.load(tmp_path / "mae.pth", weights_only=True)
    for name, tensor, says in [
        ("pos_embed", torch.zeros(1, 1, 1).expand(1, 17, 32), "larger than what is stored of them"),
        ("patch_embed.proj.weight", torch.zeros(32, 3, 0, 0), "its patch projection or its positions are empty"),
        ("pos_embed", torch.zeros(1, 0, 32), "its patch projection or its positions are empty"),
        ("decoder_embed.weight", torch.zeros(()), "decoder_embed.weight is no matrix"),
    ]:
        torch.save(content | {"model": content["model"] | {name: tensor}}, tmp_path / "wrong.pth")
        with pytest.raises(InputError, match=says):
            tinymae.load(tmp_path / "wrong.pth")


def test_an_incomplete_folder_of_transformers_is_refused(tmp_path):
    tinymae.to_transformers(small_model(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    lost = "vit.encoder.layer.0.attention.attention.key.bias"
    save_file({name: tensor for name, tensor in state.items() if name != lost}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="missing .'encoder.blocks.0.attn.qkv.bias"):
        tinymae.from_transformers(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"ViTMAEForPreTraining.from_pretrained\(...\).save_pretrained"):
        tinymae.from_transformers(tmp_path)


# ---- timm


def timm_arguments(config: dict) -> dict:
    return {
        "img_size": config["image_size"], "patch_size": config["patch_size"], "in_chans": config["in_channels"],
        **{key: config[key] for key in ("embed_dim", "depth", "num_heads")},
    }  # fmt: skip


@torch.no_grad()
def test_an_exported_encoder_is_the_encoder_in_plain_timm(tmp_path):
    model = small_model(image_size=(16, 8), **STATISTICS)
    model.write_weights(tmp_path / "mae")
    export_timm(tmp_path / "mae", tmp_path / "timm")
    hub = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    plain, averaging = (
        timm.create_model(
            "vit_tiny_patch16_224", **timm_arguments(model.config), num_classes=0,
            checkpoint_path=tmp_path / "timm" / "model.safetensors", **pooling,
        ).eval()
        for pooling in ({}, {"global_pool": "avg", "fc_norm": False})
    )  # fmt: skip
    images = torch.randn(2, 3, 16, 8)
    for theirs, pool in ((hub, "avg"), (averaging, "avg"), (plain, "cls")):
        torch.testing.assert_close(theirs(images), model.encode(images, pool=pool), atol=1e-6, rtol=0)
        torch.testing.assert_close(theirs.forward_features(images), model.encode_tokens(images), atol=1e-6, rtol=0)
    for vit in (hub, model.encoder, build_classifier(model, classes=CLASSES).vit):
        data = timm.data.resolve_model_data_config(vit)
        assert (*map(tuple, (data["input_size"], data["mean"], data["std"])),) == ((3, 16, 8), *STATISTICS.values())
    with pytest.raises(InputError, match="an encoder written for timm, without a head"):
        tinymae.load(tmp_path / "timm")


@pytest.mark.parametrize("pool,pooling", [("cls", {}), ("avg", {"global_pool": "avg", "fc_norm": False})])
@torch.no_grad()
def test_an_exported_classifier_gives_its_logits_in_plain_timm(tmp_path, pool, pooling):
    model = small_classifier(pool=pool)
    export_timm(model, tmp_path)
    hub = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    plain = timm.create_model(
        "vit_tiny_patch16_224", **timm_arguments(SIZES | {"in_channels": 3}), num_classes=3, **pooling,
        checkpoint_path=tmp_path / "model.safetensors",
    ).eval()  # fmt: skip
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    for theirs in (hub, plain):
        torch.testing.assert_close(theirs(model.normalise(images)), model(images), atol=1e-6, rtol=0)
    assert hub.pretrained_cfg["label_names"] == CLASSES
    assert hub.pretrained_cfg["mean"] == pytest.approx(STATISTICS["mean"])
    again = tinymae.load(tmp_path)
    assert torch.equal(again(images), model(images))
    export_timm(tmp_path, tmp_path / "again")  # of a folder as of a model
    assert_same_weights(tinymae.load(tmp_path / "again"), again)


def test_what_is_no_vit_is_not_written_for_timm(tmp_path):
    for model in (ConvAutoencoder(image_size=8), build_classifier(ConvAutoencoder(image_size=8), classes=CLASSES)):
        with pytest.raises(InputError, match=f"hold a {type(model).__name__} that is no ViT"):
            export_timm(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- other sizes


def test_the_same_size_keeps_every_weight():
    model = small_model(**STATISTICS)
    model.reading = {"fit": "pad"}
    same = adapt(model, image_size=16, patch_size=4, in_channels=3)
    assert same.reading == {"fit": "pad"}
    assert_same_weights(model, same)
    assert same.config == model.config and same is not model


@pytest.mark.parametrize("image_size,patch_size", [(32, 4), ((24, 8), 4), (16, 8), ((16, 32), (2, 8))])
def test_a_resized_encoder_is_what_timm_makes_of_its_weights(image_size, patch_size):
    model = small_model()
    resized = adapt(model, image_size=image_size, patch_size=patch_size)
    plain = timm.create_model("vit_tiny_patch16_224", **timm_arguments(resized.config), num_classes=0)
    plain.load_state_dict(checkpoint_filter_fn(model.encoder.state_dict(), plain), strict=True)
    assert_same_weights(resized.encoder, plain)


@pytest.mark.parametrize("in_channels", [1, 2, 4, 7])
def test_channels_are_adapted_as_timm_adapts_them(in_channels):
    model = small_model(**STATISTICS)
    adapted = adapt(model, in_channels=in_channels)
    expected = adapt_input_conv(in_channels, model.encoder.patch_embed.proj.weight.detach().clone())
    torch.testing.assert_close(adapted.encoder.patch_embed.proj.weight.detach(), expected, atol=1e-6, rtol=0)
    assert adapted.config["mean"] == pytest.approx([0.2]) and adapted.config["std"] == pytest.approx([0.3])


@torch.no_grad()
@pytest.mark.parametrize("before,after", [(3, 1), (1, 3), (1, 5), (2, 4)])
def test_a_grey_picture_means_the_same_in_any_number_of_channels(before, after):
    model = small_model(in_channels=before)
    adapted = adapt(model, in_channels=after)
    grey, mask = torch.randn(2, 1, 16, 16), random_mask(2, 16, 0.75)
    tokens = [m.encode_tokens(grey.expand(-1, m.in_channels, -1, -1), mask) for m in (model, adapted)]
    torch.testing.assert_close(*tokens, atol=1e-5, rtol=0)
    pictures = [unpatchify(m.decode(t, mask), 4, 16) for m, t in zip((model, adapted), tokens, strict=True)]
    expected = pictures[0].mean(1, keepdim=True) if after == 1 else pictures[0].repeat(1, after // before, 1, 1)
    torch.testing.assert_close(pictures[1], expected, atol=1e-5, rtol=0)


def resize_patches(images, *, old: tuple[int, int], new: tuple[int, int], size: tuple[int, int]):
    """Every patch resized by itself, as a picture."""
    flat = patchify(images, old)  # (B, N, P*P*C)
    pictures = flat.flatten(0, 1).unflatten(1, (*old, images.shape[1])).permute(0, 3, 1, 2)
    pictures = nn.functional.interpolate(pictures, new, mode="bicubic", antialias=True)
    return unpatchify(pictures.permute(0, 2, 3, 1).flatten(1).unflatten(0, flat.shape[:2]), new, size)


@torch.no_grad()
def test_larger_patches_of_an_enlarged_picture_give_the_same_tokens_and_the_prediction_enlarged():
    model = small_model(image_size=(16, 12), norm_pix_loss=False)
    larger = adapt(model, image_size=(32, 18), patch_size=(8, 6))
    images, mask = torch.randn(2, 3, 16, 12), random_mask(2, 12, 0.75)
    enlarge = {"old": (4, 4), "new": (8, 6), "size": (32, 18)}
    tokens = model.encode_tokens(images, mask)
    torch.testing.assert_close(larger.encode_tokens(resize_patches(images, **enlarge), mask), tokens, atol=1e-4, rtol=0)
    pictures = unpatchify(model.decode(tokens, mask), 4, (16, 12))
    torch.testing.assert_close(
        unpatchify(larger.decode(tokens, mask), (8, 6), (32, 18)),
        resize_patches(pictures, **enlarge),
        atol=1e-4,
        rtol=0,
    )


def test_the_positions_of_a_decoder_are_resampled_in_two_dimensions():
    model = small_model(image_size=(16, 8))
    with torch.no_grad():  # a ramp down the rows must stay one, and columns stay equal
        model.decoder_pos_embed[0, 1:] = torch.arange(4.0).repeat_interleave(2)[:, None]
    ramp = adapt(model, image_size=(32, 24)).decoder_pos_embed[0, 1:, 0].view(8, 6)
    assert torch.allclose(ramp, ramp[:, :1].expand(8, 6), atol=1e-5)
    assert (ramp[:, 0].diff() > 0).all()
    square = adapt(small_model(image_size=(8, 32)), image_size=16).decoder_pos_embed  # as many patches, otherwise laid
    kept = small_model(image_size=(8, 32)).decoder_pos_embed
    assert square.shape == kept.shape and not torch.allclose(square[:, 1:], kept[:, 1:], atol=1e-2)


def test_a_size_that_cannot_be_is_refused_as_in_the_constructor():
    with pytest.raises(InputError, match="image_size 17|not a multiple of patch_size"):
        adapt(small_model(), image_size=17)
    with pytest.raises(InputError, match="mean has 3 values for in_channels 2"):
        adapt(small_model(), in_channels=2, **STATISTICS)
