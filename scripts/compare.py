"""Compare families of autoencoders under one protocol: the same data, the same minutes, the same probes.

    python scripts/compare.py --data cifar10 --minutes 5 --output-dir runs/compare
    python scripts/compare.py --data cifar10 mnist --models mae vae pca --latent-dims 32 128 --seeds 0 1 2 --epochs 20
    python scripts/compare.py --data cifar10 --minutes 5 --search optuna --trials 20

Each cell of the grid (data, model, latent size, loss, seed) is pretrained, probed with a linear layer and with an MLP,
fine-tuned and evaluated by the scripts of those names, each in its own folder. Repeating a command resumes: what is
finished is read and not run again, what was interrupted goes on from its checkpoint, and a larger grid adds its cells.
Raw pixels and untrained encoders are scored as controls. The result is comparison.csv, comparison.md and report.html.

--search first looks for each family's best settings by the linear probe on validation, in short pretrainings; test is
not loaded there. --extra passes flags on to one family's pretraining, to all, or to fine-tuning:

    --extra "vae: --beta 0.1 --width 32" --extra "pretrain: --no-flip --crop none" --extra "finetune: --no-flip"
"""

import argparse
import math
import re
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import evaluate
import finetune
import linear_probe
import pretrain

from tinymae import InputError
from tinymae.commands.cli import run_script
from tinymae.commands.settings import WARMUP
from tinymae.data.datasets import load_dataset, require_labels
from tinymae.files import lock_folder
from tinymae.study.report import write_report
from tinymae.study.search import as_flags, require_optuna, search, search_space
from tinymae.study.stages import check_extra, extra_flags, require_distinct, run_stage
from tinymae.study.tables import cell_rows, pixel_row, write_tables
from tinymae.training.device import settle_precision
from tinymae.training.progress import Diverged
from tinymae.training.run import move_aside

# What --models offers: the family, and the flags that make a variant of it.
MODELS = {name: (name, []) for name in pretrain.MODELS} | {"resnet_unet_no_skips": ("resnet_unet", ["--no-skips"])}
NO_END = 100_000  # epochs that minutes cut short
WATCH = ["--probe-every", NO_END, "--probe-images", 1000]  # k-NN on the way would use up a pretraining's minutes


@dataclass
class Cell:
    """One model on one data set, under any seed."""

    data: str
    model: str  # as --models names it
    flags: list[str]  # for pretrain.py, but for those that all its runs share
    settings: argparse.Namespace  # what they come to
    trial: int | None = None  # of the search, if its flags come from one

    @property
    def words(self) -> list[str]:
        """The model, its latent size, and its loss where that is not the usual one."""
        usual = pretrain.MODELS[self.settings.model].get("loss")
        loss = None if self.settings.loss == usual else self.settings.loss
        return [self.model, *(str(word) for word in (self.settings.latent_dim, loss) if word is not None)]

    @property
    def folder(self) -> Path:
        words = [*self.words, *([] if self.trial is None else [f"trial{self.trial}"])]
        return Path(data_name(self.data)) / re.sub(r"[^\w.+-]", "x", "-".join(words))


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    grid = parser.add_argument_group("grid")
    grid.add_argument("--data", nargs="+", default=["cifar10"], help="data sets, as of pretrain.py (default: cifar10)")
    grid.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS], help="(default: all)")
    grid.add_argument("--latent-dims", nargs="+", type=int, help="of the families that have one (default: theirs)")
    grid.add_argument("--losses", nargs="+", help="of the families that reconstruct whole pictures (default: mse)")
    grid.add_argument("--seeds", nargs="+", type=int, default=[0], help="(default: 0)")
    length = parser.add_argument_group("length")
    length.add_argument("--minutes", type=float, help="of each pretraining, by the clock")
    length.add_argument("--epochs", type=int, help="of each pretraining; with --minutes, whichever ends first")
    length.add_argument("--finetune-minutes", type=float, help="of each fine-tuning (default: as pretraining)")
    length.add_argument("--finetune-epochs", type=int, help="likewise (default: as pretraining); 0 leaves it out")
    searching = parser.add_argument_group("search")
    searching.add_argument("--search", choices=["optuna"], help="look for each family's best settings first")
    searching.add_argument("--trials", type=int, default=20, help="for each family and data set (default: 20)")
    searching.add_argument("--trial-share", type=float, default=0.2, help="of a pretraining's length (default: 0.2)")
    run = parser.add_argument_group("run")
    run.add_argument(
        "--extra", action="append", default=[], metavar='"WHERE: FLAGS"', help="a model, pretrain, finetune"
    )
    run.add_argument("--output-dir", default="runs/compare", help="(default: %(default)s)")
    run.add_argument("--overwrite", action="store_true", help="move what is in --output-dir aside and start anew")
    run.add_argument(
        "--mixed-precision", choices=["auto", "no", "bf16", "fp16"], default="auto", help="(default: auto)"
    )
    run.add_argument("--skip-unreadable", action="store_true", help="leave out pictures that do not decode")
    run.add_argument("--data-dir", default="data", help="where named data sets are, or go (default: %(default)s)")
    return parser


