"""What pretraining leaves behind, for every family, in one phase and in two."""

import functools
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from pictures import pixels
from PIL import Image
from running import (
    DIGITS,
    ENCODER,
    FEW,
    PRETRAIN,
    QUICK,
    SHORT,
    TINY,
    TWO_PHASES,
    metrics,
    off_the_start,
    same_files,
    save_images,
    tick,
    tiny_mae,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_convert import assert_same_weights

import tinymae
from tinymae import InputError, MaskedAutoencoder, adapt, load_dataset
from tinymae.commands import phases, pretrain
from tinymae.commands.pretrain import PretrainSettings
from tinymae.files import read_json
from tinymae.interop.load import load_classifier
from tinymae.models.conv import ConvAutoencoder, VariationalAutoencoder
from tinymae.randomness import Draws


def test_pretraining_leaves_what_it_promises(pretrained):
    rows = metrics(pretrained)
    assert {"loss", "learning_rate", "grad_norm", "images_per_second", "minutes", "step", "epoch"} <= rows[1].keys()
    assert rows[0]["knn_val"] > 10 and rows[-1]["step"] == 40
    arguments = read_json(pretrained / "args.json")
    assert arguments["arguments"]["epochs"] == 2 and arguments["versions"]["torch"] == torch.__version__
    assert list((pretrained / "tensorboard").glob("events.*"))
    assert read_json(pretrained / "results.json")["steps"] == 40
    for name in ("curves.png", "reconstructions.png"):
        assert np.asarray(Image.open(pretrained / name)).std() > 10
    model = MaskedAutoencoder.from_pretrained(pretrained)
    assert model.encode(load_dataset("digits", "test").images[:5]).shape == (5, 32)


def test_a_runs_card_states_what_it_recorded_and_travels_to_the_hub_with_the_weights(pretrained, tmp_path):
    card = (pretrained / "README.md").read_text()
    results = read_json(pretrained / "results.json")
    assert f"| k-NN, validation | {results['knn_val']:.2f} |" in card and "- `epochs`: 2\n" in card
    assert "`weight_decay`" not in card  # which is at its default
    digest = hashlib.sha256((pretrained / "model.safetensors").read_bytes()).hexdigest()
    assert digest in card and "license" not in card and "(reconstructions.png)" in card
    (score,) = ModelCard.load(pretrained / "README.md").data.eval_results  # which the Hub shows
    assert (score.metric_name, score.dataset_split) == ("k-NN, validation", "validation")
    assert (score.metric_value, score.dataset_name) == (pytest.approx(results["knn_val"], abs=0.01), "digits")
    MaskedAutoencoder.from_pretrained(pretrained).save_pretrained(tmp_path)  # what push_to_hub uploads
    assert (tmp_path / "README.md").read_text() == card and (tmp_path / "reconstructions.png").exists()
    assert (tmp_path / "model.safetensors").read_bytes() == (pretrained / "model.safetensors").read_bytes()


def test_tensorboard_holds_the_curves_and_pictures(pretrained):
    events = EventAccumulator(str(pretrained / "tensorboard")).Reload()
    assert {"loss", "learning_rate", "grad_norm", "images_per_second", "knn_val"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["reconstructions"]
    assert events.Scalars("loss")[-1].step == 40


def test_a_finished_run_that_is_repeated_says_what_it_came_to(pretrained, capsys):
    tinymae.pretrain(**PRETRAIN, output_dir=pretrained)
    said = capsys.readouterr().out.split(f"{pretrained} is finished, ")[1]
    assert re.fullmatch(r"k-NN, validation \d+\.\d\d %: its results stay as they are\n", said)


def test_the_model_that_comes_back_is_the_one_on_disk(quick_figures, tmp_path):
    run = tinymae.pretrain(**QUICK, output_dir=tmp_path)
    images = load_dataset("digits", "test").images[:3]
    assert not run.model.training and run.folder == tmp_path
    torch.testing.assert_close(run.model.encode(images), tinymae.load(tmp_path).encode(images))
    mean, std = load_dataset(FEW["data"], "train", labels=FEW["labels"]).statistics  # which it normalises by
    assert run.model.config["mean"] == pytest.approx(mean) and run.model.config["std"] == pytest.approx(std)


# ---- families

FAMILIES = {
    "conv_ae": {"width": 16, "latent_dim": 32, "loss": "ssim+l1"},
    "vae": {"width": 16, "latent_dim": 32, "beta": 0.1, "kl_warmup_steps": 10},
    "vqvae": {"width": 16, "latent_dim": 8, "codebook_size": 64, "epochs": 2},
    "resnet_unet": {"encoder": "test_resnet", "skips": False},
    "masked_conv": {"encoder": "test_convnext2", "patch_size": 2, "decoder_dim": 16},
    "pca": {"latent_dim": 32},
}


@pytest.mark.parametrize("model", FAMILIES)
def test_every_family_goes_through_the_same_commands(model, quick_figures, quick_probes, tmp_path):
    digits = load_dataset("digits")
    data = DIGITS | {"data": digits.images[:640], "labels": digits.labels[:640], "seed": 3}
    once = SHORT | {"epochs": 1, "batch_size": 32, "optimizer": "adamw", "base_lr": 8e-3}
    run = tinymae.pretrain(**data, **once | {"model": model} | FAMILIES[model], output_dir=tmp_path / "run")
    assert run.results["knn_val"] > 25
    assert np.asarray(Image.open(run.folder / "reconstructions.png")).std() > 10
    last = metrics(run.folder)[-2] if model != "pca" else {}
    for term in {"vae": ["kl", "reconstruction_loss"], "vqvae": ["perplexity", "commitment"]}.get(model, []):
        assert last[term] > 0
    probe = tinymae.linear_probe(**data, weights=run.folder, output_dir=tmp_path / "probe")
    assert probe.results["probe_test"] > 25 and probe.results["encoder_unchanged"]  # after one epoch; guessing gives 10
    scores = tinymae.evaluate(**data, weights=probe.folder, output_dir=tmp_path / "evaluate").results
    assert scores["accuracy"] == pytest.approx(probe.results["probe_test"], abs=0.3)
    scores = tinymae.evaluate(**data, weights=run.model, output_dir=tmp_path / "reconstruct").results
    assert ("masked" in scores) == (model == "masked_conv") and scores["full"]["mse"] < 0.3
    if model != "pca":  # linear: its fine-tuning is softmax regression
        tuned = tinymae.finetune(
            **data, **once, weights=run.folder, label_fraction=0.1, ema_decay=0, output_dir=tmp_path / "finetune"
        )
        assert tuned.results["steps"] == 1
        assert load_classifier(tuned.folder).classes == load_dataset("digits").classes


def test_a_small_decoder_has_its_operations_counted(quick_figures, tmp_path, capsys):
    """At one place of the coarsest map a group of its norm has one value of one image, which batches have not."""
    small = {"model": "masked_conv", "encoder": "test_convnext", "patch_size": 2, "decoder_dim": 8}
    run = tinymae.pretrain(**FEW, **small, batch_size=16, epochs=1, flip=False, output_dir=tmp_path)
    assert run.results["steps"] == 4 and "GFLOP an image" in capsys.readouterr().out


# ---- data


def test_cifar10_trains_with_the_recipe(cifar10_dir, quick_figures, tmp_path, monkeypatch):
    tick(monkeypatch)
    small = {"depth": 2, "embed_dim": 48, "batch_size": 64, "epochs": 1, "contrast_epochs": 0, "max_minutes": 0.2}
    run = tinymae.pretrain("cifar10", data_dir=cifar10_dir, **small, probe_images=500, output_dir=tmp_path)
    assert 10 < run.results["knn_val"] < 60 and run.model.image_size == (32, 32)


# ---- two phases


def test_the_defaults_are_the_recipe_of_the_released_weights():
    """But for the lengths, which a clock cut short; and for a limit to gradients that acted in the first step alone."""
    folder = Path(__file__).parent.parent / "logs" / "vit-t-mae"
    recorded = read_json(folder / "args.json")["arguments"]
    settings = PretrainSettings().resolve()
    images = torch.zeros(48_000, 3, 1, 1, dtype=torch.uint8)
    phases = settings.plan_phases(load_dataset(images, "all"))
    plain, contrast = (settled for phase in phases for settled in [phase.settled | {"epochs": phase.epochs}])
    used = settings.record() | contrast | plain
    lengths = {"epochs", "contrast_epochs", "warmup_epochs", "max_minutes", "probe_every"}
    other = lengths | {"clip_grad", "compile", "mixed_precision", "skip_unreadable"}  # which is not recorded any more
    assert {name: used[name] for name in recorded if name not in other} == {
        name: value for name, value in recorded.items() if name not in other
    }
    assert (plain["epochs"], contrast["epochs"]) == (42, 84)
    norms = [row["grad_norm"] for row in metrics(folder) if "grad_norm" in row]
    assert norms[0] > recorded["clip_grad"] > max(norms[1:])


WATCHED = QUICK | TWO_PHASES | {"contrast_weight": 0.3, "probe_every": 1, "keep_every": 1}


@pytest.fixture(scope="module")
def two_phases(quick_stages, tmp_path_factory):
    """A run of an epoch of reconstruction and two of contrast."""
    folder = tmp_path_factory.mktemp("two_phases")
    return tinymae.pretrain(**WATCHED, output_dir=folder)


def test_contrast_follows_reconstruction_in_the_same_run(two_phases):
    run = two_phases
    assert run.results["steps"] == 4 + 2 * 2 and run.results["epochs"] == 3
    losses = {row["step"]: row for row in metrics(run.folder) if "loss" in row}
    assert [step for step, row in losses.items() if "contrastive_loss" in row] == [5, 6, 7, 8]
    assert [losses[step]["epoch"] for step in (4, 6, 8)] == [1, 2, 3]
    for step in range(5, 9):
        parts = losses[step]["reconstruction_loss"] + 0.3 * losses[step]["contrastive_loss"]
        assert losses[step]["loss"] == pytest.approx(parts, rel=1e-4)
    rates = [losses[step]["learning_rate"] for step in range(1, 9)]
    for phase, peak in ((rates[:4], 2e-3 * (16 / 512) ** 0.5), (rates[4:], 1e-3 * 32 / 256)):
        cosine = [0.5 * (1 + np.cos(np.pi * (k / 4 - 0.05) / 0.95)) for k in (1, 2, 3)]  # warm-up is a twentieth
        assert phase == pytest.approx([0, *(peak * value for value in cosine)], rel=1e-4)
    assert run.results["base_lr"] == pytest.approx(1e-3 * (512 / 16) ** 0.5)
    assert run.results["contrast_base_lr"] == 1e-3 and run.results["contrast_batch_size"] == 32
    assert [row["step"] for row in metrics(run.folder) if "knn_val" in row] == [0, 4, 6, 8]


def test_adams_averages_are_as_long_as_in_pretraining_an_mae(two_phases):
    """He et al., table 8."""
    last = max((two_phases.folder / "checkpoints").iterdir())
    groups = torch.load(last, weights_only=True)["optimizer"]["param_groups"]
    assert {tuple(group["betas"]) for group in groups} == {(0.9, 0.95)}


def test_no_epoch_has_the_order_of_another_though_a_phase_begins_between_them(quick_figures, tmp_path, monkeypatch):
    shown, draw_inputs = [], pretrain.draw_inputs

    def noted(*arguments):
        shown.append(arguments[3].images.numpy().tobytes())
        return draw_inputs(*arguments)

    monkeypatch.setattr(pretrain, "draw_inputs", noted)
    alike = {"epochs": 4, "contrast_epochs": 2, "contrast_batch_size": 16, "log_with": ()}
    tinymae.pretrain(**QUICK | TWO_PHASES | alike, output_dir=tmp_path)
    assert len({*shown}) == len(shown) == 4 * 4


def test_the_last_fifth_of_the_contrast_may_hide_less(quick_figures, tmp_path, monkeypatch):
    hidden, draw_inputs = [], pretrain.draw_inputs

    def noted(*arguments):
        inputs = draw_inputs(*arguments)
        hidden.append((arguments[-1], inputs["mask"].sum(dim=1).unique().tolist()))
        return inputs

    monkeypatch.setattr(pretrain, "draw_inputs", noted)
    more = {"epochs": 6, "contrast_epochs": 5, "final_mask_ratio": 0.25}
    tinymae.pretrain(**QUICK | TWO_PHASES | more, output_dir=tmp_path)
    late = [phase for phase in hidden[4:] if phase[0] >= 0.8]  # after four steps of reconstruction
    assert [count for _, count in late] == [[1]] * 2 and [count for _, count in hidden[:-2]] == [[2]] * 12
    assert tinymae.load(tmp_path).mask_ratio == 0.5


ONE_EPOCH_EACH = TWO_PHASES | {"epochs": 2, "contrast_epochs": 1, "batch_size": 32, "contrast_crop": "resized",
                               "contrast_color_jitter": 0.2, "log_with": ()}  # fmt: skip
CHANGES = {"clip_grad": 1e-3, "weight_decay": 0.9, "temperature": 0.5, "decoded_views": 2, "contrast_crop": "none",
           "min_scale": 0.9, "contrast_color_jitter": 0.9, "color_jitter": 0.5, "flip": True,
           "rotate90": True}  # fmt: skip


@pytest.fixture(scope="module")
def trained(quick_stages, tmp_path_factory):
    """A function that pretrains for two epochs, with other settings than usual, and gives the folder."""
    colours = {"data": FEW["data"].repeat(1, 3, 1, 1)}

    @functools.cache
    def train(**other) -> Path:
        settings = QUICK | ONE_EPOCH_EACH | colours | other
        return tinymae.pretrain(**settings, output_dir=tmp_path_factory.mktemp("trained") / "run").folder

    return train


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_reaches_the_weights(name, trained):
    assert not same_files(trained(), trained(**{name: CHANGES[name]}))


def test_the_seed_draws_the_weights_and_masks_of_which_each_view_has_its_own(quick_figures, tmp_path, monkeypatch):
    drawn, draw_inputs = [], pretrain.draw_inputs
    monkeypatch.setattr(pretrain, "draw_inputs", lambda *given: drawn.append(draw_inputs(*given)) or drawn[-1])
    still = QUICK | TWO_PHASES | {"epochs": 1, "contrast_epochs": 1, "contrast_base_lr": 0.0, "log_with": ()}
    one, other = (tinymae.pretrain(**still | {"seed": seed}, output_dir=tmp_path / str(seed)) for seed in (1, 2))
    assert not same_files(one.folder, other.folder)
    assert not torch.equal(drawn[0]["mask"], drawn[len(drawn) // 2]["mask"])
    first, second, _ = drawn[0]["mask"].chunk(3)
    assert not torch.equal(first, second)


def test_images_stay_as_they_are_where_nothing_else_is_asked_for():
    images, draws = load_dataset("digits").images[:8], Draws(0, 0, 8, torch.arange(8), "cpu")
    for still in ({"crop": "none"}, {"crop": "pad", "crop_padding": 0}):
        settings = PretrainSettings(data="digits", flip=False, **still).resolve()
        (first, *_) = settings.plan_phases(load_dataset("digits"))
        assert torch.equal(phases.augment(settings, first, images, draws), images)


@pytest.mark.parametrize(
    "train",
    [functools.partial(tinymae.pretrain, **TINY), functools.partial(tinymae.finetune, from_scratch=True, **ENCODER)],
)
def test_images_that_are_not_square_are_not_turned(train, tmp_path):
    wide = FEW | {"data": FEW["data"].repeat(1, 1, 1, 2)}
    with pytest.raises(InputError, match="rotate90 needs square images, not 8 x 16"):
        train(**wide, rotate90=True, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_views_of_an_image_come_to_agree(quick_figures, tmp_path):
    contrast = {"epochs": 10, "contrast_epochs": 10, "contrast_base_lr": 8e-3}
    tinymae.pretrain(**QUICK | TWO_PHASES | contrast, output_dir=tmp_path)
    losses = [row["contrastive_loss"] for row in metrics(tmp_path) if "loss" in row]
    assert len(losses) == 20 and sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_weights_are_kept_on_the_way(two_phases):
    epochs = two_phases.folder / "epochs"
    assert sorted(path.name for path in epochs.iterdir()) == ["0001", "0002", "0003"]
    kept = [(epochs / name / "model.safetensors").read_bytes() for name in ("0001", "0002", "0003")]
    assert len(set(kept)) == 3 and kept[-1] == (two_phases.folder / "model.safetensors").read_bytes()
    assert tinymae.load(epochs / "0001").config == two_phases.model.config


def test_the_defaults_share_the_epochs_as_the_released_recipe_does():
    defaults = PretrainSettings().resolve()
    assert (defaults.epochs, defaults.contrast_epochs) == (126, 84)
    images = torch.zeros(48_000, 1, 1, 1, dtype=torch.uint8)
    phases = defaults.plan_phases(load_dataset(images, "all"))
    assert [(phase.epochs, phase.views, phase.batch_size) for phase in phases] == [(42, 1, 512), (84, 4, 512)]
    assert PretrainSettings(epochs=12).resolve().contrast_epochs == 8
    ratios = [PretrainSettings(**given).resolve().final_mask_ratio for given in ({}, {"mask_ratio": 0.4})]
    assert ratios == [0.5, 0.4] and PretrainSettings(contrast_epochs=0).resolve().final_mask_ratio is None
    assert [phase.views for phase in PretrainSettings(model="vae").resolve().plan_phases(load_dataset("digits"))] == [1]


@pytest.mark.parametrize(
    ("images", "given", "sizes"),
    [
        (8192, {}, [512, 512]), (8191, {}, [256, 256]), (2000, {}, [64, 64]), (60, {}, [32, 32]), (1, {}, [1, 1]),
        (2000, {"batch_size": 48}, [48, 48]),
        (2000, {"contrast_batch_size": 2000}, [64, 2000]),
    ],
)  # fmt: skip
def test_an_epoch_of_few_images_has_several_steps(images, given, sizes):
    dataset = load_dataset(torch.zeros(images, 1, 1, 1, dtype=torch.uint8), "all")
    settings = PretrainSettings(**given).resolve()
    assert [phase.batch_size for phase in settings.plan_phases(dataset)] == sizes


def test_a_folder_of_few_images_needs_no_settings(tmp_path, quick_figures, monkeypatch):
    """The first command that people type, on what they have."""
    small = {"image_size": (8, 12), "embed_dim": 16, "depth": 1, "num_heads": 2}
    save_images(tmp_path / "images", pixels(60, 12, 16, 3))
    run = tinymae.pretrain(tmp_path / "images", epochs=4, **small, output_dir=tmp_path / "run")
    assert run.results["steps"] == 4 and run.results["contrast_epochs"] == 3
    assert (run.results["batch_size"], run.results["contrast_batch_size"]) == (32, 32)
    card = (run.folder / "README.md").read_text()
    assert "- `batch_size`: 32\n" in card and "ViT of 1 block, 16 wide, patches of 4x4, images of 8x12" in card
    assert "knn_val" not in run.results and run.model.image_size == (8, 12)  # without labels nothing is judged


def test_a_time_limit_is_shared_by_the_phases_and_ends_at_learning_rate_zero(quick_figures, tmp_path, monkeypatch):
    tick(monkeypatch)
    endless = {"epochs": 6000, "contrast_epochs": 4000, "views": 2, "warmup_epochs": 600, "log_every": 1}
    limits = {"max_minutes": 5, "contrast_batch_size": 16, "embed_dim": 8}
    run = tinymae.pretrain(**QUICK | TWO_PHASES | endless | limits, log_with=(), output_dir=tmp_path)
    rows = [row for row in metrics(tmp_path) if "learning_rate" in row]
    phases = [[row for row in rows if ("contrastive_loss" in row) == contrast] for contrast in (False, True)]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)) and run.results["steps"] == len(rows)
    assert run.results["epochs"] == pytest.approx(len(rows) / 4) and rows[-1]["epoch"] == run.results["epochs"]
    assert run.results["contrast_epochs"] == pytest.approx(len(phases[1]) / 4)
    assert min(map(len, phases)) > 10 and 5 <= run.results["minutes"] < 5.2
    # 2,000 epochs of one view and 4,000 of two: a fifth of the time is the first phase's.
    assert [phase[-1]["minutes"] for phase in phases] == pytest.approx([1, 5], abs=0.1)
    for phase, base_lr, batch_size in zip(phases, (1e-3, 1e-3), (16, 16), strict=True):
        rates = [row["learning_rate"] for row in phase]
        assert rates[-1] < 0.02 * base_lr * batch_size / 256 < 0.9 * base_lr * batch_size / 256 < max(rates)
    again = tinymae.pretrain(**QUICK | TWO_PHASES | endless | limits, log_with=(), output_dir=tmp_path)
    assert again.results["steps"] == run.results["steps"]  # what is finished is not trained again


def test_who_has_no_gpu_is_told_of_shallower_models_before_hours_are_spent():
    deep, shallow = (MaskedAutoencoder(image_size=8, patch_size=4, depth=depth) for depth in (None, 4))
    plain, limited = PretrainSettings(), PretrainSettings(max_minutes=9)
    advice = pretrain.advise(plain, deep, 18_144_000, "cpu")
    assert "18,144,000 images and views take hours: --depth 4 --max-minutes 60 learns more in the time" in advice
    assert pretrain.advise(limited, deep, 18_144_000, "cpu").endswith("--depth 4 learns more in the time")
    others = [(deep, 48_000, "cpu"), (deep, 10**7, "cuda"), (shallow, 10**7, "cpu"), (ConvAutoencoder(), 10**7, "cpu")]
    assert not any(pretrain.advise(plain, *other) for other in others)


# ---- from other weights


# A learning rate of 0 leaves the weights as they were when training began.
STILL = FEW | {"batch_size": 16, "epochs": 1, "warmup_epochs": 0, "base_lr": 0.0, "flip": False, "contrast_epochs": 0}


def go_on(**settings) -> MaskedAutoencoder:
    return MaskedAutoencoder.from_pretrained(tinymae.pretrain(**STILL, **settings).folder)


@pytest.mark.parametrize("kind", ["tinymae", "official", "transformers", "a model"])
def test_pretraining_goes_on_from_every_kind_of_weights(kind, quick_figures, tmp_path):
    model, source = off_the_start(tiny_mae()), tmp_path / "start"
    write = {
        "tinymae": MaskedAutoencoder.write_weights,
        "official": tinymae.to_official,
        "transformers": tinymae.to_transformers,
    }
    if kind in write:
        write[kind](model, source)
    trained = go_on(weights=source if kind in write else model, output_dir=tmp_path / "run")
    assert_same_weights(trained, model)
    mean, std = load_dataset(FEW["data"], labels=FEW["labels"]).statistics
    assert trained.config["mean"] == pytest.approx(mean) and trained.config["std"] == pytest.approx(std)
    assert trained.mask_ratio == (0.75 if kind == "official" else 0.5)  # the official file does not say


def test_sizes_that_are_given_adapt_the_weights(quick_figures, tmp_path):
    (model := off_the_start(tiny_mae(in_channels=3))).write_weights(tmp_path / "start")
    changes = {"image_size": 12, "patch_size": 3, "in_channels": 1, "mask_ratio": 0.25}
    trained = go_on(weights=tmp_path / "start", **changes, output_dir=tmp_path / "run")
    assert_same_weights(trained, adapt(model, image_size=12, patch_size=3, in_channels=1))
    assert trained.mask_ratio == 0.25


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


def test_a_subclass_keeps_its_class_and_so_its_loss(quick_figures, tmp_path):
    sizes = {"patch_size": 2, "embed_dim": 24, "depth": 1, "num_heads": 2, "decoder_dim": 16, "decoder_depth": 1}
    model = Weighed(weight=100.0, **sizes)
    adapted = adapt(model, patch_size=4)
    assert type(adapted) is Weighed and adapted.weight == 100.0 and adapted.patch_size == (4, 4)
    run = tinymae.pretrain(**STILL, weights=model, output_dir=tmp_path)
    assert type(run.model) is Weighed and run.model.weight == 100.0
    rows = [row for row in metrics(tmp_path) if "unweighed" in row]
    assert rows and all(row["loss"] == pytest.approx(100 * row["unweighed"]) for row in rows)
    assert type(Weighed.from_pretrained(tmp_path)) is Weighed


def test_an_argument_that_the_constructor_of_a_subclass_does_not_have_is_named():
    assert type(adapt(Fixed(), image_size=16)) is Fixed
    with pytest.raises(InputError, match="the constructor of Fixed has no argument patch_size: add it"):
        adapt(Fixed(), patch_size=2)


CONTRAST = {"contrast_epochs": 1, "contrast_batch_size": 16}
REFUSED = [
    (CONTRAST | {"gradient_accumulation_steps": 2}, "gradient_accumulation_steps 2 would split"),
    ({"contrast_weight": -1.0}, "contrast_weight -1 is below 0"),
    ({"contrast_epochs": 3}, "contrast_epochs 3 is not within 0 and the 2 epochs"),
    (CONTRAST | {"views": 1}, "views 1 leaves nothing to contrast"),
    (CONTRAST | {"decoded_views": 5}, "decoded_views 5 is not within 1 and the 4 views"),
    (CONTRAST | {"final_mask_ratio": 0.01}, "mask_ratio 0.01 hides no patch of 4"),
    (CONTRAST | {"contrast_batch_size": 500}, "batch_size 500 is not within 1 and the data set's 64"),
]
REFUSED_OF_WEIGHTS = [
    ({"embed_dim": 48}, "embed_dim 48 contradicts weights .*, which have 16: leave it out"),
    ({"encoder": "vit_small_patch16_224"}, "encoder vit_small_patch16_224 contradicts"),
    ({"decoder_depth": 2}, "decoder_depth 2 contradicts"),
    ({}, "array has 1 channels, not 3: give --in-channels 1"),
    ({"patch_size": 3, "in_channels": 1}, "not a multiple of patch_size"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_contrast_refuses_what_it_cannot_do(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        tinymae.pretrain(**QUICK | settings, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["conv_ae", "pca"])
def test_contrast_is_of_masked_autoencoders(model, tmp_path):
    with pytest.raises(InputError, match="contrast_epochs goes with --model mae"):
        tinymae.pretrain(**FEW, model=model, contrast_epochs=1, output_dir=tmp_path / "run")


@pytest.mark.parametrize(("settings", "message"), REFUSED_OF_WEIGHTS)
def test_settings_that_contradict_the_weights_are_refused_by_name(settings, message, tmp_path):
    tiny_mae(in_channels=3).write_weights(tmp_path / "start")
    with pytest.raises(InputError, match=message):
        tinymae.pretrain(**FEW | settings, weights=tmp_path / "start", output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_of_another_family_are_refused(tmp_path):
    weights = VariationalAutoencoder(image_size=8, in_channels=1, width=8, latent_dim=8)
    with pytest.raises(InputError, match="hold a VariationalAutoencoder, where only --model mae will do"):
        tinymae.pretrain(**FEW, weights=weights, output_dir=tmp_path / "run")
