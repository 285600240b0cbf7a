"""Everything behind the released weights: one command that stops, and goes on, as time allows.

    python scripts/release.py --output-dir runs/release                        # the recipe, for a GPU
    python scripts/release.py --output-dir runs/release --max-minutes 9        # in slots: exit code 75, repeat it
    python scripts/release.py --output-dir runs/release --pretrain-epochs 30 --finetune-epochs 8 --few-images 150_000

Pretrains, first by reconstruction alone, then on two contrasted views as well; writes the weights in half precision,
and takes every figure from that file: probes with all, 10 % and 1 % of the labels, fine-tuning likewise, for each
of the seeds. The controls start from random weights: with all labels they get as much computing as pretraining and
fine-tuning together, once; with few labels the same number of steps. At the end weights/, logs/ and assets/ are
written, from what was measured. The weights and pictures are those of the first seed.

--extra passes flags on to pretrain.py (pretrain: the first part, contrast: the second) or to finetune.py, the controls
included (finetune: with any labels; all, 10, 1: with that percentage of them):

    --extra "pretrain: --base-lr 2e-3" --extra "finetune: --patch-drop 0.5" --extra "10: --no-trivial-augment"
"""

import argparse
import shutil
import statistics
import time
from itertools import product
from pathlib import Path

import evaluate
import finetune
import linear_probe
import pretrain
import torch
from torch.utils.flop_counter import FlopCounterMode

from tinymae import InputError, figures, load_dataset
from tinymae import evaluate as scoring
from tinymae.commands.cli import run_script
from tinymae.data.batches import pick
from tinymae.data.datasets import Dataset
from tinymae.data.splits import few_labels
from tinymae.files import digest, read_json, read_metrics, read_tensors, write_json
from tinymae.interop.load import load_autoencoder, load_classifier, save_head
from tinymae.models.classifier import build_classifier
from tinymae.models.drops import draw_drops, use_sample_patch_drop
from tinymae.models.vit import choose_attention
from tinymae.models.weights import halve
from tinymae.randomness import Draws
from tinymae.study.stages import check_extra, extra_flags, require_distinct, run_stage
from tinymae.training.cards import write_card

PRETRAIN = ["--optimizer", "muon"]
CONTRAST = [*PRETRAIN, "--contrast-weight", 0.5, "--crop", "resized", "--color-jitter", 0.5, "--base-lr", 7.5e-4]
BATCH_SIZE = 512  # in fine-tuning; with few labels a quarter of them, up to 128
LABELS = {"all": 1.0, "10": 0.1, "1": 0.01}  # percent of each class's labels
PLACES = {"pretrain": pretrain, "contrast": pretrain, **dict.fromkeys(["finetune", *LABELS], finetune)}  # of --extra
KINDS = {"knn": "k-NN", "probe": "linear probe", "finetune": "fine-tuned", "scratch": "from scratch"}
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
    parser.add_argument(
        "--contrast-epochs", type=int, default=200, help="of pretraining after that; 0 for none (default: %(default)s)"
    )
    parser.add_argument("--finetune-epochs", type=int, default=100, help="with all labels (default: %(default)s)")
    parser.add_argument("--scratch-epochs", type=int, help="with all labels (default: what costs as much in all)")
    parser.add_argument("--few-images", type=int, default=1_000_000, help="seen in a run with few labels")
    parser.add_argument(
        "--extra", action="append", default=[], metavar='"WHERE: FLAGS"', help=f"WHERE is one of {', '.join(PLACES)}"
    )
    parser.add_argument("--max-minutes", type=float, help="save and exit with code 75 then; the same command goes on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of fine-tuning and of the choice of labels")
    return parser