def main(args: argparse.Namespace) -> list[dict]:
    check(args)
    folder = Path(args.output_dir)
    if args.overwrite:
        move_aside(folder)
    rows, diverged = [], []
    with lock_folder(folder):
        for data in args.data:
            tuned = {model: tune(args, data, model) for model in args.models} if args.search else {}
            rows.append(score_pixels(args, data))
            for cell, seed in product(plan(args, data, tuned), args.seeds):
                try:
                    rows += run_cell(args, cell, seed, diverged)
                except Diverged as error:  # no reason to lose the others
                    print(error)
                    diverged.append(f"{cell.folder}/seed{seed}")
                tables = write_tables(rows, folder, diverged)
        print("\n" + tables[1].read_text(encoding="utf-8"))
        report = write_report(rows, folder / "report.html", loader(args), diverged)
    print("wrote " + "\n      ".join(map(str, [*tables, report])))
    if diverged:
        raise InputError(
            f"the loss of {', '.join(diverged)} diverged: give a lower --base-lr or --clip-grad by --extra"
        )
    return rows


def check(args: argparse.Namespace) -> None:
    """Refuse, before anything is trained, what could only fail hours later: reads all data, makes all models."""
    settle_precision(args)  # once, as the folders of the stages compare it
    if args.minutes is None and args.epochs is None:
        raise InputError("give --minutes or --epochs, the length of each pretraining")
    if args.finetune_minutes is None and args.finetune_epochs is None:
        args.finetune_minutes, args.finetune_epochs = args.minutes, args.epochs
    if len({data_name(data) for data in args.data}) < len(args.data):
        raise InputError(f"data {' '.join(args.data)}: two have one name, and would share a folder; rename one")
    check_extra(args, dict.fromkeys([*MODELS, "pretrain"], pretrain) | {"finetune": finetune})
    require_distinct("seeds", args.seeds)
    if args.search:
        require_optuna()
        if args.trials < 1:
            raise InputError(f"trials {args.trials} is below 1")
    cells = [cell for data in args.data for cell in plan(args, data, {})]
    sizes = [{"image_size": cell.settings.image_size, "channels": cell.settings.in_channels} for cell in cells]
    for cell, own in zip(cells, sizes, strict=True):
        if own != sizes[0]:
            raise InputError(
                f"extra gives {cell.model} pictures of {own}, others {sizes[0]}: they are compared on the same "
                "pictures, so give that to 'pretrain'"
            )
    val_sets = {data: loader(args)(data, "val", **sizes[0]) for data in args.data}
    for data, val_set in val_sets.items():
        require_labels(data, val=val_set)
    for cell in cells:
        if not (cell.settings.weights or args.search):  # a search will change the settings
            try:
                pretrain.create_model(cell.settings, val_sets[cell.data], None)
            except InputError as error:
                raise InputError(f"model {cell.model} on {cell.data}: {error}") from None


def plan(args: argparse.Namespace, data: str, tuned: dict[str, dict]) -> list[Cell]:
    """The cells of the grid on one data set; what `tuned` says of a model is what a search found best."""
    cells = {}
    for model in args.models:
        family, variant = MODELS[model]
        best = tuned.get(model) or {"settings": {}, "trial": None}
        for grid in product(*grid_of(args, family).values()):
            chosen = best["settings"] | dict(zip(grid_of(args, family), grid, strict=True))
            flags = ["--model", family, *variant, *as_flags(chosen), *extra_flags(args, "pretrain", model)]
            settings = pretrain.parse().parse_args(flags)
            pretrain.complete_arguments(settings)
            cell = Cell(data, model, flags, settings, best["trial"])
            cells[cell.folder] = cell
    return list(cells.values())


def grid_of(args: argparse.Namespace, family: str) -> dict[str, list]:
    """The settings of a family that the command line fixes."""
    knows = pretrain.MODELS[family]
    grid = {"latent_dim": args.latent_dims} if "latent_dim" in knows else {}
    if "norm_pix_loss" not in knows:  # a normalised patch is compared by mse alone
        grid |= {"loss": args.losses} if "loss" in knows else {}
    return {name: values for name, values in grid.items() if values}


