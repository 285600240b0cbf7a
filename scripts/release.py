"""Everything behind the released weights: one command that stops, and goes on, as time allows.

    python scripts/release.py --output-dir runs/release                        # the recipe, for a GPU
    python scripts/release.py --output-dir runs/release --max-minutes 9        # in slots: exit code 75, repeat it
    python scripts/release.py --output-dir runs/release --pretrain-epochs 30 --finetune-epochs 8 --few-images 150_000

Pretrains, writes the weights in half precision, and takes every figure from that file: probes with all, 10 % and 1 % of
the labels, fine-tuning likewise. The controls start from random weights: with all labels they get as much computing as
pretraining and fine-tuning together, with few labels the same number of steps. At the end weights/, logs/ and assets/
are written, from what was measured.
"""

import argparse
import shutil
import time
from itertools import product
from pathlib import Path

import evaluate
import finetune
import linear_probe
import pretrain
import torch
from torch.utils.flop_counter import FlopCounterMode

from tinymae import evaluate as scoring
from tinymae import load_dataset
from tinymae.cards import write_card
from tinymae.data import pick
from tinymae.files import read_json, write_json
from tinymae.randomness import Draws, draw_drops, use_sample_patch_drop
from tinymae.runs import run_script, run_stage
from tinymae.train import choose_attention
from tinymae.weights import build_classifier, halve, load_autoencoder, load_classifier, save_head

PRETRAIN = ["--optimizer", "muon"]
BATCH_SIZE = 512  # in fine-tuning; with few labels a quarter of them, up to 128
LABELS = {"all": 1.0, "10": 0.1, "1": 0.01}  # percent of each class's labels
NUM_FIXED = 1000  # of the test pictures, for tests that cannot look at all


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="(default: %(default)s)")
    parser.add_argument("--data-dir", default="data", help="where named data sets are, or go (default: %(default)s)")
    parser.add_argument("--output-dir", default="runs/release", help="folder of the runs (default: %(default)s)")
    parser.add_argument("--publish-dir", default=".", help="gets weights/, logs/ and assets/ (default: %(default)s)")
    parser.add_argument("--name", default="vit-t", help="what the names begin with (default: %(default)s)")
    parser.add_argument("--weights", help="a finished pretraining run, instead of a new one")
    parser.add_argument("--pretrain-epochs", type=int, default=800, help="(default: %(default)s)")
    parser.add_argument("--finetune-epochs", type=int, default=100, help="with all labels (default: %(default)s)")
    parser.add_argument("--few-images", type=int, default=1_000_000, help="seen in a run with few labels")
    parser.add_argument("--pretrain-flags", default="", help="more flags for pretrain.py, as one string")
    parser.add_argument(
        "--finetune-flags", default="", help="more flags for finetune.py with all labels, as one string"
    )
    parser.add_argument("--few-flags", default="", help="more flags for finetune.py with few labels, as one string")
    parser.add_argument("--max-minutes", type=float, help="save and exit with code 75 then; the same command goes on")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    return parser


