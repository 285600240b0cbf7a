"""What a release writes into the repository from its stages: weights/ with their cards, logs/ and assets/."""

import shutil
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tinymae.commands.finetune import FinetuneSettings
from tinymae.commands.linear_probe import LinearProbeSettings
from tinymae.commands.pretrain import PretrainSettings
from tinymae.data.batches import pick
from tinymae.data.datasets import Dataset
from tinymae.data.splits import few_labels
from tinymae.evaluation.metrics import accuracy, map_dataset
from tinymae.evaluation.neighbours import knn_predict
from tinymae.files import read_json, read_tensors, write_json, write_tensors
from tinymae.interop.load import load_autoencoder, load_classifier
from tinymae.models.filling import find_weights
from tinymae.study.tables import mean_and_std
from tinymae.training.cards import write_card

if TYPE_CHECKING:
    from release import ReleaseSettings

LABELS = {"all": 1.0, "10": 0.1, "1": 0.01}  # percent of each class's labels
KINDS = {
    "knn": "k-NN", "probe": "linear probe", "finetune": "fine-tuned", "unlabelled": "with unlabelled",
    "scratch": "from scratch",
}  # fmt: skip
TRAININGS = ("finetune", "unlabelled", "scratch")
NUM_FIXED = 1000  # of the test images, for tests that cannot look at all


def publish(
    settings: "ReleaseSettings", results: dict[str, dict], cost: dict, pretrained: Path, *, train: Dataset,
    test: Dataset,
) -> dict:  # fmt: skip
    """Write all of it, and print the table; gives what release.json holds. `results` are those of the stages."""
    runs, first = Path(settings.output_dir), pick(test, NUM_FIXED)
    mae, *classifiers = name_folders(settings)
    scores = {name: results["probe_all"][name] for name in ("knn_test", "probe_test")}
    write_json(mae / "scores.json", scores | score_autoencoder(mae, train, first))
    for folder in classifiers:
        fixed = accuracy(predict(folder, first), first.labels)
        scores = {"accuracy_test": results[folder.name]["accuracy"], f"accuracy_of_{NUM_FIXED}": fixed}
        write_json(folder / "scores.json", scores)

    summary = cost | {"test": summarise(settings, results), "results": results}
    write_json(runs / "release.json", summary)
    write_cards(settings, summary, pretrained)
    copy_evidence(settings, pretrained)
    print_table(summary["test"])
    return summary


def name_folders(settings: "ReleaseSettings") -> list[Path]:
    """Where the autoencoder, its linear probe and the fine-tuned classifier are released."""
    weights = Path(settings.publish_dir) / "weights"
    return [weights / f"{settings.name}-{end}" for end in ("mae", "linear-probe", "classifier-pretrained")]


def name_seed(settings: "ReleaseSettings", seed: int) -> str:
    """What a stage's name ends in: nothing for the first seed."""
    return "" if seed == settings.seeds[0] else f"_seed{seed}"


def halve(source: str | Path, folder: str | Path) -> None:
    """Write the weights of one folder into another in float16, which loads as float32, with the same config.json.

    Raises InputError if `source` holds no weights.
    """
    source, folder = find_weights(source), Path(folder)
    state = read_tensors(source / "model.safetensors")
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    write_tensors(halved, folder / "model.safetensors")
    write_json(folder / "config.json", read_json(source / "config.json"))


def write_cards(settings: "ReleaseSettings", summary: dict, pretrained: Path) -> None:
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
    for folder, run, history, scores, settings_class in (
        (mae, pretrained, describe_history(pretrained), mae_scores, PretrainSettings),
        (probe, runs / "probe_all", origin, {"accuracy, test": results[probe.name]["accuracy"]}, LinearProbeSettings),
        (tuned, runs / "finetune_all", origin, tuned_scores, FinetuneSettings),
    ):
        remarks = f"{history}\nFloat16 on disk, measured from this file in float32, as which it loads."
        write_card(folder, run=run, scores=scores, remarks=remarks, licence="MIT", defaults=settings_class.defaults())


def describe_spread(cell: dict) -> str:
    """Of how many seeds a mean is, and their std; nothing for one seed."""
    return f", mean of {cell['n']} seeds (std {cell['std']:.2f})" if cell["n"] > 1 else ""


def describe_history(pretrained: Path) -> str:
    """Length, target and cost of pretraining."""
    recorded, results = read_json(pretrained / "args.json"), read_json(pretrained / "results.json")
    arguments = recorded["arguments"]
    epochs, contrast = round(results["epochs"]), round((arguments | results)["contrast_epochs"])
    parts = {"reconstruction": epochs - contrast, f"contrast of {arguments['views']} views": contrast}
    target = ", then ".join(f"{name}, epochs: {length}" for name, length in parts.items() if length)
    return f"Pretraining: {target}; {results['minutes']:.0f} minutes on {recorded['device']}\n"


def summarise(settings: "ReleaseSettings", results: dict[str, dict]) -> dict[str, dict]:
    """Test accuracies over the seeds: for each kind of training and labels n, mean and standard deviation."""
    scores = {"knn": ("probe", "knn_test"), "probe": ("probe", "probe_test")}
    scores |= {start: (start, "accuracy_test") for start in TRAININGS}
    found = {}
    for (kind, (stage, score)), labels in product(scores.items(), LABELS):
        names = [f"{stage}_{labels}{name_seed(settings, seed)}" for seed in settings.seeds]
        values = [results[name][score] for name in names if name in results]
        if not values:
            continue  # with all labels none is left that has no label
        mean, std = mean_and_std(values)
        found[f"{kind}_{labels}"] = {"n": len(values), "mean": mean, "std": std}
    return found


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
        f"hidden_mse_of_{NUM_FIXED}": float(shown.error.mean()),
        f"knn_1_percent_of_{NUM_FIXED}": accuracy(classes, first.labels),
    }


@torch.no_grad()
def predict(folder: Path, dataset: Dataset) -> torch.Tensor:
    """Classes (N,) of a data set's images by a released classifier, in float32 on the CPU."""
    return map_dataset(load_classifier(folder), dataset, device="cpu").argmax(dim=1)


def copy_evidence(settings: "ReleaseSettings", pretrained: Path) -> None:
    """The logs behind the released weights, their control and few labels, and the images, into the repository."""
    runs, root, data = Path(settings.output_dir), Path(settings.publish_dir), Path(settings.data).name
    sources = {
        "linear-probe": runs / "probe_all", "classifier-pretrained": runs / "finetune_all",
        "scratch": runs / "scratch_all", "mae": pretrained,
    }  # fmt: skip
    for start, labels in product(TRAININGS, LABELS):
        if labels != "all":
            sources[f"{start}-{labels}-percent"] = runs / f"{start}_{labels}"
    for name, source in sources.items():
        if not source.exists():  # of a training that was left out
            continue
        logs = root / "logs" / f"{settings.name}-{name}"
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        for file in (*source.glob("*.json*"), *source.glob("tensorboard/events.*")):
            if file.name != "config.json":
                shutil.copy(file, logs)
    shutil.copy(runs / "release.json", root / "logs" / f"{settings.name}-release.json")
    (root / "assets").mkdir(exist_ok=True)
    looked_at = runs / f"evaluate_{settings.name}-classifier-pretrained"
    pictures = {
        "reconstructions.png": runs / "reconstruction", "curves.png": pretrained,
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