def run_cell(args: argparse.Namespace, cell: Cell, seed: int, diverged: list[str]) -> list[dict]:
    """One cell under one seed, all of its stages: its rows of the table; `diverged` gets a fine-tuning that did."""
    folder = Path(args.output_dir) / cell.folder / f"seed{seed}"
    weights = ["--weights", folder / "pretrain"]
    run = partial(stage, args, data=cell.data, seed=seed)
    run(pretrain, folder / "pretrain", *WATCH, *training_length(args.minutes, args.epochs), *cell.flags)
    # The untrained components of a PCA are pixels, which are a control of their own.
    linear = [] if cell.model == "pca" else ["--controls", "untrained"]
    run(linear_probe, folder / "linear", *weights, *linear)
    run(linear_probe, folder / "mlp", *weights, "--head", "mlp")
    run(evaluate, folder / "evaluate", *weights)
    if args.finetune_epochs != 0 and cell.model != "pca":  # fine-tuned, a PCA is a linear probe
        flags = [*training_length(args.finetune_minutes, args.finetune_epochs), *extra_flags(args, "finetune")]
        try:
            run(finetune, folder / "finetune", *weights, "--eval-every", NO_END, *flags)
        except Diverged as error:
            print(error)
            diverged.append(f"{cell.folder}/seed{seed}/finetune")
    return cell_rows(folder, data=data_name(cell.data), name=" ".join(cell.words), model=cell.model, seed=seed)


def score_pixels(args: argparse.Namespace, data: str) -> dict:
    """The row of the raw pixels, which linear_probe.py scores beside a model: here, beside one component of a PCA."""
    folder = Path(args.output_dir) / data_name(data) / "raw_pixels"
    sizes = extra_flags(args, "pretrain")
    stage(args, pretrain, folder / "pretrain", "--model", "pca", *sizes, "--latent-dim", 1, data=data, seed=0)
    weights = ["--weights", folder / "pretrain", "--controls", "raw_pixels"]
    stage(args, linear_probe, folder / "linear", *weights, data=data, seed=0)
    return pixel_row(folder, data=data_name(data), model="pixels")


def tune(args: argparse.Namespace, data: str, model: str) -> dict | None:
    """Search for a model's best settings by its linear probe on validation. None if all of them are given."""
    family, variant = MODELS[model]
    extra = extra_flags(args, "pretrain", model)
    fixed = {name: values[0] for name, values in grid_of(args, family).items()}
    recipe = next(cell.settings for cell in plan(args, data, {}) if cell.model == model)
    val_set = loader(args)(data, "val", image_size=recipe.image_size, channels=recipe.in_channels)
    space = search_space(family, values=math.prod(val_set.image_shape), given=[*as_flags(fixed), *extra])
    folder = Path(args.output_dir) / data_name(data) / "search" / model
    seed = args.seeds[0]
    run = partial(stage, args, data=data, seed=seed)

    def objective(number: int, settings: dict) -> float:
        trial = folder / f"trial{number}"
        flags = ["--model", family, *variant, *as_flags(fixed | settings), *extra]
        length = training_length(args.minutes, args.epochs, args.trial_share)
        try:
            run(pretrain, trial / "pretrain", *WATCH, *length, *flags)
        except Diverged as error:  # a learning rate too high is a finding
            print(error)
            return 0.0
        return run(linear_probe, trial / "linear", "--weights", trial / "pretrain", "--no-test")["probe_val"]

    return search(
        objective, space, vars(recipe), folder=folder, storage=Path(args.output_dir) / "search.db",
        study_name=f"{data_name(data)}/{model}", trials=args.trials, seed=seed,
    )  # fmt: skip


def stage(args: argparse.Namespace, script, folder: Path, *flags, data: str, seed: int) -> dict:
    """The results of a script with these flags, from its folder if they are there. Raises InputError as `Run` does."""
    common = ["--data", data, "--seed", seed, "--mixed-precision", args.mixed_precision, "--data-dir", args.data_dir]
    return run_stage(script, folder, *common, *(["--skip-unreadable"] if args.skip_unreadable else []), *flags)


def training_length(minutes: float | None, epochs: int | None, share: float = 1.0) -> list:
    """Flags that end a training by the clock or by epochs, with the warm-up that belongs to it."""
    epochs = NO_END if epochs is None else max(1, round(share * epochs))
    clock = [] if minutes is None else ["--max-minutes", share * minutes]
    return ["--epochs", epochs, "--warmup-epochs", WARMUP * epochs, *clock]


def loader(args: argparse.Namespace):
    """`load_dataset` as the scripts call it: a function of the name, the split and the size of the pictures."""
    return partial(load_dataset, data_dir=args.data_dir, skip_unreadable=args.skip_unreadable)


def data_name(data: str) -> str:
    """The name of a data set, or of its folder."""
    return Path(data).name


if __name__ == "__main__":
    run_script(main, parse())
