"""Everything behind the released weights: one command that stops, and goes on, as time allows.

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

Trainings leave most of a GPU idle: --stages does some of the stages alone, so that several processes may do theirs side
by side after pretraining. Without it, the same command does whatever is left.

--extra passes flags on to pretraining (pretrain) or to fine-tuning, the controls included (finetune: with any labels;
all, 10, 1: with that percentage of them; unlabelled: with unlabelled images beside them):

    --extra "pretrain: --base-lr 2e-3" --extra "finetune: --patch-drop 0.5" --extra "10: --epochs 32"
"""

import shutil
import sys
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch

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
from tinymae.data.batches import pick
from tinymae.data.datasets import Dataset
from tinymae.data.splits import few_labels
from tinymae.errors import InputError
from tinymae.evaluation import figures
from tinymae.evaluation.metrics import accuracy, map_dataset
from tinymae.evaluation.neighbours import knn_predict
from tinymae.files import digest, read_json, read_metrics, read_tensors, write_json
from tinymae.interop.load import load_autoencoder, load_classifier, load_mae
from tinymae.models.classifier import build_classifier
from tinymae.models.drops import draw_drops, find_drops, set_drops
from tinymae.models.flops import reconstruction_flops, training_flops
from tinymae.models.weights import halve
from tinymae.randomness import Draws
from tinymae.study.runs import Extra, parse_extra, require_distinct, run_once
from tinymae.study.tables import mean_and_std
from tinymae.training.cards import write_card

LABELS = {"all": 1.0, "10": 0.1, "1": 0.01}  # percent of each class's labels
PLACES: dict[str, type[RunSettings]] = {"pretrain": PretrainSettings}
PLACES |= dict.fromkeys(["finetune", *LABELS, "unlabelled"], FinetuneSettings)
KINDS = {
    "knn": "k-NN", "probe": "linear probe", "finetune": "fine-tuned", "unlabelled": "with unlabelled",
    "scratch": "from scratch",
}  # fmt: skip
STARTS: dict[str, dict] = {  # what each kind of training adds to the recipe
    "finetune": {},
    "unlabelled": {"unlabelled": 3, "mixup": 0.0, "cutmix": 0.0},
    "scratch": {"from_scratch": True},
}
FEW = {"recipe": "light", "trivial_augment": True, "random_erasing": 0.25}  # what it adds with few labels
NUM_FIXED = 1000  # of the test images, for tests that cannot look at all


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
    pretrainings = list_pretrainings(pretrained)
    config = read_json(mae / "config.json")
    pictures = {"data_dir": settings.data_dir, "image_size": config["image_size"], "channels": config["in_channels"]}
    train, test = (load_dataset(settings.data, split, **pictures) for split in ("train", "test"))
    cost = count_cost(settings, mae, train, pretrainings)

    planned = plan(settings, mae, len(train), cost["scratch_epochs"])
    if unknown := sorted({*settings.stages} - {"pretrain", "reconstruction", *planned}):
        raise InputError(f"stages {' '.join(unknown)}: choose among pretrain, reconstruction, {', '.join(planned)}")
    results = {"reconstruction": stage(evaluate, EvaluateSettings, "reconstruction", weights=mae, split="test")}
    for name, (command, own) in planned.items():
        kind = LinearProbeSettings if command is linear_probe else FinetuneSettings
        results[name] = stage(command, kind, name, **own)
    if settings.stages:
        return results

    first = pick(test, NUM_FIXED)
    scores = {name: results["probe_all"][name] for name in ("knn_test", "probe_test")}
    write_json(mae / "scores.json", scores | score_autoencoder(mae, train, first))
    for folder, source in ((probe, "probe_all"), (tuned, "finetune_all")):
        halve(runs / source, folder)
        scores = stage(evaluate, EvaluateSettings, f"evaluate_{folder.name}", weights=folder, split="test")
        fixed = accuracy(predict(folder, first), first.labels)
        write_json(folder / "scores.json", {"accuracy_test": scores["accuracy"], f"accuracy_first_{NUM_FIXED}": fixed})
        results[folder.name] = scores

    summary = cost | {"test": summarise(settings, results), "results": results}
    write_json(runs / "release.json", summary)
    write_cards(settings, summary, pretrainings)
    copy_evidence(settings, pretrainings)
    print_table(summary["test"])
    return summary


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


def name_folders(settings: ReleaseSettings) -> list[Path]:
    """Where the autoencoder, its linear probe and the fine-tuned classifier are released."""
    weights = Path(settings.publish_dir) / "weights"
    return [weights / f"{settings.name}-{end}" for end in ("mae", "linear-probe", "classifier-pretrained")]


def require_same_weights(pretrained: Path, runs: Path) -> None:
    """Raises InputError if the stages in `runs` are of other weights: their arguments hold only a folder's name."""
    file, found = runs / "weights.json", {"sha256": digest(read_tensors(pretrained / "model.safetensors"))}
    if file.exists() and read_json(file) != found:
        raise InputError(f"output_dir {runs} holds stages of other weights than {pretrained}: choose another folder")
    write_json(file, found)


