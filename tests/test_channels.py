"""Which channels of an image are shown: in every sheet the same, and those that were asked for."""

import base64
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from running import refused

import tinymae
from tinymae import InputError, MaskedAutoencoder, load_dataset
from tinymae.commands import segmentation
from tinymae.data.sources.files import list_images
from tinymae.evaluation.figures import viewable
from tinymae.models.classifier import build_classifier
from tinymae.study import report

LEVELS, NOISE = (20, 75, 130, 185, 240), 8  # what each channel's values are close to, and how close
SHOWN = (4, 0, 2)
SIZES = {"image_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "mixed_precision": "no"}


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    """A folder of two classes of images of five channels."""
    folder = tmp_path_factory.mktemp("bands")
    noise = np.random.default_rng(0).integers(-NOISE, NOISE + 1, (40, 8, 8, 5))
    for number, image in enumerate((np.array(LEVELS) + noise).astype(np.uint8)):
        place = folder / "ab"[number % 2] / f"{number:02}.npy"
        place.parent.mkdir(exist_ok=True)
        np.save(place, image)
    return folder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    statistics = {"mean": [level / 255 for level in LEVELS], "std": [0.02]}
    own = {name: value for name, value in SIZES.items() if name != "mixed_precision"}
    return MaskedAutoencoder(**own, **statistics, in_channels=5, norm_pix_loss=False).eval()


@pytest.fixture(scope="module")
def classifier(model, tmp_path_factory):
    classifier = build_classifier(model, classes=["a", "b"]).eval()
    torch.nn.init.normal_(classifier.head.weight)
    folder = tmp_path_factory.mktemp("classifier")
    classifier.write_weights(folder)
    return folder


def counted(picture, channels) -> int:
    """How many pixels of a picture have a colour that these channels of an image would give, which are stretched from
    the least to the greatest of their values.
    """
    pixels = np.asarray(Image.open(picture).convert("RGB"), dtype=int)  # numpy 1 would multiply in uint8 below
    levels = np.array([LEVELS[channel] for channel in channels])
    low, high = levels.min() - NOISE, levels.max() + NOISE
    return int((abs(low + pixels * (high - low) / 255 - levels) <= NOISE + 1).all(axis=-1).sum())


def in_page(page) -> io.BytesIO:
    """The first sheet inside map.html."""
    return io.BytesIO(base64.b64decode(re.search(r'class="sheet">([\w+/=]+)<', page.read_text())[1]))


def test_default_shows_the_first_three_and_few_in_grey():
    images = torch.randint(0, 256, (2, 5, 4, 4), dtype=torch.uint8)
    assert torch.equal(viewable(images), images[:, :3])
    for few in (images[:, :1], images[:, :2]):
        assert torch.equal(viewable(few), images[:, :1].expand(-1, 3, -1, -1))


@pytest.mark.parametrize("channels", [SHOWN, (1, 1, 3)])
def test_any_depth_is_shown_alike(channels):
    images = torch.randint(0, 256, (2, 5, 4, 4), dtype=torch.uint8)
    deep, unit = (images.int() * 257).to(torch.uint16), images.float() / 255
    for same in (images, deep, unit, images.double() / 255):
        assert torch.equal(viewable(same, channels), images[:, list(channels)])
    assert viewable(2 * unit - 0.5).dtype == torch.uint8  # values outside 0 to 1 are cut off, and do not wrap
    assert viewable(torch.tensor([-1.0, 2.0, 0.5]).view(1, 3, 1, 1)).flatten().tolist() == [0, 255, 128]


@pytest.mark.parametrize("channels", [(0, 1), (0, 1, 5), (-1, 0, 1), (0, 1, 2, 3)])
def test_channels_that_are_not_there_are_refused(channels):
    with pytest.raises(InputError, match="show_channels .* three numbers from 0 to 4"):
        viewable(torch.zeros(1, 5, 2, 2), channels)


COMMANDS = {
    "pretrain": ["reconstructions.png"],
    "evaluate": ["reconstructions.png"],
    "errors": ["errors.png"],
    "predict": ["classes"],
    "neighbours": ["neighbours.png"],
    "inspect": ["outliers.png", "doubtful_labels.png"],
    "embed": ["projector", "map.html"],
}


@pytest.mark.parametrize("shown", [None, SHOWN])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_sheet_shows_the_channels_that_were_asked_for(
    command, shown, bands, model, classifier, quick_figures, tmp_path
):
    common = {"mixed_precision": "no", "output_dir": tmp_path, "show_channels": shown}
    if command == "pretrain":
        training = {"in_channels": 5, "batch_size": 16, "epochs": 1, "contrast_epochs": 0, "log_with": ()}
        tinymae.pretrain(bands, **SIZES | training | common)
    elif command in ("evaluate", "errors"):
        weights = model if command == "evaluate" else classifier
        tinymae.evaluate(bands, weights=weights, split="all", **common)
    elif command == "predict":
        tinymae.predict(bands, weights=classifier, **common)
    else:
        query = {"query": tuple(str(bands / name) for name in list_images(bands)[0][:2])}
        own = {"neighbours": query, "embed": {"formats": ("projector", "map")}}.get(command, {})
        getattr(tinymae, command)(bands, weights=model, **own, **common)
    for name in COMMANDS[command]:
        place = tmp_path / name
        found = sorted(place.rglob("*.png")) if place.is_dir() else [place]
        assert found
        for picture in found:
            asked, other = (SHOWN, (0, 1, 2)) if shown else ((0, 1, 2), SHOWN)
            opened = in_page(picture) if picture.suffix == ".html" else picture
            assert counted(opened, asked) >= 64 and not counted(opened, other)


def test_masks_stand_beside_the_channels_that_were_asked_for(bands, quick_figures, tmp_path):
    masks = torch.ones(40, 8, 8, dtype=torch.long)
    settings, run = SimpleNamespace(show_channels=SHOWN), SimpleNamespace(folder=tmp_path)
    images = load_dataset(bands, "all", image_size=8, channels=5)
    sheet = segmentation.write_sheet(settings, images, masks, masks, run, "")
    assert counted(sheet, SHOWN) >= 64 and not counted(sheet, (0, 1, 2))


def test_a_comparison_shows_the_channels_that_were_asked_for(bands, model):
    images = load_dataset(bands, "all", image_size=8, channels=5)
    address = report.strips({"mae": model}, images, SHOWN)["shown"][0]["sheet"].address
    sheet = io.BytesIO(base64.b64decode(address.split(",")[1]))
    assert counted(sheet, SHOWN) == report.SHOWN * 64 and not counted(sheet, (0, 1, 2))


def test_the_flag_is_refused_before_anything_is_computed(bands, model, capsys, tmp_path):
    model.write_weights(tmp_path / "weights")
    given = {"data": str(bands), "weights": str(tmp_path / "weights"), "output_dir": str(tmp_path / "run")}
    line = refused(capsys, "embed", "--show-channels", 0, 1, 7, **given)
    assert "show_channels 0 1 7: give three numbers from 0 to 4, as the images have 5 channels" in line
    assert not (tmp_path / "run").exists()
