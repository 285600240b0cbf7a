"""Folders of strangers: loading one runs no code, asks no network, and refuses in one line what it does not know."""

import copy
import json
import pickle
import socket
from pathlib import Path

import pytest
import torch
from running import SMALLEST
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

import tinymae
from tinymae import InputError
from tinymae.models.classifier import build_classifier
from tinymae.models.families import FAMILIES


def build(kind: str):
    """A small model of each kind of folder."""
    torch.manual_seed(0)
    if kind == "timm classifier":
        return build_classifier(build("mae"), classes=["cat", "dog"], pool="avg")
    if kind == "conv_ae classifier":
        return build_classifier(build("conv_ae"), classes=["cat", "dog"])
    if kind == "transformers classifier":
        return build_classifier(build("mae"), classes=["cat", "dog"], pool="cls")
    family = "mae" if kind == "transformers" else kind
    return FAMILIES[family](image_size=8, **SMALLEST[family])  # type: ignore[call-arg]


def write(kind: str, folder: Path) -> None:
    model = build(kind)
    if kind.startswith("transformers"):
        tinymae.to_transformers(model, folder)
    else:
        model.write_weights(folder)


def edit(file: Path, place: tuple, value: object) -> None:
    """Set one value of a JSON file, wherever it stands."""
    content = json.loads(file.read_text())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    file.write_text(json.dumps(content))


def assert_refused(folder: Path, *says: str) -> None:
    with pytest.raises(InputError) as error:
        tinymae.load(folder)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in says), message


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever asks the network is refused, and found out even if it then hides that."""
    asked = []

    def refuse(*arguments, **_):
        asked.append(arguments)
        raise AssertionError(f"the network was asked: {arguments}")

    for place, name in ((socket.socket, "connect"), (socket, "create_connection"), (socket, "getaddrinfo")):
        monkeypatch.setattr(place, name, refuse)
    yield
    assert asked == []


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


@pytest.fixture
def tripwire(tmp_path):
    """A file whose unpickling would show."""
    sprung, file = tmp_path / "sprung", tmp_path / "weights.bin"
    file.write_bytes(pickle.dumps(Trap(sprung)))
    yield str(file)
    assert not sprung.exists()
    pickle.loads(file.read_bytes())
    assert sprung.exists()  # so it would have shown


@pytest.mark.parametrize(
    "extra",
    [
        "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "scriptable",
        "norm_layer", "img\nsize",
    ],
)  # fmt: skip
def test_a_classifier_tells_timm_nothing_but_its_sizes(tmp_path, tripwire, extra):
    write("timm classifier", tmp_path / "folder")
    overlay = {"file": tripwire, "url": "http://example.com/weights.pth", "hf_hub_id": "someone/model"}
    value = {"pretrained": True, "pretrained_cfg": overlay, "pretrained_cfg_overlay": overlay}.get(extra, tripwire)
    edit(tmp_path / "folder" / "config.json", ("model_args", extra), value)
    assert_refused(tmp_path / "folder", "model_args has", repr(extra))


def test_addresses_in_a_classifiers_preprocessing_are_not_followed(tmp_path, tripwire):
    write("timm classifier", tmp_path)
    for key, value in (
        ("url", "http://example.com/weights.pth"), ("hf_hub_id", "someone/model"), ("file", tripwire),
        ("source", "hf-hub"),
    ):  # fmt: skip
        edit(tmp_path / "config.json", ("pretrained_cfg", key), value)
    edit(tmp_path / "config.json", ("checkpoint_path",), tripwire)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(tinymae.load(tmp_path)(images), build("timm classifier").eval()(images))


@pytest.mark.parametrize("kind", ["mae", "conv_ae", "vae", "vqvae", "resnet_unet", "masked_conv", "pca"])
@pytest.mark.parametrize("extra", ["checkpoint_path", "pretrained", "self", "config", "a\nkey"])
def test_an_autoencoder_knows_the_arguments_of_its_family_alone(tmp_path, tripwire, kind, extra):
    write(kind, tmp_path / "folder")
    edit(tmp_path / "folder" / "config.json", (extra,), tripwire)
    assert_refused(tmp_path / "folder", repr(extra), f"which a {type(build(kind)).__name__} does not know")


def test_the_autoencoder_in_a_classifier_likewise(tmp_path, tripwire):
    write("conv_ae classifier", tmp_path / "folder")
    edit(tmp_path / "folder" / "config.json", ("autoencoder", "checkpoint_path"), tripwire)
    assert_refused(tmp_path / "folder", "'checkpoint_path', which a ConvAutoencoder does not know")


@pytest.mark.parametrize("kind", ["mae", "resnet_unet", "masked_conv"])
@pytest.mark.parametrize("form", ["hf-hub:{}", "hf_hub:{}", "local-dir:{}", "timm/{}", "{}", "https://{}", "a\n{}"])
def test_an_encoder_is_one_that_timm_has_built_in(tmp_path, tripwire, kind, form):
    write(kind, tmp_path / "folder")
    write("timm classifier", tmp_path / "other")
    edit(tmp_path / "other" / "config.json", ("model_args", "checkpoint_path"), tripwire)
    for name in (form.format("someone/model"), form.format(tmp_path / "other")):
        edit(tmp_path / "folder" / "config.json", ("encoder",), name)
        assert_refused(tmp_path / "folder", repr(name), "is not a timm model")


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:other", "Autoencoder", "Module", [], None, 3])
@pytest.mark.parametrize("kind", ["mae", "timm classifier", "conv_ae classifier"])
def test_an_architecture_is_one_of_ours_or_of_timms(tmp_path, kind, name):
    write(kind, tmp_path)
    inner = ("autoencoder",) if kind == "conv_ae classifier" else ()
    edit(tmp_path / "config.json", (*inner, "architecture"), name)
    assert_refused(tmp_path, "architecture", str(name))


# ---- sizes that the weights do not bear out


class Allocations(TorchDispatchMode):
    """The largest tensor that any operation inside gave, in bytes; those of the meta device have none."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and not output.is_meta:
            self.largest = max(self.largest, output.untyped_storage().nbytes())
        return output