def main(args: argparse.Namespace) -> dict:
    check_extra(args, PLACES)
    require_distinct("seeds", args.seeds)
    runs, started = Path(args.output_dir), time.monotonic()
    mae, probe, tuned = name_folders(args)

    def stage(script, name: str, *flags, seed: int = args.seeds[0]) -> dict:
        common = ["--data", args.data, "--data-dir", args.data_dir, "--seed", seed]
        if args.max_minutes is not None and script in (pretrain, finetune):
            left = args.max_minutes - (time.monotonic() - started) / 60
            common += ["--pause-after-minutes", max(left, 0)]
        return run_stage(script, runs / name, *common, *flags)

    pretrained = Path(args.weights) if args.weights else runs / "pretrain"
    if not args.weights:
        stage(pretrain, "pretrain", "--epochs", args.pretrain_epochs, *PRETRAIN, *extra_flags(args, "pretrain"))
        if args.contrast_epochs:
            more = ["--weights", pretrained, "--epochs", args.contrast_epochs, *CONTRAST]
            stage(pretrain, "contrast", *more, *extra_flags(args, "contrast"))
            pretrained = runs / "contrast"
    require_same_weights(pretrained, runs)
    halve(pretrained, mae)
    pretrainings = list_pretrainings(pretrained)
    cost = count_cost(args, mae, pretrainings)
    config = read_json(mae / "config.json")
    pictures = {"data_dir": args.data_dir, "image_size": config["image_size"], "channels": config["in_channels"]}
    train, test = (load_dataset(args.data, split, **pictures) for split in ("train", "test"))

    results = {"reconstruction": stage(evaluate, "reconstruction", "--weights", mae)}
    for name, (script, seed, flags) in plan(args, mae, len(train), cost["scratch_epochs"]).items():
        results[name] = stage(script, name, *flags, seed=seed)

    first = pick(test, NUM_FIXED)
    scores = {name: results["probe_all"][name] for name in ("knn_test", "probe_test")}
    write_json(mae / "scores.json", scores | score_autoencoder(mae, train, first))
    fitted = load_classifier(runs / "probe_all")
    save_head(fitted.head, probe, autoencoder=mae, classes=fitted.classes)
    halve(runs / "finetune_all", tuned)
    for folder in (probe, tuned):
        scores = stage(evaluate, f"evaluate_{folder.name}", "--weights", folder)
        fixed = scoring.accuracy(predict(folder, first), first.labels)
        write_json(folder / "scores.json", {"accuracy_test": scores["accuracy"], f"accuracy_first_{NUM_FIXED}": fixed})
        results[folder.name] = scores

    summary = cost | {"test": summarise(args, results), "results": results}
    write_json(runs / "release.json", summary)
    write_cards(args, summary, pretrainings)
    copy_evidence(args, pretrainings)
    print_table(summary["test"])
    return summary


