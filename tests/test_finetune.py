"""Fine-tuning pretrained weights, and the same classifier from scratch."""

import copy
import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from pictures import SPLITS
from running import DIGITS, ENCODER, FEW, SHORT, before_reports, metrics, same_files, save_images, tick, tiny_mae
from torch import nn

import tinymae
from tinymae import InputError, load_dataset
from tinymae.commands import finetune, objective
from tinymae.commands.finetune import FinetuneSettings
from tinymae.commands.learning import peak_rate
from tinymae.data.load import load_splits
from tinymae.errors import Stopped
from tinymae.evaluation.probes import fit_linear, linear_fits
from tinymae.files import read_json
from tinymae.interop.load import load_classifier
from tinymae.models.conv import ConvAutoencoder
from tinymae.models.vqvae import VQAutoencoder

LOGS = Path(__file__).parent.parent / "logs"
TUNE = FEW | {"batch_size": 16, "epochs": 2, "flip": False, "log_every": 1}
MIXED = {"mixup": 0.8, "cutmix": 1.0, "trivial_augment": True, "random_erasing": 0.5}
ONE_EPOCH = FEW | {"batch_size": 16, "epochs": 1, "recipe": "light", "random_erasing": 0.25, "no_test": True,
                   "log_with": ()}  # fmt: skip
CHANGES = {"layer_decay": 0.5, "weight_decay": 0.9, "ema_decay": 0.1, "label_smoothing": 0.5, "clip_grad": 1e-3,
           "drop_path": 0.9, "patch_drop": 0.75, "flip": False, "rotate90": True, "crop_padding": 0,
           "random_erasing": 0.75, "trivial_augment": True, "mixup": 0.8, "cutmix": 1.0,
           "optimizer": "muon", "seed": 7, "logit_adjustment": 1.0}  # fmt: skip


def accuracy_on(split: str, classifier) -> float:
    digits = load_dataset("digits", split)
    with torch.no_grad():
        return 100 * float((classifier(digits.images).argmax(1) == digits.labels).double().mean())