def main(args: argparse.Namespace) -> dict:
    runs, weights, started = Path(args.output_dir), Path(args.publish_dir) / "weights", time.monotonic()

    def stage(script, name: str, *flags) -> dict:
        common = ["--data", args.data, "--data-dir", args.data_dir, "--seed", args.seed]
        if args.max_minutes is not None and script in (pretrain, finetune):
            left = args.max_minutes - (time.monotonic() - started) / 60
            common += ["--pause-after-minutes", max(left, 0)]
        return run_stage(script, runs / name, *common, *flags)

    pretrained = Path(args.weights) if args.weights else runs / "pretrain"
    if not args.weights:
        stage(pretrain, "pretrain", "--epochs", args.pretrain_epochs, *PRETRAIN, *args.pretrain_flags.split())
    mae = weights / f"{args.name}-mae"
    halve(pretrained, mae)
    flops = count_flops(mae, patch_drop=finetune.parse().parse_args(args.finetune_flags.split()).patch_drop)
    epochs = read_json(pretrained / "results.json")["epochs"]
    matched = round(args.finetune_epochs + epochs * flops["pretraining"] / flops["fine-tuning"])
    num_train = len(load_dataset(args.data, "train", data_dir=args.data_dir))

    results = {"reconstruction": stage(evaluate, "reconstruction", "--weights", mae)}
    trainings = {}
    for labels, share in LABELS.items():
        some = ["--weights", mae, "--label-fraction", share]
        controls = ["--controls"] if share == 1 else []
        results[f"probe_{labels}"] = stage(linear_probe, f"probe_{labels}", *some, *controls)
        few = round(args.few_images / (share * num_train))
        batch_size = BATCH_SIZE if share == 1 else max(2, min(128, round(share * num_train) // 8 * 2))
        lengths = (args.finetune_epochs, matched) if share == 1 else (few, few)
        more = (args.finetune_flags if share == 1 else args.few_flags).split()
        for start, length in zip(("finetune", "scratch"), lengths, strict=True):
            flags = [*some, "--batch-size", batch_size, "--epochs", length, *more]
            flags += ["--from-scratch"] if start == "scratch" else []
            trainings[f"{start}_{labels}"] = flags
    for name in sorted(trainings, key="scratch_all".__eq__):  # the longest last
        results[name] = stage(finetune, name, *trainings[name])

    probe, tuned = weights / f"{args.name}-linear-probe", weights / f"{args.name}-classifier-pretrained"
    fitted = load_classifier(runs / "probe_all")
    save_head(fitted.head, probe, autoencoder=mae, classes=fitted.classes)
    halve(runs / "finetune_all", tuned)
    first = pick(load_dataset(args.data, "test", data_dir=args.data_dir), NUM_FIXED)
    for folder in (probe, tuned):
        scores = stage(evaluate, f"evaluate_{folder.name}", "--weights", folder)
        fixed = scoring.accuracy(predict(folder, first), first.labels)
        write_json(folder / "scores.json", {"accuracy_test": scores["accuracy"], f"accuracy_first_{NUM_FIXED}": fixed})
        results[folder.name] = scores
    summary = {"epochs": epochs, "scratch_epochs": matched, "flops_per_image": flops, "results": results}
    write_json(runs / "release.json", summary)
    cards = {
        mae: (pretrained, {"k-NN, test": "knn_test", "linear probe, test": "probe_test"}, results["probe_all"]),
        probe: (runs / "probe_all", {"accuracy, test": "accuracy"}, results[probe.name]),
        tuned: (runs / "finetune_all", {"accuracy, test": "accuracy"}, results[tuned.name]),
    }
    for folder, (run, names, found) in cards.items():
        scores = {name: found[key] for name, key in names.items()}
        write_card(
            folder, run=run, scores=scores, remarks="Float16 on disk, measured from this file; loads as float32."
        )
    copy_evidence(args, runs, {mae.name: pretrained, probe.name: runs / "probe_all", tuned.name: runs / "finetune_all"})
    print_table(results)
    return summary


def count_flops(mae: Path, *, patch_drop: float) -> dict[str, int]:
    """FLOPs of one image, forward and backward, in pretraining and in fine-tuning."""
    autoencoder = load_autoencoder(mae)
    choose_attention(autoencoder, "cpu")  # the counter does not see into the fused kernel
    classifier = build_classifier(autoencoder, classes=["a", "b"])
    use_sample_patch_drop(classifier.vit, patch_drop).train()
    draw_drops(classifier, Draws(0, 0, 1, torch.arange(1), "cpu"))
    images = torch.zeros(1, autoencoder.in_channels, *autoencoder.image_size)
    counts = {}
    losses = {"pretraining": lambda: autoencoder(images).loss, "fine-tuning": lambda: classifier(images).sum()}
    for name, loss in losses.items():
        with FlopCounterMode(display=False) as counter:
            loss().backward()
        counts[name] = counter.get_total_flops()
    return counts


@torch.no_grad()
def predict(folder: Path, dataset) -> torch.Tensor:
    """Classes (N,) of a data set's pictures by a released classifier, in float32 on the CPU."""
    return scoring.map_dataset(load_classifier(folder), dataset, device="cpu").argmax(dim=1)


def copy_evidence(args: argparse.Namespace, runs: Path, sources: dict[str, Path]) -> None:
    """The logs behind the released weights, their control and few labels, and the pictures, into the repository."""
    root = Path(args.publish_dir)
    few = {
        f"{args.name}-{start}-{labels}-percent": runs / f"{start}_{labels}"
        for start, labels in product(("finetune", "scratch"), LABELS)
        if labels != "all"
    }
    for name, source in (sources | {f"{args.name}-scratch": runs / "scratch_all"} | few).items():
        logs = root / "logs" / name
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        for file in (*source.glob("*.json*"), *source.glob("tensorboard/events.*")):
            if file.name not in ("config.json", "stage.json"):
                shutil.copy(file, logs)
    shutil.copy(runs / "release.json", root / "logs" / f"{args.name}-release.json")
    (root / "assets").mkdir(exist_ok=True)
    looked_at = runs / f"evaluate_{args.name}-classifier-pretrained"
    pictures = {
        "reconstructions.png": runs / "reconstruction", "curves.png": sources[f"{args.name}-mae"],
        "confusion_matrix.png": looked_at, "per_class.csv": looked_at,
    }  # fmt: skip
    for name, folder in pictures.items():
        file = folder / name
        shutil.copy(file, root / "assets" / f"{file.stem}_{args.data}{file.suffix}")
    shutil.copy(runs / "finetune_all" / "curves.png", root / "assets" / f"finetune_curves_{args.data}.png")


def print_table(results: dict[str, dict]) -> None:
    """Test accuracies by the share of labels."""
    columns = {"k-NN": "knn_test", "linear probe": "probe_test"}
    print(f"\n{'test accuracy, %':16}" + "".join(f"{name:>14}" for name in (*columns, "fine-tuned", "from scratch")))
    for labels in LABELS:
        probe = results[f"probe_{labels}"]
        row = [probe[key] for key in columns.values()]
        row += [results[f"{start}_{labels}"]["accuracy_test"] for start in ("finetune", "scratch")]
        print(
            f"{labels + ('' if labels == 'all' else ' %') + ' labels':16}" + "".join(f"{value:>14.2f}" for value in row)
        )


if __name__ == "__main__":
    run_script(main, parse())