def plan(args: argparse.Namespace, mae: Path, num_images: int, scratch_epochs: int) -> dict[str, tuple]:
    """The probes, then the trainings, the longest last. For each stage's name: script, seed and flags."""
    probes, trainings = {}, {}
    for labels, share in LABELS.items():
        some = ["--weights", mae, "--label-fraction", share]
        if share == 1:
            batch_size = BATCH_SIZE
            lengths = {"finetune": args.finetune_epochs, "scratch": scratch_epochs}
        else:
            batch_size = max(2, min(128, round(share * num_images) // 8 * 2))
            lengths = dict.fromkeys(("finetune", "scratch"), max(1, round(args.few_images / (share * num_images))))
        for seed in args.seeds:
            is_first, suffix = seed == args.seeds[0], name_seed(args, seed)
            if is_first or share < 1:  # with all labels, nothing in a probe is drawn
                probes[f"probe_{labels}{suffix}"] = linear_probe, seed, [*some, *["--controls"] * (share == 1)]
            for start, epochs in lengths.items():
                if is_first or (start, share) != ("scratch", 1):
                    flags = [*some, "--batch-size", batch_size, "--epochs", epochs]
                    flags += extra_flags(args, "finetune", labels)
                    flags += ["--from-scratch"] if start == "scratch" else []
                    trainings[f"{start}_{labels}{suffix}"] = finetune, seed, flags
    return probes | {name: trainings[name] for name in sorted(trainings, key="scratch_all".__eq__)}


def name_folders(args: argparse.Namespace) -> list[Path]:
    """Where the autoencoder, its linear probe and the fine-tuned classifier are released."""
    weights = Path(args.publish_dir) / "weights"
    return [weights / f"{args.name}-{end}" for end in ("mae", "linear-probe", "classifier-pretrained")]


def require_same_weights(pretrained: Path, runs: Path) -> None:
    """Raises InputError if the stages in `runs` are of other weights: their arguments tell only a folder's name."""
    file, found = runs / "weights.json", {"sha256": digest(read_tensors(pretrained / "model.safetensors"))}
    if file.exists() and read_json(file) != found:
        raise InputError(f"output_dir {runs} holds stages of other weights than {pretrained}: choose another folder")
    write_json(file, found)


def name_seed(args: argparse.Namespace, seed: int) -> str:
    """What a stage's name ends in: nothing for the first seed."""
    return "" if seed == args.seeds[0] else f"_seed{seed}"


def list_pretrainings(run: Path) -> list[Path]:
    """A pretraining run, then the one it went on from, and so on."""
    runs = [run]
    while before := read_json(runs[-1] / "args.json")["arguments"].get("weights"):
        if not (Path(before) / "results.json").exists():  # somebody else's model
            break
        runs.append(Path(before))
    return runs


def count_passes(run: Path) -> float:
    """Epochs of a pretraining run; an epoch on two views counts as two (the projector's one percent is left out)."""
    views = 2 if read_json(run / "args.json")["arguments"].get("contrast_weight") else 1
    return views * read_json(run / "results.json")["epochs"]


def write_cards(args: argparse.Namespace, summary: dict, pretrainings: list[Path]) -> None:
    """The README of each released folder."""
    runs, results = Path(args.output_dir), summary["results"]
    mae, probe, tuned = name_folders(args)
    features, untrained = results["probe_all"], results["probe_all"]["untrained"]
    share = 100 * summary["scratch_epochs"] / summary["matched_scratch_epochs"]
    test = summary["test"]
    mae_scores = {
        f"k-NN, test ({features['num_features']} features)": features["knn_test"],
        "linear probe, test": features["probe_test"],
        "k-NN, untrained encoder": untrained["knn_test"],
        "linear probe, untrained encoder": untrained["probe_test"],
    }
    for labels, (key, kind) in product(LABELS, KINDS.items()):
        if labels != "all":
            cell = test[f"{key}_{labels}"]
            mae_scores[f"{kind}, {labels} % of the labels{tell_spread(cell)}"] = cell["mean"]
    tuned_scores = {"accuracy, test": results[tuned.name]["accuracy"]}
    if test["finetune_all"]["n"] > 1:
        tuned_scores[f"the same recipe{tell_spread(test['finetune_all'])}"] = test["finetune_all"]["mean"]
    tuned_scores[
        f"the same model from scratch, {summary['scratch_epochs']} epochs ({share:.0f} % of the computing of "
        "pretraining and fine-tuning together)"
    ] = results["scratch_all"]["accuracy_test"]
    origin = f"Made from [{mae.name}](../{mae.name}/README.md)."
    for folder, run, history, scores in (
        (mae, pretrainings[0], tell_history(pretrainings), mae_scores),
        (probe, runs / "probe_all", origin, {"accuracy, test": results[probe.name]["accuracy"]}),
        (tuned, runs / "finetune_all", origin, tuned_scores),
    ):
        remarks = f"{history}\nFloat16 on disk, measured from this file; loads as float32."
        write_card(folder, run=run, scores=scores, remarks=remarks, licence="MIT")


def tell_spread(cell: dict) -> str:
    """Of how many seeds a mean is, and their standard deviation; nothing for one seed."""
    return f", mean of {cell['n']} seeds (deviation {cell['std']:.2f})" if cell["n"] > 1 else ""


def tell_history(pretrainings: list[Path]) -> str:
    """Length, target and cost of each part of pretraining, in the order of time; a line for each."""
    lines = []
    for number, run in enumerate(reversed(pretrainings), 1):
        recorded, results = read_json(run / "args.json"), read_json(run / "results.json")
        target = "contrasted views" if recorded["arguments"].get("contrast_weight") else "reconstruction"
        length = f"{results['epochs']:g} epochs, {results['minutes']:.0f} minutes on {recorded['device']}"
        lines.append(f"{number}. {target}: {length}")
    return "Pretraining:\n\n" + "\n".join(lines) + "\n"


def join_metrics(pretrainings: list[Path]) -> list[dict]:
    """The lines of metrics.jsonl of all parts of pretraining, as if they were one run."""
    rows, before = [], 0.0
    for run in reversed(pretrainings):
        for row in read_metrics(run / "metrics.jsonl"):
            if "loss" in row:
                row.setdefault("reconstruction_loss", row["loss"])
            rows.append(row | {"epoch": before + row["epoch"]})
        before = rows[-1]["epoch"]
    return rows


def summarise(args: argparse.Namespace, results: dict[str, dict]) -> dict[str, dict]:
    """Test accuracies over the seeds: for each kind of training and labels n, mean and standard deviation."""
    scores = {"knn": ("probe", "knn_test"), "probe": ("probe", "probe_test")}
    scores |= {start: (start, "accuracy_test") for start in ("finetune", "scratch")}
    found = {}
    for (kind, (stage, score)), labels in product(scores.items(), LABELS):
        names = [f"{stage}_{labels}{name_seed(args, seed)}" for seed in args.seeds]
        values = [results[name][score] for name in names if name in results]
        std = statistics.stdev(values) if len(values) > 1 else None
        found[f"{kind}_{labels}"] = {"n": len(values), "mean": statistics.mean(values), "std": std}
    return found


def count_cost(args: argparse.Namespace, mae: Path, pretrainings: list[Path]) -> dict:
    """Passes of pretraining, FLOPs of an image, and the epochs from scratch that equal pretraining and fine-tuning."""
    patch_drop = finetune.parse().parse_args(extra_flags(args, "finetune", "all")).patch_drop
    flops = count_flops(mae, patch_drop=patch_drop)
    passes = sum(count_passes(run) for run in pretrainings)
    matched = round(args.finetune_epochs + passes * flops["pretraining"] / flops["fine-tuning"])
    return {
        "pretraining_passes": passes, "scratch_epochs": args.scratch_epochs or matched,
        "matched_scratch_epochs": matched, "flops_per_image": flops,
    }  # fmt: skip


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
def score_autoencoder(folder: Path, train: Dataset, first: Dataset) -> dict[str, float]:
    """What a test can measure again in seconds, on the CPU: the error over hidden pixels of a few fixed pictures, and
    their k-NN accuracy by 4 % of the training labels."""
    model = load_autoencoder(folder)
    choose_attention(model, "cpu")
    known = train.subset(few_labels(train.labels, 0.04, seed=0))
    with torch.autocast("cpu", torch.bfloat16):
        shown = model.reconstruct(first.images, generator=torch.Generator().manual_seed(0))
        features = [scoring.map_dataset(model.encode, split, device="cpu") for split in (known, first)]
    classes = scoring.knn_predict(features[0], known.labels, features[1], num_classes=len(train.classes))
    return {
        f"hidden_mse_first_{NUM_FIXED}": float(shown.error.mean()),
        f"knn_4_percent_first_{NUM_FIXED}": scoring.accuracy(classes, first.labels),
    }


@torch.no_grad()
def predict(folder: Path, dataset: Dataset) -> torch.Tensor:
    """Classes (N,) of a data set's pictures by a released classifier, in float32 on the CPU."""
    return scoring.map_dataset(load_classifier(folder), dataset, device="cpu").argmax(dim=1)


def copy_evidence(args: argparse.Namespace, pretrainings: list[Path]) -> None:
    """The logs behind the released weights, their control and few labels, and the pictures, into the repository."""
    runs, root, data = Path(args.output_dir), Path(args.publish_dir), Path(args.data).name
    panels = {
        "k-NN accuracy on validation, %": ["knn_val"], "reconstruction loss": ["reconstruction_loss"],
        "contrastive loss": ["contrastive_loss"], "learning rate": ["learning_rate"],
    }  # fmt: skip
    title = f"pretraining on {data}"
    figures.training_curves(join_metrics(pretrainings), panels, runs / "curves.png", title)
    sources = {
        "linear-probe": runs / "probe_all", "classifier-pretrained": runs / "finetune_all",
        "scratch": runs / "scratch_all", "mae": pretrainings[0],
    }  # fmt: skip
    sources |= {f"mae-part-{number}": run for number, run in enumerate(reversed(pretrainings[1:]), 1)}
    for start, labels in product(("finetune", "scratch"), LABELS):
        if labels != "all":
            sources[f"{start}-{labels}-percent"] = runs / f"{start}_{labels}"
    for name, source in sources.items():
        logs = root / "logs" / f"{args.name}-{name}"
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        for file in (*source.glob("*.json*"), *source.glob("tensorboard/events.*")):
            if file.name not in ("config.json", "stage.json"):
                shutil.copy(file, logs)
    shutil.copy(runs / "release.json", root / "logs" / f"{args.name}-release.json")
    (root / "assets").mkdir(exist_ok=True)
    looked_at = runs / f"evaluate_{args.name}-classifier-pretrained"
    pictures = {
        "reconstructions.png": runs / "reconstruction", "curves.png": runs,
        "confusion_matrix.png": looked_at, "per_class.csv": looked_at,
    }  # fmt: skip
    for name, folder in pictures.items():
        file = folder / name
        shutil.copy(file, root / "assets" / f"{file.stem}_{data}{file.suffix}")
    shutil.copy(runs / "finetune_all" / "curves.png", root / "assets" / f"finetune_curves_{data}.png")


def print_table(found: dict[str, dict]) -> None:
    """Test accuracies by the share of labels, with the standard deviation where there are several seeds."""
    print(f"\n{'test accuracy, %':16}" + "".join(f"{name:>20}" for name in KINDS.values()))
    for labels in LABELS:
        cells = [found[f"{kind}_{labels}"] for kind in KINDS]
        texts = [f"{c['mean']:.2f}" + (f" ± {c['std']:.2f} (n={c['n']})" if c["n"] > 1 else "") for c in cells]
        print(f"{labels + ('' if labels == 'all' else ' %') + ' labels':16}" + "".join(f"{text:>20}" for text in texts))


if __name__ == "__main__":
    run_script(main, parse())