@pytest.mark.parametrize("scratch", [False, True])
def test_fine_tuning_gives_a_stock_timm_classifier(scratch, pretrained, tmp_path):
    encoder = {"patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 2}
    start = {"from_scratch": True, **encoder} if scratch else {"weights": pretrained}
    recipe = {"epochs": 10, "batch_size": 128, "base_lr": 2e-2, "ema_decay": 0.9, "crop_padding": 0, "patch_drop": 0.0,
              "eval_every": 5, "recipe": "light"}  # fmt: skip
    run = tinymae.finetune(**DIGITS | SHORT | recipe, **start, output_dir=tmp_path / "run")
    assert run.results["accuracy_test"] > 60
    assert np.sum(run.results["confusion_matrix"]) == run.results["num_test_labels"] == 360
    assert [row["step"] for row in metrics(run.folder) if "accuracy_val" in row] == [50, 100]
    for split in ("val", "test"):
        assert accuracy_on(split, run.model) == pytest.approx(run.results[f"accuracy_{split}"])
    scores = tinymae.evaluate(**DIGITS, weights=run.folder, output_dir=tmp_path / "evaluate").results
    assert scores["accuracy"] == pytest.approx(run.results["accuracy_test"])
    assert scores["confusion_matrix"] == run.results["confusion_matrix"]
    stock = timm.create_model(f"local-dir:{run.folder}", pretrained=True).eval()
    images = run.model.normalise(load_dataset("digits", "test").images[:9])
    with torch.no_grad():
        torch.testing.assert_close(stock(images), run.model(images))


def blank(images: int, *, channels: int = 3, several: bool = False):
    """Labelled images, all black."""
    labels = np.zeros((images, 2) if several else images, dtype=np.int64)
    pixels = torch.zeros(images, channels, 8, 8, dtype=torch.uint8)
    return load_splits(pixels, ["all"], labels=labels, several=True)["all"]


def test_the_defaults_are_the_recipe_of_the_released_classifier():
    recorded = read_json(LOGS / "vit-t-classifier-pretrained" / "args.json")["arguments"]
    settings = FinetuneSettings(weights="weights/vit-t-mae").settle_for(blank(48_000)).record()
    assert peak_rate(None, 512) == recorded["base_lr"] * 512 / 256
    assert (settings["pool"], recorded["pool"]) == (None, "avg")  # which None is, but for a classifier's weights
    chosen = {"warmup_epochs", "base_lr", "max_minutes", "compile", "mixed_precision", "eval_every", "precision"}
    assert not settings["probe_first"]  # which all labels did not have
    chosen |= {"pool", "skip_unreadable"}  # the second is not recorded any more
    assert {name: settings[name] for name in recorded if name not in chosen} == {
        name: value for name, value in recorded.items() if name not in chosen
    }
    assert recorded["warmup_epochs"] == 80 / 20


def test_a_recipe_fills_what_is_left_open_as_far_as_the_images_allow():
    def settle(dataset, **settings) -> dict:
        return FinetuneSettings(weights="somewhere", **settings).settle_for(dataset).record()

    sizes = {8192: 512, 2048: 128, 2047: 64, 480: 32, 46: 32, 20: 16}  # by the number of labelled images
    assert {images: settle(blank(images))["batch_size"] for images in sizes} == sizes
    assert {images: settle(blank(images))["epochs"] for images in (8192, 480, 161)} == {8192: 94, 480: 100, 161: 300}
    light = settle(blank(8192), recipe="light", epochs=10, mixup=0.2)
    assert (light["batch_size"], light["patch_drop"], light["layer_decay"]) == (128, 0.5, 0.75)
    assert (light["trivial_augment"], light["random_erasing"], light["final_epochs"]) == (False, 0.0, 0)
    assert (light["mixup"], light["cutmix"]) == (0.2, 0.0)
    assert settle(blank(99), epochs=10)["final_epochs"] == 2
    for settled in (settle(blank(99, several=True)), settle(blank(99), unlabelled=3)):
        assert (settled["mixup"], settled["cutmix"], settled["trivial_augment"]) == (0.0, 0.0, True)
    assert not settle(blank(99, channels=5))["trivial_augment"]
    with pytest.raises(InputError, match="several labels an image: leave out mixup, cutmix, unlabelled and logit"):
        settle(blank(99, several=True), mixup=0.8)
    with pytest.raises(InputError, match="batch_size 9 is odd"):
        settle(blank(99), batch_size=9)
    assert settle(blank(99), batch_size=9, recipe="light")["batch_size"] == 9
    assert settle(blank(99))["eval_every"] == 31 and settle(blank(99), epochs=80)["eval_every"] == 5


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_few_labels_begin_at_the_linear_probe(pool, quick_figures, quick_probes, tmp_path, capsys):
    """Without learning it is what fine-tuning leaves."""
    mae, images = tiny_mae(), load_dataset("digits", "test").images[:99]
    splits = load_splits(FEW["data"], ["train", "val"], labels=FEW["labels"])
    train, val = ((mae.encode(split.images, pool=pool).detach(), split.labels) for split in splits.values())
    probes = [fit_linear(*train, num_classes=10, l2=l2) for l2 in linear_fits.__kwdefaults__["grid"]]
    best = min(probes, key=lambda probe: float(nn.functional.cross_entropy(probe(val[0]), val[1])))
    still = FEW | {"weights": mae, "pool": pool, "batch_size": 16, "epochs": 1, "base_lr": 0.0, "probe_first": True}
    tuned = tinymae.finetune(**still, output_dir=tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(tuned.model(images), best(mae.encode(images, pool=pool)), rtol=1e-3, atol=1e-3)
        right = 100 * float((best(val[0]).argmax(dim=1) == val[1]).double().mean())
    assert tuned.results["accuracy_val_start"] == tuned.results["accuracy_val"] == pytest.approx(right)
    assert "below" not in capsys.readouterr().out


def test_an_end_below_the_probe_of_the_start_is_told_with_the_remedy(quick_figures, quick_probes, tmp_path, capsys):
    """Also after a pause."""
    ruined = FEW | {"weights": tiny_mae(), "batch_size": 16, "epochs": 1, "base_lr": 9.0, "output_dir": tmp_path}
    with pytest.raises(Stopped):
        tinymae.finetune(**ruined, pause_after_minutes=0)
    results = tinymae.finetune(**ruined).results
    start, end = results["accuracy_val_start"], results["accuracy_val"]
    assert end < start
    said = f"accuracy {end:.2f} % on validation\nwhich is below the {start:.2f} % of the linear probe that the head"
    assert f"{said} began as: train longer (epochs, max_minutes), or take" in capsys.readouterr().out


def test_several_labels_and_other_families_begin_at_the_probe_as_well(quick_figures, tmp_path):
    labels = load_dataset("digits").labels[:80]
    both = torch.stack([labels < 5, labels % 2 == 0], dim=1).long()
    for name, weights in {"mae": tiny_mae(), "conv": ConvAutoencoder(image_size=8, in_channels=1, width=8)}.items():
        common = FEW | {"labels": both, "weights": weights}
        still = common | {"batch_size": 16, "epochs": 1, "base_lr": 0.0}
        begun = [
            tinymae.finetune(**still, probe_first=first, output_dir=tmp_path / f"{name}-{first}").results["mean_ap_val"]
            for first in (True, False)
        ]
        assert begun[0] > begun[1]


def test_when_the_head_begins_at_a_probe():
    def first(dataset, **settings) -> bool | None:
        return FinetuneSettings(**{"weights": "somewhere"} | settings).settle_for(dataset).probe_first

    assert first(blank(finetune.FEW_LABELS)) and not first(blank(finetune.FEW_LABELS + 1))
    assert first(blank(48_000), probe_first=True) and not first(blank(99), probe_first=False)
    wide = VQAutoencoder(image_size=64)
    assert wide.num_features > finetune.FEW_FEATURES  # of which a probe would take minutes
    assert not FinetuneSettings(weights="somewhere").settle_for(blank(99), wide).probe_first
    assert not first(blank(99), unlabelled=3) and not first(blank(99), weights=None, from_scratch=True)
    message = "probe_first needs features that were learned: leave it out with from_scratch"
    with pytest.raises(InputError, match=message):
        FinetuneSettings(from_scratch=True, probe_first=True).resolve()


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_result_computes_as_what_is_saved(ema_decay, quick_figures, tmp_path):
    """In the precision that its user chooses, not in that of the training."""
    small = ENCODER | {"from_scratch": True, "epochs": 1}
    given = FEW | small | {"mixed_precision": "bf16", "ema_decay": ema_decay}
    run = tinymae.finetune(**given, output_dir=tmp_path)
    images = load_dataset("digits", "test").images[:9]
    with torch.no_grad():
        torch.testing.assert_close(run.model(images), load_classifier(tmp_path)(images), atol=1e-6, rtol=1e-5)


def test_the_result_is_the_moving_average_of_the_weights_after_each_step(quick_figures, tmp_path, monkeypatch):
    """Its decay rises from 0 to what was asked for: after few steps hardly anything is left of the first weights."""
    averages = []

    def average(run, state):
        decay, weight = min(0.7, 1 - state.step ** (-2 / 3)), run.parts["model"].head.weight.detach().clone()
        averages.append(torch.lerp(weight, averages[-1], decay) if averages else weight)

    before_reports(monkeypatch, average)
    run = tinymae.finetune(**TUNE, ema_decay=0.7, base_lr=0.1, weights=tiny_mae(), output_dir=tmp_path)
    assert len(averages) == 8
    torch.testing.assert_close(run.model.head.weight, averages[-1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_result_can_be_trained_on_and_drops_anew(ema_decay, quick_figures, tmp_path):
    drops = {"ema_decay": ema_decay, "drop_path": 0.5, "patch_drop": 0.5, "depth": 2, "no_test": True, "epochs": 1}
    run = tinymae.finetune(
        **FEW | drops, from_scratch=True, patch_size=4, embed_dim=16, num_heads=2, output_dir=tmp_path
    )
    images, model = torch.randn(9, 1, 8, 8), run.model.train()
    assert not torch.equal(model(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


def test_the_learning_rate_warms_up_and_ends_at_zero(quick_figures, tmp_path):
    tinymae.finetune(**TUNE, warmup_epochs=0.5, base_lr=0.1, weights=tiny_mae(), output_dir=tmp_path)
    rates = [row["learning_rate"] * 256 / 16 / 0.1 for row in metrics(tmp_path) if "loss" in row]
    cosine = [0.5 * (1 + np.cos(np.pi * step / 6)) for step in range(6)]
    assert rates == pytest.approx([0, 0.5, *cosine], rel=1e-4)


def test_every_kind_of_augmentation_and_drop_path_is_the_same_in_micro_batches(quick_figures, tmp_path):
    model, recipe, losses = tiny_mae(depth=2), TUNE | MIXED | {"epochs": 1, "clip_grad": 1.0, "drop_path": 0.5}, []
    for parts in (1, 2):
        memory = {"gradient_accumulation_steps": parts, "gradient_checkpointing": parts > 1}
        tinymae.finetune(**recipe, **memory, weights=model, output_dir=tmp_path / str(parts))
        losses.append([row["loss"] for row in metrics(tmp_path / str(parts)) if "loss" in row])
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.fixture(scope="module")
def tuned(quick_stages, tmp_path_factory):
    """A function that fine-tunes for an epoch, with other settings than usual, and gives the folder."""
    model = tiny_mae(depth=2)

    @functools.cache
    def tune(**other) -> Path:
        settings = ONE_EPOCH | other
        return tinymae.finetune(**settings, weights=model, output_dir=tmp_path_factory.mktemp("tuned") / "run").folder

    return tune


@pytest.mark.parametrize("name", [*CHANGES, "label_smoothing with mixup"])
def test_every_setting_reaches_the_weights(name, tuned):
    name, _, mixed = name.partition(" with ")
    mixing = {mixed: 0.8} if mixed else {}
    assert not same_files(tuned(**mixing), tuned(**mixing, **{name: CHANGES[name]}))


def test_adams_averages_are_as_long_as_in_fine_tuning_an_mae(tuned):
    """He et al., table 9."""
    groups = torch.load(max((tuned() / "checkpoints").iterdir()), weights_only=True)["optimizer"]["param_groups"]
    assert {tuple(group["betas"]) for group in groups} == {(0.9, 0.999)}


def test_a_compiled_model_is_saved_as_it_was_scored(pretrained, quick_figures, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *arguments: function(*arguments))
    recipe = DIGITS | SHORT | {"base_lr": 1e-2, "ema_decay": 0.9, "compile": True}
    run = tinymae.finetune(**recipe, weights=pretrained, output_dir=tmp_path)
    assert accuracy_on("test", load_classifier(tmp_path)) == pytest.approx(run.results["accuracy_test"])


def test_the_schedule_of_a_time_limit_begins_after_the_probe(quick_figures, tmp_path, monkeypatch):
    def start_at_probe(settings, model, run, chosen) -> float:
        run.clock.minutes_before += 60
        return 50.0

    monkeypatch.setattr(finetune, "start_at_probe", start_at_probe)
    limited = TUNE | {"weights": tiny_mae(), "probe_first": True, "warmup_epochs": 1, "base_lr": 1e-3}
    with pytest.raises(InputError, match="max_minutes 50 was over before the linear probe was found"):
        tinymae.finetune(**limited, max_minutes=50, output_dir=tmp_path / "short")
    run = tinymae.finetune(**limited, max_minutes=120, output_dir=tmp_path / "long")
    rates = [row["learning_rate"] for row in metrics(run.folder) if "learning_rate" in row]
    plain = tinymae.finetune(**limited, output_dir=tmp_path / "plain")
    assert rates == pytest.approx(
        [row["learning_rate"] for row in metrics(plain.folder) if "learning_rate" in row], abs=1e-6
    )


def test_adjusted_logits_learn_as_if_each_class_had_as_many_images(quick_figures, tmp_path):
    """Menon et al., equation 10, with a head that begins as a probe and does not move."""
    rows = torch.cat([(FEW["labels"] == number).nonzero()[: 2 + number % 3, 0] for number in range(10)])
    few = {"data": FEW["data"][rows], "labels": FEW["labels"][rows]}
    still = TUNE | few | {"epochs": 1, "base_lr": 0.0, "ema_decay": 0.0, "probe_first": True, "no_test": True}
    plain, adjusted = (
        tinymae.finetune(**still, weights=tiny_mae(), logit_adjustment=tau, output_dir=tmp_path / str(tau))
        for tau in (0.0, 0.5)
    )
    train_set = load_dataset(few["data"], "train", labels=few["labels"])
    ratios = torch.bincount(train_set.labels, minlength=10) / len(train_set)
    with torch.no_grad():
        logits, moved = (run.model(FEW["data"]) for run in (plain, adjusted))
    assert ratios.unique().numel() > 1
    torch.testing.assert_close(logits - moved, 0.5 * ratios.log().expand_as(logits))
    compute_losses = objective.create_losses(
        FinetuneSettings(weights="somewhere", label_smoothing=0.0), nn.Identity(), adjusted.model, None,
        soft=False, priors=ratios.log(),
    )  # fmt: skip
    likely = moved.softmax(dim=1) * ratios
    expected = -(likely / likely.sum(dim=1, keepdim=True)).log()[torch.arange(len(moved)), FEW["labels"]].mean()
    torch.testing.assert_close(compute_losses(moved, FEW["labels"])["loss"], expected)


def test_the_final_epochs_see_whole_images_that_nothing_distorts(quick_figures, tmp_path, monkeypatch):
    seen, tokens = [], []

    def spying(*args, create_losses=finetune.create_losses, **kwargs):
        compute_losses = create_losses(*args, **kwargs)
        return lambda images, targets: seen.append((images, targets)) or compute_losses(images, targets)

    def forward(block, x, forward=timm.models.vision_transformer.Block.forward, **kwargs):
        if block.training:
            tokens.append(x.shape[1])
        return forward(block, x, **kwargs)

    monkeypatch.setattr(finetune, "create_losses", spying)
    monkeypatch.setattr(timm.models.vision_transformer.Block, "forward", forward)
    model, recipe = tiny_mae(), TUNE | {"epochs": 3, "crop_padding": 0, "patch_drop": 0.5} | MIXED
    tinymae.finetune(**recipe, final_epochs=1, weights=model, output_dir=tmp_path)
    known = {image.numpy().tobytes() for image in model.normalise(FEW["data"])}
    assert [all(image.numpy().tobytes() in known for image in images) for images, _ in seen] == [False] * 8 + [True] * 4
    assert [targets.is_floating_point() for _, targets in seen] == [True] * 8 + [False] * 4
    assert tokens == [1 + 2] * 8 + [1 + 4] * 4


@pytest.mark.parametrize(
    "model", [tiny_mae(), ConvAutoencoder(image_size=8, in_channels=1, width=8, latent_dim=8)], ids=["mae", "conv_ae"]
)
def test_a_model_that_is_given_stays_as_it_was(model, quick_figures, tmp_path):
    before = copy.deepcopy(model)
    run = tinymae.finetune(**TUNE | {"epochs": 1}, weights=model, output_dir=tmp_path)
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters()) and run.model is not model


def test_the_same_architecture_can_start_from_random_weights(quick_figures, tmp_path):
    model = tiny_mae()
    still = TUNE | {"epochs": 1, "base_lr": 0.0, "ema_decay": 0.0}
    tuned, scratch = (
        tinymae.finetune(**still, weights=model, from_scratch=scratch, output_dir=tmp_path / str(scratch)).model
        for scratch in (False, True)
    )
    kernel = model.encoder.patch_embed.proj.weight
    assert torch.equal(tuned.vit.patch_embed.proj.weight, kernel)
    assert scratch.vit.patch_embed.proj.weight.shape == kernel.shape
    assert not torch.equal(scratch.vit.patch_embed.proj.weight, kernel)


def test_labels_are_counted_and_test_is_left_out_on_request(quick_figures, tmp_path):
    digits = load_dataset("digits")
    data = TUNE | {"data": digits.images[:300], "labels": digits.labels[:300], "epochs": 1, "batch_size": 8}
    few = {"label_fraction": 0.1, "val_labels": 10, "no_test": True}
    run = tinymae.finetune(**data, **few, weights=tiny_mae(), output_dir=tmp_path)
    assert 20 <= run.results["num_labels"] <= 30 and run.results["num_val_labels"] == 10
    assert run.results["accuracy_val"] % 10 == 0
    low, high = run.results["accuracy_val_interval"]
    row = f"| accuracy, validation | {run.results['accuracy_val']:.2f} | 10 | {low:.1f} to {high:.1f} |"
    assert row in (tmp_path / "README.md").read_text() and high - low > 25  # of ten images
    scores = {name for name in run.results if name.startswith("accuracy")}
    assert scores == {"accuracy_val", "accuracy_val_interval", "accuracy_val_start"}
    recorded = read_json(tmp_path / "args.json")
    assert recorded["inputs"].keys() == {"train", "val", "weights"}


CONV = {"weights": ConvAutoencoder(image_size=8, in_channels=1, width=8, latent_dim=8)}
REFUSED = [
    ({"label_fraction": 0.0}, "label_fraction 0 is not above 0"),
    ({"val_labels": 9}, "val_labels 9 is not within 1 and the 7 validation images"),
    ({"batch_size": 70}, "batch_size 70 is not within 1 and the data set's 64 images"),
    ({"batch_size": 33, "mixup": 0.8}, "batch_size 33 is odd, mixup and cutmix pair images"),
    ({"final_epochs": 2}, "final_epochs 2 is not within 0 and 1"),
    ({"patch_drop": 1.0}, "patch_drop 1 is not below 1"),
    ({"pool": "max"}, "pool 'max' is none of avg, cls"),
    (CONV | {"gradient_checkpointing": True}, "gradient_checkpointing is not available for ConvAutoencoder"),
    (CONV | {"layer_decay": 0.5}, "layer_decay 0.5 is of ViTs, which these weights are not: leave it out"),
    (CONV | {"patch_drop": 0.25}, "patch_drop 0.25 is of ViTs, which these weights are not: leave it out"),
    ({"depth": 7}, "depth 7 goes with --from-scratch alone: weights have their own"),
    ({"image_size": 16}, "image_size 16 goes with --from-scratch alone: weights have their own"),
    ({"in_channels": 3}, "in_channels 3 goes with --from-scratch alone: weights have their own"),
    ({"weights": tiny_mae(in_channels=3)}, "has 1 channels, the weights want 3"),
    ({"labels": None}, "data set array has no labels in train: give labels with the images: labels= in"),
    ({"weights": None}, "give --weights DIR, the folder of a pretraining run, or --from-scratch"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_cannot_be_fine_tuned_is_refused_before_a_folder_is_made(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        tinymae.finetune(**TUNE | {"weights": tiny_mae()} | settings, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_layer_decay_counts_from_scratch_as_well_where_it_is_given(quick_figures, tmp_path):
    one_step = TUNE | {"epochs": 1, "batch_size": 64, "ema_decay": 0.0, "warmup_epochs": 0, "from_scratch": True}
    decays = {"default": {}, "none": {"layer_decay": 1.0}, "half": {"layer_decay": 0.5}}
    kernel = {
        name: tinymae.finetune(**one_step | decay, weights=tiny_mae(), output_dir=tmp_path / name).model
        for name, decay in decays.items()
    }  # fmt: skip
    first = {name: model.vit.patch_embed.proj.weight for name, model in kernel.items()}
    assert torch.equal(first["default"], first["none"]) and not torch.equal(first["none"], first["half"])


def test_the_results_state_what_was_trained_and_what_was_used(quick_figures, tmp_path, monkeypatch, capsys):
    settings = {name: value for name, value in TUNE.items() if name != "epochs"}
    with monkeypatch.context() as patch:
        tick(patch)
        run = tinymae.finetune(**settings, weights=tiny_mae(), max_minutes=0.5, output_dir=tmp_path / "vit")
    assert 0 < run.results["epochs"] == run.results["steps"] / 4 < 375  # which are 1,500 steps
    said = f"the time ended it after {run.results['epochs']:.3g} of 375 epochs: hold it against linear-probe"
    assert said in capsys.readouterr().out
    card = (run.folder / "README.md").read_text()
    assert f"Cost: {run.results['epochs']:.4g} epochs, " in card and "`epochs`" not in card and "`warmup" not in card
    assert run.results["layer_decay"] == 0.9 and run.results["patch_drop"] == 0.25
    assert run.results["warmup_epochs"] == 375 / 20
    assert run.results["base_lr"] == pytest.approx(2e-3 * (16 / 512) ** 0.5 * 256 / 16)
    conv = ConvAutoencoder(image_size=8, in_channels=1, width=8, depth=1).eval()
    for name, start in {"conv": {"weights": conv}, "scratch": {"weights": tiny_mae(), "from_scratch": True}}.items():
        run = tinymae.finetune(**TUNE, **start, output_dir=tmp_path / name)
        assert run.results["layer_decay"] == 1.0
        assert run.results["patch_drop"] == (0.0 if name == "conv" else 0.25)


def test_who_has_no_gpu_is_told_of_the_light_recipe_before_hours_are_spent():
    strong, light = (FinetuneSettings(weights="somewhere", recipe=recipe) for recipe in ("strong", "light"))
    assert "3,840,000 images take hours: --recipe light" in strong.advise(3_840_000, "cpu")
    assert not any([strong.advise(48_000, "cpu"), strong.advise(3_840_000, "cuda"), light.advise(3_840_000, "cpu")])


def test_without_test_nothing_of_it_is_read(quick_figures, quick_probes, tmp_path):
    rng = np.random.default_rng(0)
    for split, (label, darkest) in itertools.product(SPLITS, {"dark": 0, "light": 100}.items()):
        save_images(tmp_path / "pictures" / split / label, rng.integers(darkest, darkest + 128, (8, 8, 8), np.uint8))
    for picture in (tmp_path / "pictures" / "test").rglob("*.png"):
        picture.write_bytes(b"not a picture")
    common = {"data": tmp_path / "pictures", "mixed_precision": "no"}
    tinymae.pretrain(**common, output_dir=tmp_path / "pca", model="pca", image_size=8, in_channels=1, latent_dim=4)
    common |= {"weights": tmp_path / "pca"}
    with pytest.raises(InputError, match="cannot be read"):
        tinymae.linear_probe(**common, output_dir=tmp_path / "probe")
    probe = tinymae.linear_probe(**common, output_dir=tmp_path / "probe", no_test=True, controls="all").results
    short = {"batch_size": 8, "epochs": 1, "output_dir": tmp_path / "finetune"}
    tuned = tinymae.finetune(**common, **short, no_test=True)
    assert probe["probe_val"] > 90 and probe["raw_pixels"]["probe_val"] > 90
    val = load_dataset(tmp_path / "pictures", "val", image_size=8, channels=1)
    right = tuned.model(val.images).argmax(dim=1) == val.labels
    assert tuned.results["accuracy_val"] == pytest.approx(100 * float(right.double().mean()))
    keys = [*probe, *probe["untrained"], *probe["raw_pixels"], *tuned.results]
    assert not [key for key in keys if "test" in key]
    for name in ("probe", "finetune"):
        assert (tmp_path / name / "confusion_matrix.png").exists()
    card = (tmp_path / "probe" / "README.md").read_text()
    assert f"| linear probe, validation | {probe['probe_val']:.2f} | 16 |" in card


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_another_classifier_is_a_start_as_well(pool, tmp_path):
    first = tinymae.finetune(**ONE_EPOCH, weights=tiny_mae(), pool=pool, output_dir=tmp_path / "first")
    labels = ["odd" if label % 2 else "even" for label in ONE_EPOCH["labels"]]
    again = ONE_EPOCH | {"labels": labels, "base_lr": 1e-9, "output_dir": tmp_path / "second"}
    second = tinymae.finetune(**again, weights=first.folder)
    assert second.model.classes == ["even", "odd"] and second.model.vit.num_classes == 2
    (old, new), images = (run.model.encoder for run in (first, second)), ONE_EPOCH["data"]
    assert new.pool == pool and torch.equal(old.mean, new.mean)
    torch.testing.assert_close(new.encode(images), old.encode(images), atol=1e-4, rtol=0)


def test_a_classifier_of_another_family_is_a_start_as_well(tmp_path):
    model = ConvAutoencoder(image_size=8, in_channels=1, width=8, latent_dim=4)
    first = tinymae.finetune(**ONE_EPOCH | {"random_erasing": 0.0}, weights=model, output_dir=tmp_path / "first")
    tinymae.finetune(**ONE_EPOCH, weights=first.model, output_dir=tmp_path / "second")
    with pytest.raises(InputError, match=r"weights \(Classifier\) hold a classifier; give the folder of a pretraining"):
        tinymae.finetune(**ONE_EPOCH, weights=first.model, from_scratch=True, output_dir=tmp_path / "third")