def name_seed(settings: ReleaseSettings, seed: int) -> str:
    """What a stage's name ends in: nothing for the first seed."""
    return "" if seed == settings.seeds[0] else f"_seed{seed}"


def list_pretrainings(run: Path) -> list[Path]:
    """A pretraining run, then the one it went on from, and so on."""
    runs = [run]
    while before := read_json(runs[-1] / "args.json")["arguments"].get("weights"):
        if not (Path(before) / "results.json").exists():  # somebody else's model
            break
        runs.append(Path(before))
    return runs


def count_passes(run: Path) -> float:
    """Epochs of a pretraining run; an epoch on V views counts as V. With four views that is 2 % more than they compute:
    the decoder sees one of them, and more is visible in the last fifth.
    """
    arguments, results = read_json(run / "args.json")["arguments"], read_json(run / "results.json")
    return results["epochs"] + (arguments | results)["contrast_epochs"] * (arguments["views"] - 1)


def describe_target(arguments: dict, results: dict) -> str:
    """What a pretraining run learned from."""
    epochs, contrast = round(results["epochs"]), round((arguments | results)["contrast_epochs"])
    parts = {"reconstruction": epochs - contrast, f"contrast of {arguments['views']} views": contrast}
    return ", then ".join(f"{name}, epochs: {length}" for name, length in parts.items() if length)


def write_cards(settings: ReleaseSettings, summary: dict, pretrainings: list[Path]) -> None:
    """The README of each released folder."""
    runs, results = Path(settings.output_dir), summary["results"]
    mae, probe, tuned = name_folders(settings)
    features, untrained = results["probe_all"], results["probe_all"]["untrained"]
    test = summary["test"]
    mae_scores = {
        f"k-NN, test ({features['num_features']} features)": features["knn_test"],
        "linear probe, test": features["probe_test"],
        "k-NN, untrained encoder": untrained["knn_test"],
        "linear probe, untrained encoder": untrained["probe_test"],
    }
    for labels, (key, kind) in product(LABELS, KINDS.items()):
        if labels != "all" and (cell := test.get(f"{key}_{labels}")):
            mae_scores[f"{kind}, {labels} % of the labels{describe_spread(cell)}"] = cell["mean"]
    tuned_scores = {"accuracy, test": results[tuned.name]["accuracy"]}
    if test["finetune_all"]["n"] > 1:
        tuned_scores[f"the same recipe{describe_spread(test['finetune_all'])}"] = test["finetune_all"]["mean"]
    if "scratch_all" in results:
        percent = 100 * summary["scratch_epochs"] / summary["matched_scratch_epochs"]
        tuned_scores[
            f"the same model from scratch, {summary['scratch_epochs']} epochs ({percent:.0f} % of the computing of "
            "pretraining and fine-tuning together)"
        ] = results["scratch_all"]["accuracy_test"]
    origin = f"Made from [{mae.name}](../{mae.name}/README.md)."
    for folder, run, history, scores in (
        (mae, pretrainings[0], describe_history(pretrainings), mae_scores),
        (probe, runs / "probe_all", origin, {"accuracy, test": results[probe.name]["accuracy"]}),
        (tuned, runs / "finetune_all", origin, tuned_scores),
    ):
        remarks = f"{history}\nFloat16 on disk, measured from this file; loads as float32."
        write_card(folder, run=run, scores=scores, remarks=remarks, licence="MIT")


def describe_spread(cell: dict) -> str:
    """Of how many seeds a mean is, and their std; nothing for one seed."""
    return f", mean of {cell['n']} seeds (std {cell['std']:.2f})" if cell["n"] > 1 else ""


def describe_history(pretrainings: list[Path]) -> str:
    """Length, target and cost of each part of pretraining, in the order of time; a line for each."""
    lines = []
    for number, run in enumerate(reversed(pretrainings), 1):
        recorded, results = read_json(run / "args.json"), read_json(run / "results.json")
        cost = f"{results['minutes']:.0f} minutes on {recorded['device']}"
        lines.append(f"{number}. {describe_target(recorded['arguments'], results)}: {cost}")
    return "Pretraining:\n\n" + "\n".join(lines) + "\n"


def join_metrics(pretrainings: list[Path]) -> list[dict]:
    """The lines of metrics.jsonl of all parts of pretraining, as if they were one run."""
    rows, before = [], 0.0
    for run in reversed(pretrainings):
        rows += [row | {"epoch": before + row["epoch"]} for row in read_metrics(run / "metrics.jsonl")]
        before = rows[-1]["epoch"]
    return rows


def summarise(settings: ReleaseSettings, results: dict[str, dict]) -> dict[str, dict]:
    """Test accuracies over the seeds: for each kind of training and labels n, mean and standard deviation."""
    scores = {"knn": ("probe", "knn_test"), "probe": ("probe", "probe_test")}
    scores |= {start: (start, "accuracy_test") for start in STARTS}
    found = {}
    for (kind, (stage, score)), labels in product(scores.items(), LABELS):
        names = [f"{stage}_{labels}{name_seed(settings, seed)}" for seed in settings.seeds]
        values = [results[name][score] for name in names if name in results]
        if not values:
            continue  # with all labels none is left that has no label
        mean, std = mean_and_std(values)
        found[f"{kind}_{labels}"] = {"n": len(values), "mean": mean, "std": std}
    return found


