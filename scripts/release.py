"""Everything behind the released weights: one command that can stop and resume.

    python scripts/release.py --output-dir runs/release                        # the recipe, for a GPU
    python scripts/release.py --output-dir runs/release --max-minutes 9        # in slots: exit code 75, repeat it
    python scripts/release.py --output-dir runs/release --finetune-epochs 15 --extra "finetune: --recipe light"

Pretrains, first by reconstruction alone, then on contrasted views as well; writes the weights in half precision,
and takes every figure from that file: probes with all, 10 % and 1 % of the labels, fine-tuning likewise, for each
of the seeds. With few labels it fine-tunes once more with unlabelled images beside the labelled ones, as many images
in all. The controls start from random weights: with all labels they get as much computing as pretraining and
fine-tuning together, once; with few labels the same number of steps. At the end weights/, logs/ and assets/ are
written, from what was measured. The weights and images are those of the first seed.

In slots of ten minutes, of which a probe or the last files may take the last one:

    until python scripts/release.py --output-dir runs/release --max-minutes 9; do [ $? = 75 ] || break; done

Trainings leave most of a GPU idle. With --stages a process does some of the stages only, so several can work side by
side after pretraining. Without it, the same command does whatever is left.

--extra passes flags on to pretraining (pretrain) or to fine-tuning, the controls included (finetune: with any labels;
all, 10, 1: with that percentage of them; unlabelled: with unlabelled images beside them):

    --extra "pretrain: --base-lr 2e-3" --extra "finetune: --patch-drop 0.5" --extra "10: --epochs 32"
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from publish import LABELS, halve, name_folders, name_seed, publish

from tinymae import load_dataset
from tinymae.commands import evaluate, finetune, linear_probe, pretrain
from tinymae.commands.cli import run_main
from tinymae.commands.evaluate import EvaluateSettings
from tinymae.commands.fields import Settings, setting, with_default
from tinymae.commands.finetune import FinetuneSettings
from tinymae.commands.linear_probe import LinearProbeSettings
from tinymae.commands.pretrain import PretrainSettings
from tinymae.commands.recipes import EPOCHS
from tinymae.commands.settings import RunSettings
from tinymae.data.datasets import Dataset
from tinymae.errors import InputError
from tinymae.files import digest, read_json, read_tensors, write_json
from tinymae.interop.load import load_mae
from tinymae.models.classifier import build_classifier
from tinymae.models.drops import draw_drops, find_drops, set_drops
from tinymae.models.flops import reconstruction_flops, training_flops
from tinymae.randomness import Draws
from tinymae.study.runs import Extra, parse_extra, require_distinct, run_once

PLACES: dict[str, type[RunSettings]] = {"pretrain": PretrainSettings}
PLACES |= dict.fromkeys(["finetune", *LABELS, "unlabelled"], FinetuneSettings)
STARTS: dict[str, dict] = {  # what each kind of training adds to the recipe
    "finetune": {},
    "unlabelled": {"unlabelled": 3, "mixup": 0.0, "cutmix": 0.0},
    "scratch": {"from_scratch": True},
}
FEW = {"recipe": "light", "trivial_augment": True, "random_erasing": 0.25}  # what it adds with few labels


@dataclass(frozen=True, kw_only=True)
class ReleaseSettings(Settings):
    """Settings of a release. The lengths are for a GPU."""

    heading = "release"
    resumes = True
    data: str = setting("cifar10", "name of a data set, or a folder with classes")
    data_dir: str | Path = with_default(RunSettings, "data_dir", "data")
    output_dir: str | Path = with_default(RunSettings, "output_dir", "runs/release")
    publish_dir: str | Path = setting(".", "gets weights/, logs/ and assets/")
    name: str = setting("vit-t", "what the names begin with")
    weights: str | Path | None = setting(None, "a finished pretraining run, instead of a new one")
    epochs: int = with_default(PretrainSettings, "epochs", PretrainSettings.epochs)
    contrast_epochs: int | None = with_default(PretrainSettings, "contrast_epochs", None)
    finetune_epochs: int = setting(EPOCHS, "with all labels")
    scratch_epochs: int | None = setting(None, "with all labels (default: what costs as much in all)")
    few_images: int = setting(2_000_000, "seen in a run with few labels, unlabelled ones included")
    extra: Extra = setting((), f"WHERE is one of {', '.join(PLACES)}", append='"WHERE: FLAGS"')
    max_minutes: float | None = setting(None, "save and exit with code 75 then; the same command goes on")
    trainings: tuple[Literal["finetune", "unlabelled", "scratch"], ...] = setting(
        ("finetune", "unlabelled", "scratch"), "what is trained with labels"
    )
    stages: tuple[str, ...] = setting((), "these alone, such as pretrain, probe_all or finetune_10_seed1")
    seeds: tuple[int, ...] = setting((0,), "of fine-tuning and of the choice of labels")

    def extra_of(self, *places: str) -> dict:
        """What `extra` gives to these places, in their order."""
        assert isinstance(self.extra, dict)  # resolved
        return {name: value for place in places for name, value in self.extra[place].items()}


def run(settings: ReleaseSettings) -> dict:
    """All stages, then the cards and the evidence; gives what release.json holds."""
    require_distinct("seeds", settings.seeds)
    if "finetune" not in settings.trainings and not settings.stages:
        raise InputError(
            f"trainings {' '.join(settings.trainings)}: a release has a classifier, so add finetune, or give --stages"
        )
    settings = replace(settings, extra=parse_extra(settings.extra, PLACES))
    runs, started = Path(settings.output_dir), time.monotonic()
    mae, probe, tuned = name_folders(settings)

    def stage(command: ModuleType, kind: type[RunSettings], name: str, **own) -> dict:
        if settings.stages and name not in settings.stages:
            return {}
        common: dict = {"data": settings.data, "data_dir": settings.data_dir, "seed": settings.seeds[0]}
        if settings.max_minutes is not None and command in (pretrain, finetune):
            left = settings.max_minutes - (time.monotonic() - started) / 60
            common["pause_after_minutes"] = max(left, 0)
        return run_once(command, kind(**common | own | {"output_dir": runs / name}))

    pretrained = runs / "pretrain" if settings.weights is None else Path(settings.weights)
    if settings.weights is None:
        lengths = {"epochs": settings.epochs, "contrast_epochs": settings.contrast_epochs}
        stage(pretrain, PretrainSettings, "pretrain", **lengths | settings.extra_of("pretrain"))
    require_same_weights(pretrained, runs)
    halve(pretrained, mae)
    config = read_json(mae / "config.json")
    pictures = {"data_dir": settings.data_dir, "image_size": config["image_size"], "channels": config["in_channels"]}
    train, test = (load_dataset(settings.data, split, **pictures) for split in ("train", "test"))
    cost = count_cost(settings, mae, train, pretrained)

    planned = plan(settings, mae, len(train), cost["scratch_epochs"])
    if unknown := sorted({*settings.stages} - {"pretrain", "reconstruction", *planned}):
        raise InputError(f"stages {' '.join(unknown)}: choose among pretrain, reconstruction, {', '.join(planned)}")
    results = {"reconstruction": stage(evaluate, EvaluateSettings, "reconstruction", weights=mae, split="test")}
    for name, (command, own) in planned.items():
        kind = LinearProbeSettings if command is linear_probe else FinetuneSettings
        results[name] = stage(command, kind, name, **own)
    if settings.stages:
        return results

    for folder, source in ((probe, "probe_all"), (tuned, "finetune_all")):
        halve(runs / source, folder)
        name = f"evaluate_{folder.name}"
        results[folder.name] = stage(evaluate, EvaluateSettings, name, weights=folder, split="test")
    return publish(settings, results, cost, pretrained, train=train, test=test)


def plan(settings: ReleaseSettings, mae: Path, num_images: int, scratch_epochs: int) -> dict[str, tuple]:
    """The probes, then the trainings, the longest last. For each stage's name: the command and its own settings."""
    probes, trainings = {}, {}
    for labels, ratio in LABELS.items():
        some = {"weights": mae, "label_fraction": ratio}
        lengths, few = {"finetune": settings.finetune_epochs, "scratch": scratch_epochs}, {}
        if ratio < 1:
            few = FEW | {"batch_size": max(2, min(128, round(ratio * num_images) // 8 * 2))}
            epochs = max(1, round(settings.few_images / (ratio * num_images)))
            with_others = max(1, epochs // (1 + STARTS["unlabelled"]["unlabelled"]))
            lengths |= {"finetune": epochs, "unlabelled": with_others, "scratch": epochs}
        for seed in settings.seeds:
            is_first, suffix = seed == settings.seeds[0], name_seed(settings, seed)
            if is_first or ratio < 1:  # with all labels, nothing in a probe is drawn
                controls = {"controls": "all"} if ratio == 1 else {}
                probes[f"probe_{labels}{suffix}"] = linear_probe, some | controls | {"seed": seed}
            for start, epochs in lengths.items():
                if start in settings.trainings and (is_first or (start, ratio) != ("scratch", 1)):
                    own = some | few | {"epochs": epochs, "seed": seed} | settings.extra_of("finetune", labels)
                    own |= STARTS[start] | (settings.extra_of("unlabelled") if start == "unlabelled" else {})
                    trainings[f"{start}_{labels}{suffix}"] = finetune, own
    return probes | {name: trainings[name] for name in sorted(trainings, key="scratch_all".__eq__)}


def require_same_weights(pretrained: Path, runs: Path) -> None:
    """Raises InputError if the stages in `runs` are of other weights: their arguments hold only a folder's name."""
    file, found = runs / "weights.json", {"sha256": digest(read_tensors(pretrained / "model.safetensors"))}
    if file.exists() and read_json(file) != found:
        raise InputError(f"output_dir {runs} holds stages of other weights than {pretrained}: choose another folder")
    write_json(file, found)


def count_passes(run: Path) -> float:
    """Epochs of a pretraining run; an epoch on V views counts as V. With four views that is 2 % more than they compute:
    the decoder sees one of them, and more is visible in the last fifth.

    Raises InputError for one that went on from other weights: what these cost is not known.
    """
    arguments, results = read_json(run / "args.json")["arguments"], read_json(run / "results.json")
    if arguments.get("weights") is not None:
        raise InputError(f"weights {run} went on from {arguments['weights']}: give a pretraining from random weights")
    return results["epochs"] + (arguments | results)["contrast_epochs"] * (arguments["views"] - 1)


def count_cost(settings: ReleaseSettings, mae: Path, train: Dataset, pretrained: Path) -> dict:
    """Passes of pretraining, FLOPs of an image, and the epochs from scratch that equal pretraining and fine-tuning."""
    own = {"epochs": settings.finetune_epochs} | settings.extra_of("finetune", "all")
    recipe = FinetuneSettings(from_scratch=True, **own).settle_for(train)
    flops = count_flops(mae, patch_drop=recipe.patch_drop or 0.0)
    if recipe.final_epochs:  # on all patches
        whole, ratio = count_flops(mae, patch_drop=0.0)["fine-tuning"], recipe.final_epochs / settings.finetune_epochs
        flops["fine-tuning"] = round(flops["fine-tuning"] * (1 - ratio) + whole * ratio)
    passes = count_passes(pretrained)
    matched = round(settings.finetune_epochs + passes * flops["pretraining"] / flops["fine-tuning"])
    return {
        "pretraining_passes": passes, "scratch_epochs": settings.scratch_epochs or matched,
        "matched_scratch_epochs": matched, "flops_per_image": flops,
    }  # fmt: skip


def count_flops(mae: Path, *, patch_drop: float) -> dict[str, int]:
    """FLOPs of one image, forward and backward, in pretraining and in fine-tuning."""
    autoencoder = load_mae(mae)
    classifier = build_classifier(autoencoder, classes=["a", "b"], patch_drop=patch_drop).train()
    drops = find_drops(classifier)
    set_drops(drops, draw_drops(drops, Draws(0, 0, 1, torch.arange(1), "cpu")))
    images = torch.zeros(1, autoencoder.in_channels, *autoencoder.image_size, dtype=torch.uint8)
    return {
        "pretraining": reconstruction_flops(autoencoder),
        "fine-tuning": training_flops(lambda: classifier(images).sum()),
    }


if __name__ == "__main__":
    run_main(run, ReleaseSettings, description=__doc__)
