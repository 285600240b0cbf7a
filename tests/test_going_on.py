"""Pretraining that goes on from other weights."""

import pytest
from test_convert import assert_same_weights, small_model

import tinymae
from tinymae import InputError, MaskedAutoencoder, adapt
from tinymae.files import read_metrics

pytestmark = pytest.mark.usefixtures("quick_figures")

# A learning rate of 0 leaves the weights as they were when training began.
STILL = {"mixed_precision": "no", "epochs": 1, "warmup_epochs": 0, "base_lr": 0.0, "flip": False, "contrast_epochs": 0}


def go_on(**settings) -> MaskedAutoencoder:
    return MaskedAutoencoder.from_pretrained(tinymae.pretrain("digits", **STILL, **settings).folder)


@pytest.mark.parametrize("kind", ["tinymae", "official", "transformers", "a model"])
def test_pretraining_goes_on_from_every_kind_of_weights(tmp_path, kind):
    model, source = small_model(in_channels=1, image_size=8, patch_size=2, mask_ratio=0.5), tmp_path / "start"
    write = {
        "tinymae": MaskedAutoencoder.write_weights,
        "official": tinymae.to_official,
        "transformers": tinymae.to_transformers,
    }
    if kind in write:
        write[kind](model, source)
    heads = {"num_heads": 2, "decoder_heads": 2} if kind == "official" else {}
    trained = go_on(weights=source if kind in write else model, **heads, output_dir=tmp_path / "run")
    assert_same_weights(trained, model)
    digits = tinymae.load_dataset("digits")
    assert trained.config["mean"] == pytest.approx(digits.statistics[0])
    assert trained.config["std"] == pytest.approx(digits.statistics[1])
    assert trained.mask_ratio == (0.75 if kind == "official" else 0.5)  # the official file does not say


def test_sizes_that_are_given_adapt_the_weights(tmp_path):
    (model := small_model()).write_weights(tmp_path / "start")
    changes = {"image_size": 12, "patch_size": 3, "in_channels": 1, "mask_ratio": 0.5}
    trained = go_on(weights=tmp_path / "start", **changes, output_dir=tmp_path / "run")
    assert_same_weights(trained, adapt(model, image_size=12, patch_size=3, in_channels=1))
    assert trained.mask_ratio == 0.5


class Weighed(MaskedAutoencoder):
    """With a loss of its own, and an argument for it."""

    def __init__(self, *, weight: float, image_size=8, in_channels=1, mean=(0.5,), std=(0.5,), **kwargs):
        super().__init__(image_size=image_size, in_channels=in_channels, mean=mean, std=std, **kwargs)
        self.weight = weight

    def training_losses(self, images, **drawn):  # type: ignore[override]  # takes more
        losses = super().training_losses(images, **drawn)
        return {"loss": self.weight * losses["loss"], "unweighed": losses["loss"]}


class Fixed(MaskedAutoencoder):
    def __init__(self, *, image_size=8, in_channels=1, mean=(0.5,), std=(0.5,)):
        super().__init__(
            image_size=image_size, in_channels=in_channels, mean=mean, std=std, embed_dim=24, depth=1, num_heads=2
        )


def test_a_subclass_keeps_its_class_and_so_its_loss(tmp_path):
    sizes = {"patch_size": 2, "embed_dim": 24, "depth": 1, "num_heads": 2, "decoder_dim": 16, "decoder_depth": 1}
    model = Weighed(weight=100.0, **sizes)
    adapted = adapt(model, patch_size=4)
    assert type(adapted) is Weighed and adapted.weight == 100.0 and adapted.patch_size == (4, 4)
    run = tinymae.pretrain("digits", weights=model, output_dir=tmp_path, **STILL)
    assert type(run.model) is Weighed and run.model.weight == 100.0
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "unweighed" in row]
    assert rows and all(row["loss"] == pytest.approx(100 * row["unweighed"]) for row in rows)
    assert type(Weighed.from_pretrained(tmp_path)) is Weighed


def test_an_argument_that_the_constructor_of_a_subclass_does_not_have_is_named():
    assert type(adapt(Fixed(), image_size=16)) is Fixed
    with pytest.raises(InputError, match="the constructor of Fixed has no argument patch_size: add it"):
        adapt(Fixed(), patch_size=2)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"embed_dim": 48}, "embed_dim 48 contradicts weights .*, which have 32: leave it out"),
        ({"encoder": "vit_small_patch16_224"}, "encoder vit_small_patch16_224 contradicts"),
        ({"decoder_depth": 1}, "decoder_depth 1 contradicts"),
        ({"depth": 2}, "digits has 1 channels, not 3: give --in-channels 1"),
        ({"patch_size": 3, "in_channels": 1}, "not a multiple of patch_size"),
    ],
)
def test_settings_that_contradict_the_weights_are_refused_by_name(tmp_path, settings, message):
    small_model().write_weights(tmp_path / "start")
    with pytest.raises(InputError, match=message):
        go_on(weights=tmp_path / "start", **settings, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        go_on(weights=tmp_path / "nowhere", output_dir=tmp_path / "run")