LARGE: dict[str, dict] = {
    "mae": {"embed_dim": 4000, "decoder_dim": 4000, "image_size": 2048, "in_channels": 30_000},
    "conv_ae": {"width": 4000, "latent_dim": 10**6, "in_channels": 30_000},
    "vae": {"width": 4000, "latent_dim": 10**6},
    "vqvae": {"codebook_size": 10**6, "latent_dim": 10**5, "image_size": 4096},
    "resnet_unet": {"encoder": "resnet101", "in_channels": 30_000},
    "masked_conv": {"encoder": "convnext_large", "decoder_dim": 4000},
    "pca": {"latent_dim": 192, "image_size": 2048},
    "conv_ae classifier": {("autoencoder", "width"): 4000, "label_names": [*map(str, range(10**5))]},
    "timm classifier": {("model_args", "embed_dim"): 4000, ("model_args", "img_size"): 2048},
    "transformers": {"decoder_hidden_size": 4000},
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_size_beyond_the_weights_is_refused_before_memory_is_taken(tmp_path, kind):
    write(kind, tmp_path)
    whole, size = (tmp_path / "config.json").read_text(), (tmp_path / "model.safetensors").stat().st_size
    with Allocations() as taken:
        tinymae.load(tmp_path)
    assert taken.largest > 0
    for place, value in LARGE[kind].items():
        edit(tmp_path / "config.json", place if isinstance(place, tuple) else (place,), value)
        with Allocations() as taken:
            assert_refused(tmp_path, "its config.json says")
        assert taken.largest <= size, place
        (tmp_path / "config.json").write_text(whole)


@pytest.mark.parametrize("decoder", [{}, {"decoder_embed.weight": torch.zeros(16, 4000)}])
def test_a_width_beyond_an_official_files_tensors_likewise(tmp_path, decoder):
    sizes = {"patch_embed.proj.weight": (4000, 3, 2, 2), "pos_embed": (1, 17, 4000), "blocks.0.mlp.fc1.weight": (1, 1)}
    state = {name: torch.zeros(size) for name, size in sizes.items()} | decoder
    torch.save({"model": state}, file := tmp_path / "mae.pth")
    with Allocations() as taken, pytest.raises(InputError, match="another architecture than a plain ViT MAE"):
        tinymae.from_official(file, num_heads=2, decoder_heads=2)
    assert 0 < taken.largest <= file.stat().st_size


# ---- values that cannot be

KINDS = [
    "mae", "conv_ae", "vae", "vqvae", "resnet_unet", "masked_conv", "pca", "timm classifier", "conv_ae classifier",
    "transformers", "transformers classifier",
]  # fmt: skip
VALUES = [None, True, "two\nlines", -1, 0, 1e9, float("nan"), 10**30, [], [-1, -1], [8, "x"], {"a": 1}]


def places(content: dict, before: tuple = ()):
    """Where a JSON object has values, at any depth."""
    for key, value in content.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from places(value, (*before, key))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_any_value_in_any_place_loads_or_is_refused_in_one_line(tmp_path, kind):
    """No other exception, whatever JSON a config holds."""
    write(kind, tmp_path)
    for file in (tmp_path / "config.json", tmp_path / "preprocessor_config.json"):
        if not file.exists():
            continue
        whole = file.read_text()
        for place in places(json.loads(whole)):
            for value in VALUES:
                edit(file, place, copy.deepcopy(value))
                try:
                    tinymae.load(tmp_path)
                except InputError as error:
                    assert "\n" not in str(error), (place, value)
                file.write_text(whole)


WRONG = {
    "image_size": ["big", None, [], [8], [8, 8, 8], 8.0, True, 0, -8], "in_channels": ["3", None, 0, -1, 3.0],
    "mean": ["x", None, 0.5, [], ["x"], [0.1, 0.2], {}], "std": ["x", None, 0.5, [], [None]],
}  # fmt: skip
WRONG_VIT = {
    "depth": ["deep", [], -1, 0, 1e9, 10**9, True], "embed_dim": ["x", [], -24, 0, 1e9], "num_heads": [[], -1, 1.5],
}  # fmt: skip
WRONG_MAE = WRONG_VIT | {
    "encoder": [None, 3, []], "patch_size": ["big", None, [], 0, -2], "mask_ratio": ["x", None, [], 0, 1, 2],
    "norm_pix_loss": [None, 1, "yes", []], "decoder_dim": [None, "x", 0, -16, 1e9],
    "decoder_depth": [None, "x", -1, 1e9, 10**9, []], "decoder_heads": [None, "x", 0, -2, 1e9],
    "norm_eps": ["x", 0, -1e-6, 1, []],
}  # fmt: skip
WRONG_CONV = {
    "depth": ["deep", [], -1, 0, 1e9, 10**9, True], "width": [None, "x", 0, -8, 12, 8.0],
    "latent_dim": ["x", [], -1, 0, 1e9], "loss": [None, 3, [], "huber", ["mse"]],
}  # fmt: skip
WRONG_LABELS = {"label_names": [None, 3, "ab", [], {}, [None], [["cat", "dog"]]]}


def cases():
    """(kind, file, place, value) of values that must be refused."""
    timm_names = {"image_size": "img_size", "in_channels": "in_chans"}
    for kind, wrong, before in (
        ("mae", WRONG | WRONG_MAE, ()), ("conv_ae", WRONG | WRONG_CONV, ()),
        ("conv_ae classifier", WRONG | WRONG_CONV, ("autoencoder",)), ("conv_ae classifier", WRONG_LABELS, ()),
        ("timm classifier", WRONG_LABELS | {"model_args": [None, 3, [], {}], "pretrained_cfg": [None, {}, "x"]}, ()),
        ("timm classifier", {timm_names.get(name, name): WRONG[name] for name in timm_names}, ("model_args",)),
        ("timm classifier", WRONG_VIT | {"global_pool": [None, 3, "max", []], "fc_norm": [None, 0, True]},
         ("model_args",)),
        ("timm classifier", {name: WRONG[name] for name in ("mean", "std")}, ("pretrained_cfg",)),
    ):  # fmt: skip
        for key, values in wrong.items():
            yield kind, (*before, key), values


@pytest.mark.parametrize(
    "kind,place,values", [pytest.param(*case, id=f"{case[0]}, {'.'.join(case[1])}") for case in cases()]
)
def test_a_value_of_another_type_or_size_is_refused(tmp_path, kind, place, values):
    write(kind, tmp_path)
    whole = (tmp_path / "config.json").read_text()
    for value in values:
        edit(tmp_path / "config.json", place, value)
        assert_refused(tmp_path)
        (tmp_path / "config.json").write_text(whole)
    tinymae.load(tmp_path)


@pytest.mark.parametrize("kind", ["timm classifier", "conv_ae classifier", "transformers classifier"])
def test_names_of_classes_that_no_table_or_sheet_can_have_are_refused(tmp_path, kind):
    write(kind, tmp_path)
    wrong = {"a\nb": "control", "\x1b[2J": "control", "\u2029": "control", "\ud800": "control", "dog": "more than once"}
    transformers = kind == "transformers classifier"  # whose ImageNet models have two cranes
    for name, says in wrong.items():
        names = {"0": name, "1": "dog"} if transformers else [name, "dog"]
        edit(tmp_path / "config.json", ("id2label" if transformers else "label_names",), names)
        if transformers and name == "dog":
            assert tinymae.load(tmp_path).classes == ["dog", "dog"]
        else:
            assert_refused(tmp_path, "config.json: ", repr(name)[1:-1], says)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["mae", "conv_ae classifier", "timm classifier", "transformers", "official encoder"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, kind, value):
    """A checksum is no proof: files of other programs have none."""
    if kind == "official encoder":
        state = build("mae").encoder.state_dict()
        state["norm.bias"][3] = value
        torch.save({"model": state, "heads": {"num_heads": 2}}, tmp_path / "mae.pth")
        assert_refused(tmp_path / "mae.pth", "mae.pth has NaN or infinity in norm.bias")
        return
    write(kind, tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    name = next(iter(state))
    state[name].view(-1)[-1] = value
    save_file(state, file)
    assert_refused(tmp_path, str(tmp_path), "has NaN or infinity in ")


def test_a_value_of_another_type_is_named_with_the_type_it_should_have(tmp_path):
    write("mae", tmp_path)
    edit(tmp_path / "config.json", ("depth",), "deep")
    assert_refused(tmp_path, str(tmp_path), "config.json: depth 'deep' is not", "int")