def count_cost(settings: ReleaseSettings, mae: Path, train: Dataset, pretrainings: list[Path]) -> dict:
    """Passes of pretraining, FLOPs of an image, and the epochs from scratch that equal pretraining and fine-tuning."""
    own = {"epochs": settings.finetune_epochs} | settings.extra_of("finetune", "all")
    recipe = FinetuneSettings(from_scratch=True, **own).settle_for(train)
    flops = count_flops(mae, patch_drop=recipe.patch_drop or 0.0)
    if recipe.final_epochs:  # on all patches
        whole, ratio = count_flops(mae, patch_drop=0.0)["fine-tuning"], recipe.final_epochs / settings.finetune_epochs
        flops["fine-tuning"] = round(flops["fine-tuning"] * (1 - ratio) + whole * ratio)
    passes = sum(count_passes(run) for run in pretrainings)
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


@torch.no_grad()
def score_autoencoder(folder: Path, train: Dataset, first: Dataset) -> dict[str, float]:
    """What a test can measure again in seconds, on the CPU: the error over hidden pixels of a few fixed images, and
    their k-NN accuracy by 1 % of the training labels."""
    model = load_autoencoder(folder)
    known = train.subset(few_labels(train.labels, 0.01, seed=0))
    shown = model.reconstruct(first.images, generator=torch.Generator().manual_seed(0))
    features = [map_dataset(model.encode, split, device="cpu") for split in (known, first)]
    classes = knn_predict(features[0], known.labels, features[1], num_classes=len(train.classes))
    return {
        f"hidden_mse_first_{NUM_FIXED}": float(shown.error.mean()),
        f"knn_1_percent_first_{NUM_FIXED}": accuracy(classes, first.labels),
    }


@torch.no_grad()
def predict(folder: Path, dataset: Dataset) -> torch.Tensor:
    """Classes (N,) of a data set's images by a released classifier, in float32 on the CPU."""
    return map_dataset(load_classifier(folder), dataset, device="cpu").argmax(dim=1)


def copy_evidence(settings: ReleaseSettings, pretrainings: list[Path]) -> None:
    """The logs behind the released weights, their control and few labels, and the images, into the repository."""
    runs, root, data = Path(settings.output_dir), Path(settings.publish_dir), Path(settings.data).name
    figures.pretraining_curves(join_metrics(pretrainings), runs / "curves.png", f"pretraining on {data}")
    sources = {
        "linear-probe": runs / "probe_all", "classifier-pretrained": runs / "finetune_all",
        "scratch": runs / "scratch_all", "mae": pretrainings[0],
    }  # fmt: skip
    sources |= {f"mae-part-{number}": run for number, run in enumerate(reversed(pretrainings[1:]), 1)}
    for start, labels in product(STARTS, LABELS):
        if labels != "all":
            sources[f"{start}-{labels}-percent"] = runs / f"{start}_{labels}"
    for name, source in sources.items():
        if not source.exists():  # of a training that was left out
            continue
        logs = root / "logs" / f"{settings.name}-{name}"
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        for file in (*source.glob("*.json*"), *source.glob("tensorboard/events.*")):
            if file.name not in ("config.json", "stage.json"):
                shutil.copy(file, logs)
    shutil.copy(runs / "release.json", root / "logs" / f"{settings.name}-release.json")
    (root / "assets").mkdir(exist_ok=True)
    looked_at = runs / f"evaluate_{settings.name}-classifier-pretrained"
    pictures = {
        "reconstructions.png": runs / "reconstruction", "curves.png": runs,
        "confusion_matrix.png": looked_at, "per_class.csv": looked_at,
    }  # fmt: skip
    for name, folder in pictures.items():
        file = folder / name
        shutil.copy(file, root / "assets" / f"{file.stem}_{data}{file.suffix}")
    shutil.copy(runs / "finetune_all" / "curves.png", root / "assets" / f"finetune_curves_{data}.png")


def print_table(found: dict[str, dict]) -> None:
    """Test accuracies by the ratio of labels, with the standard deviation where there are several seeds."""
    print(f"\n{'test accuracy, %':16}" + "".join(f"{name:>20}" for name in KINDS.values()))
    for labels in LABELS:
        cells = [found.get(f"{kind}_{labels}") for kind in KINDS]
        texts = [
            "-" if c is None else f"{c['mean']:.2f}" + (f" ± {c['std']:.2f} (n={c['n']})" if c["n"] > 1 else "")
            for c in cells
        ]
        print(f"{labels + ('' if labels == 'all' else ' %') + ' labels':16}" + "".join(f"{text:>20}" for text in texts))


if __name__ == "__main__":
    run_main(run, ReleaseSettings, sys.argv[1:], description=__doc__)
