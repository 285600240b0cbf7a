"""The whole story in a few minutes on two CPU cores: pretrain, probe and fine-tune on handwritten digits.

    make demo

The data are scikit-learn's 1,797 handwritten digits (8x8, grey), which need no network. Every number in the table is
the accuracy on the same 360 test images, scored once.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

import tinymae
from tinymae.commands.cli import run_main
from tinymae.commands.fields import Settings, with_default
from tinymae.commands.settings import RunSettings
from tinymae.data.images import read_image
from tinymae.evaluation import figures
from tinymae.files import write_json

MODEL = {
    "patch_size": 2, "embed_dim": 96, "depth": 4, "decoder_dim": 64, "decoder_depth": 1, "norm_pix_loss": False,
}  # fmt: skip
PRETRAIN = {
    "batch_size": 128, "base_lr": 6e-3, "optimizer": "adamw", "epochs": 400, "contrast_epochs": 0, "warmup_epochs": 20,
    "flip": False, "crop": "none",
}  # fmt: skip
FINETUNE = {"recipe": "light", "flip": False, "patch_drop": 0.0}
LABELS = {"all labels": 1.0, "10 % of the labels": 0.1}
LENGTH = {
    1.0: {"batch_size": 128, "epochs": 150, "warmup_epochs": 10, "eval_every": 50, "base_lr": 4e-3, "ema_decay": 0.99},
    0.1: {"batch_size": 64, "epochs": 200, "warmup_epochs": 20, "eval_every": 50, "base_lr": 8e-3, "ema_decay": 0.98},
}
# The better of 0 and 1 on validation, for each: few labels from scratch want the crops, a pretrained encoder does not.
CROPS = {("finetune", 1.0): 1, ("scratch", 1.0): 1, ("finetune", 0.1): 0, ("scratch", 0.1): 1}


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """Settings of the demo."""

    output_dir: str | Path = with_default(RunSettings, "output_dir", "runs/demo")
    seed: int = with_default(RunSettings, "seed", 0)


def run(settings: DemoSettings) -> dict:
    """Pretrain, probe and fine-tune; the table of accuracies."""
    started = time.monotonic()

    def common(name: str) -> dict:
        print(f"\n=== {name}")
        folder = Path(settings.output_dir) / name.replace(" ", "_")
        return {"data": "digits", "overwrite": True, "seed": settings.seed, "output_dir": folder}

    pretrained = tinymae.pretrain(**common("pretrain"), **MODEL, **PRETRAIN).folder
    table: dict[str, dict[str, float]] = {}
    for column, ratio in LABELS.items():
        suffix = f"{ratio:.0%}".rstrip("%")
        some = {"weights": pretrained, "label_fraction": ratio}
        probe = tinymae.linear_probe(**common(f"probe {suffix}"), **some, controls="all").results
        classifiers = {}
        for start in ("finetune", "scratch"):
            own = FINETUNE | LENGTH[ratio] | {"crop_padding": CROPS[start, ratio], "from_scratch": start == "scratch"}
            tuned = tinymae.finetune(**common(f"{start} {suffix}"), **some, **own)
            classifiers[start] = tuned.results["accuracy_test"]
        table[column] = {
            "raw pixels, linear probe": probe["raw_pixels"]["probe_test"],
            "untrained encoder, linear probe": probe["untrained"]["probe_test"],
            "pretrained, k-NN": probe["knn_test"],
            "pretrained, linear probe": probe["probe_test"],
            "pretrained, fine-tuned": classifiers["finetune"],
            "from scratch": classifiers["scratch"],
        }

    print("\nAccuracy on the 360 test digits, %\n")
    print(f"{'':34}" + "".join(f"{column:>20}" for column in table))
    for row in table["all labels"]:
        print(f"{row:34}" + "".join(f"{values[row]:>20.1f}" for values in table.values()))
    folder = settings.output_dir
    title = "handwritten digits, 360 test images"
    shown = [
        bars(table, f"{folder}/accuracy.png", xlabel="test accuracy, %", title=title),
        paint_cifar10(f"{folder}/cifar10_reconstructions.png"),
        f"{folder}/pretrain/reconstructions.png",
        f"{folder}/pretrain/curves.png",
        f"{folder}/finetune_100/confusion_matrix.png",
        f"{folder}/finetune_10/curves.png",
    ]
    minutes = (time.monotonic() - started) / 60
    write_json(f"{folder}/results.json", {"accuracy_test": table, "minutes": minutes})
    print(f"\n{minutes:.1f} minutes. Images to look at:\n  " + "\n  ".join(map(str, shown)))
    return table


def bars(groups: dict[str, dict[str, float]], path: str | Path, *, xlabel: str, title: str) -> Path:
    """Horizontal bars: a line for each name, the first on top, with a bar and its value for each group."""
    names = list(next(iter(groups.values())))
    height = 0.8 / len(groups)
    figure = Figure(figsize=(7, 0.3 * len(names) * len(groups) + 1.2))
    axis = figure.subplots()
    for number, (group, values) in enumerate(groups.items()):
        places = [place + (number - (len(groups) - 1) / 2) * height for place in range(len(names))]
        axis.barh(
            places, [values[name] for name in names], height=0.92 * height, color=figures.COLOURS[number], label=group
        )
        for place, name in zip(places, names, strict=True):
            axis.text(values[name], place, f" {values[name]:.1f}", va="center", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.invert_yaxis()
    axis.set(xlabel=xlabel, title=title, xlim=(0, 1.1 * max(max(values.values()) for values in groups.values())))
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=len(groups), frameon=False)
    return figures.save(figure, path)


def paint_cifar10(path: str) -> Path:
    """The released weights at work on a few test images of CIFAR-10 that the repository holds."""
    root = Path(__file__).parent.parent
    model = tinymae.MaskedAutoencoder.from_pretrained(root / "weights" / "vit-t-mae")
    files = sorted((root / "assets" / "cifar10").glob("*.png"))
    images = torch.stack([read_image(file, (3, 32, 32), depth="uint8") for file in files])
    seen = model.reconstruct(images, generator=torch.Generator().manual_seed(0))
    title = "CIFAR-10 test images, 75 % hidden (brightness and contrast of hidden patches guessed from visible ones)"
    return figures.reconstruction_sheet(seen.columns, path, title)


if __name__ == "__main__":
    run_main(run, DemoSettings, description=__doc__)
