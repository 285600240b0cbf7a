"""Compare families of autoencoders under one protocol: the same data, the same minutes, the same probes."""

import math
import re
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from accelerate import PartialState

from ..commands import evaluate, finetune, linear_probe, pretrain
from ..commands.families import defaults_of
from ..commands.fields import Several, keywords_of, setting, with_default
from ..commands.pretrain import PretrainSettings
from ..commands.results import Result
from ..commands.settings import DataSettings, RunSettings, SheetSettings
from ..data.load import load_dataset, load_splits
from ..data.splits import SPLITS
from ..errors import Diverged, InputError
from ..evaluation.figures import Channels, require_shown
from ..files import last_part, lock_folder
from ..models.base import Autoencoder
from ..models.families import FAMILIES
from ..training.device import Precision, settle_precision
from ..training.run import move_aside
from .report import write_report
from .runs import Extra, fingerprints, parse_extra, require_distinct, require_same, require_same_data, run_once
from .search import require_optuna, search, search_space
from .tables import cell_rows, describe_rest, name_stage, pixel_row, write_tables

# What `models` offers: the family, and the settings that make a variant of it.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in FAMILIES}
MODELS["resnet_unet_no_skips"] = ("resnet_unet", {"skips": False})
if TYPE_CHECKING:
    Name = str
else:
    Name = Literal[tuple(MODELS)]
NO_END = 100_000  # epochs that minutes cut short
# k-NN on the way would use up a pretraining's minutes; and what is compared is reconstruction.
PROTOCOL: dict[str, Any] = {"probe_every": NO_END, "probe_images": 1000, "contrast_epochs": 0}
PLACES = {**dict.fromkeys([*MODELS, "pretrain"], PretrainSettings), "finetune": finetune.FinetuneSettings}


@dataclass(frozen=True)
class CompareSettings(DataSettings):
    """Settings of a comparison."""

    heading = "grid"
    resumes = True
    data: Several[str] = setting(("cifar10",), "data sets, as of pretrain")
    _: KW_ONLY
    models: Several[Name] = setting((*MODELS,), f"of {', '.join(MODELS)} (default: all)")
    latent_dims: tuple[int, ...] | None = setting(None, "of the families that have one (default: theirs)")
    losses: tuple[str, ...] | None = setting(None, "of the families that reconstruct whole images (default: mse)")
    seeds: Several[int] = setting((0,), "each model is trained once under each")
    label_fractions: Several[float] = setting(
        (1.0,), "ratios of each class's labels that probes and fine-tuning learn from; of few, a seed draws them",
        above=0, most=1,
    )  # fmt: skip
    minutes: float | None = setting(None, "of each pretraining, by the clock", group="length")
    epochs: int | None = setting(None, "of each pretraining; with minutes, whichever ends first", group="length")
    finetune_minutes: float | None = setting(None, "of each fine-tuning (default: as pretraining)", group="length")
    finetune_epochs: int | None = setting(None, "likewise (default: as pretraining); 0 leaves it out", group="length")
    search: Literal["optuna"] | None = setting(None, "look for each family's best settings first", group="search")
    trials: int = setting(20, "for each family and data set", group="search", least=1)
    trial_ratio: float = setting(0.2, "ratio of a pretraining's length", group="search", above=0, most=1)
    extra: Extra = setting((), "settings for one place: a model, pretrain or finetune", append='"WHERE: FLAGS"')
    show_channels: Channels | None = with_default(SheetSettings, "show_channels", None)
    output_dir: str | Path = with_default(RunSettings, "output_dir", "runs/compare")
    overwrite: bool = with_default(RunSettings, "overwrite", False)
    mixed_precision: Precision = with_default(RunSettings, "mixed_precision", "auto")

    def __post_init__(self) -> None:
        """As for all settings; data have to be names, which folders are called by and later calls find again."""
        for data in self.data if isinstance(self.data, list | tuple) else [self.data]:
            if not isinstance(data, str | Path):
                raise InputError(
                    f"data of type {type(data).__name__}: compare reads them anew for each run, so give a folder or a "
                    "name; arrays can be saved by numpy.savez('mine.npz', images=..., labels=...)"
                )
        super().__post_init__()

    def resolve(self) -> "CompareSettings":
        """Lengths and precision settled. Raises InputError for values that cannot be or do not go together."""
        if self.minutes is None and self.epochs is None:
            raise InputError("give --minutes or --epochs, the length of each pretraining")
        if empty := [name for name in ("data", "models", "seeds", "label_fractions") if not getattr(self, name)]:
            raise InputError(f"{empty[0]} () is empty: give at least one")
        if len({last_part(data) for data in self.data}) < len(self.data):
            raise InputError(f"data {' '.join(self.data)}: two have one name, and would share a folder; rename one")
        require_distinct("seeds", self.seeds)
        require_distinct("label_fractions", self.label_fractions)
        if self.search:
            require_optuna()
        precision = settle_precision(self.mixed_precision)
        if (count := PartialState().num_processes) > 1:
            raise InputError(f"compare is one process, but {count} were started: leave out accelerate launch")
        extra = parse_extra(self.extra, PLACES)
        if "label_fraction" in extra["finetune"]:
            raise InputError("extra gives finetune a label_fraction: give label_fractions, which the probes have too")
        fractions = tuple(sorted(self.label_fractions, reverse=True))
        settled = replace(self, mixed_precision=precision, extra=extra, label_fractions=fractions)
        if self.finetune_minutes is None and self.finetune_epochs is None:
            return replace(settled, finetune_minutes=self.minutes, finetune_epochs=self.epochs)
        return settled

    @property
    def common(self) -> dict[str, Any]:
        """The settings that all runs share."""
        return self.reading | {"mixed_precision": self.mixed_precision, "describe": False}  # `check` does that, once


@dataclass
class Cell:
    """One model on one data set, under any seed."""

    data: str
    model: str  # as `models` names it
    asked: PretrainSettings  # its pretraining, but for seed and folder
    settings: PretrainSettings  # what that comes to
    trial: int | None = None  # of the search, if its settings come from one

    @property
    def words(self) -> list[str]:
        """The model, its latent size, and its loss where that is not the usual one."""
        usual = defaults_of(self.settings.model).get("loss")
        loss = None if self.settings.loss == usual else self.settings.loss
        return [self.model, *(str(word) for word in (self.settings.latent_dim, loss) if word is not None)]

    @property
    def folder(self) -> Path:
        """Where its runs are, below the output folder."""
        words = [*self.words, *([] if self.trial is None else [f"trial{self.trial}"])]
        return Path(last_part(self.data)) / re.sub(r"[^\w.+-]", "x", "-".join(words))


def run(settings: CompareSettings) -> Result[None]:
    """Compare families of autoencoders: `.results["rows"]` has those of comparison.csv.

    Each cell of the grid (data, model, latent size, loss, seed) is pretrained, probed with a linear layer and with an
    MLP, fine-tuned and evaluated, each in a folder of its own; with several `label_fractions`, probed and fine-tuned
    with each. Repeating a call resumes: what is finished is read and not run again, what was interrupted goes on from
    its checkpoint, and a larger grid adds its cells. Raw pixels and untrained encoders are scored as controls. With
    `search`, each family's best settings are first looked for by the linear probe on validation, in short pretrainings;
    test is not loaded there.

    Raises InputError for what cannot work, before anything is trained, and at the end if a loss diverged.
    """
    settings = settings.resolve()
    assert isinstance(settings.extra, dict)  # resolved
    encoders = check(settings)
    folder = Path(settings.output_dir)
    if settings.overwrite:
        move_aside(folder)
    rows: list[dict] = []
    diverged: list[str] = []
    with lock_folder(folder):
        for data in settings.data:
            tuned: dict[str, dict | None] = {}
            if settings.search:
                tuned = {model: tune(settings, data, model, encoders[data]) for model in settings.models}
            rows += score_pixels(settings, data, encoders[data])
            for cell, seed in product(plan(settings, data, tuned), settings.seeds):
                try:
                    rows += run_cell(settings, cell, seed, diverged)
                except Diverged as error:  # no reason to lose the others
                    print(error)
                    diverged.append(f"{cell.folder}/seed{seed}")
                note = describe_rest(settings.extra, diverged)
                tables = write_tables(rows, folder, note)
        print("\n" + tables[1].read_text(encoding="utf-8"))
        report = write_report(
            rows, folder / "report.html", note, reading=settings.reading, channels=settings.show_channels
        )
    print("wrote " + "\n      ".join(map(str, [*tables, report])))
    if diverged:
        raise InputError(
            f"the loss of {', '.join(diverged)} diverged: give a lower --base-lr or --clip-grad by --extra"
        )
    return Result(None, {"rows": rows}, folder)


compare = keywords_of(run, CompareSettings)


def check(settings: CompareSettings) -> dict[str, Autoencoder]:
    """Refuse, before anything is trained, what could only fail hours later: reads all data, makes all models. For each
    data set an encoder of its images that has learned nothing.
    """
    cells = [cell for data in settings.data for cell in plan(settings, data, {})]
    sizes = [{"image_size": cell.settings.image_size, "channels": cell.settings.in_channels or 3} for cell in cells]
    for cell, own in zip(cells, sizes, strict=True):
        if own != sizes[0]:
            raise InputError(
                f"extra gives {cell.model} images of {own}, others {sizes[0]}: they are compared on the same images, "
                "so give that to 'pretrain'"
            )
    if settings.finetune_epochs != 0:
        tuning = finetune.FinetuneSettings(**tuning_settings(settings), weights="a pretraining's").resolve()
    reading = sizes[0] | settings.reading
    splits = {data: load_splits(data, SPLITS, labelled=True, **reading) for data in settings.data}
    val_sets = {data: found["val"] for data, found in splits.items()}
    for val_set in val_sets.values():
        print(*val_set.description, sep="\n")
        if settings.finetune_epochs != 0:
            tuning.check_images(val_set)
        require_shown(settings.show_channels, val_set.image_shape[0])
    if not settings.overwrite:
        known = {data: fingerprints(found) for data, found in splits.items()}
        for cell, seed in product(cells, settings.seeds):
            asked = pretraining(settings, cell, seed)
            part = Path(asked.output_dir).parent
            require_same(asked, part=part)
            require_same_data(part, known[cell.data])
        for data in settings.data:
            require_same_data(folder_of_pixels(settings, data), known[data])
    for cell in cells:
        cell.settings.check_shape(val_sets[cell.data])
        if cell.settings.weights is None and not settings.search:  # a search will change the settings
            try:
                pretrain.create_model(cell.settings, val_sets[cell.data], None)
            except InputError as error:
                raise InputError(f"model {cell.model} on {cell.data}: {error}") from None
    blank = PretrainSettings(model="pca", latent_dim=1)
    return {data: pretrain.create_model(blank, val_set, None) for data, val_set in val_sets.items()}


def plan(settings: CompareSettings, data: str, tuned: dict[str, dict | None]) -> list[Cell]:
    """The cells of the grid on one data set; what `tuned` says of a model is what a search found best."""
    cells = {}
    shared = PROTOCOL | settings.common | {"data": data, "show_channels": settings.show_channels}
    shared |= training_length(settings.minutes, settings.epochs)
    for model in settings.models:
        best = tuned.get(model) or {"settings": {}, "trial": None}
        axes = grid_of(settings, MODELS[model][0])
        for point in product(*axes.values()):
            chosen = choose(settings, model, best["settings"] | dict(zip(axes, point, strict=True)))
            asked = PretrainSettings(**shared | chosen)
            cell = Cell(data, model, asked, asked.resolve(), best["trial"])
            cells[cell.folder] = cell
    return list(cells.values())


def choose(settings: CompareSettings, model: str, own: dict[str, Any]) -> dict[str, Any]:
    """The settings of a model's pretraining: its variant's, `own`, then those of `extra`."""
    family, variant = MODELS[model]
    assert isinstance(settings.extra, dict)  # resolved
    return {"model": family, **variant, **own, **settings.extra["pretrain"], **settings.extra[model]}


def grid_of(settings: CompareSettings, family: str) -> dict[str, tuple]:
    """The settings of a family that the grid fixes."""
    knows = defaults_of(family)
    axes: dict[str, tuple | None] = {"latent_dim": settings.latent_dims} if "latent_dim" in knows else {}
    if "norm_pix_loss" not in knows:  # a normalised patch is compared by mse alone
        axes |= {"loss": settings.losses} if "loss" in knows else {}
    return {name: values for name, values in axes.items() if values}


def pretraining(settings: CompareSettings, cell: Cell, seed: int) -> PretrainSettings:
    """The first stage of a cell under one seed."""
    folder = Path(settings.output_dir) / cell.folder / f"seed{seed}" / "pretrain"
    return replace(cell.asked, seed=seed, output_dir=folder)


def run_cell(settings: CompareSettings, cell: Cell, seed: int, diverged: list[str]) -> list[dict]:
    """One cell under one seed, all of its stages: its rows of the table; `diverged` gets a fine-tuning that did."""
    shared = settings.common | {"data": cell.data, "seed": seed}
    shown = shared | {"show_channels": settings.show_channels}
    asked = pretraining(settings, cell, seed)
    folder = Path(asked.output_dir).parent
    once = partial(run_once, part=folder)
    once(pretrain, asked)
    shared |= {"weights": folder / "pretrain"}
    shown |= {"weights": folder / "pretrain"}
    once(evaluate, evaluate.EvaluateSettings(**shown, split="test", output_dir=folder / "evaluate"))
    # The untrained components of a PCA are pixels, which are a control of their own.
    fitted = FAMILIES[cell.settings.model].fitted
    rows = []
    for fraction in settings.label_fractions:
        labels = {"label_fraction": fraction}
        probing = partial(linear_probe.LinearProbeSettings, **shared | labels)
        kept: linear_probe.Kept = {}
        linear, mlp, tuned = (folder / name_stage(stage, fraction) for stage in ("linear", "mlp", "finetune"))
        once(linear_probe, probing(output_dir=linear, controls=None if fitted else "untrained"), kept=kept)
        once(linear_probe, probing(output_dir=mlp, head="mlp"), kept=kept)
        del kept
        if settings.finetune_epochs != 0 and not fitted:  # fine-tuned, a PCA is a linear probe
            tuning = tuning_settings(settings) | shared | labels | {"output_dir": tuned}
            if cell.settings.model != "mae":
                tuning = {name: value for name, value in tuning.items() if name not in finetune.VIT_ALONE}
            try:
                once(finetune, finetune.FinetuneSettings(**tuning))
            except Diverged as error:
                print(error)
                diverged.append(f"{cell.folder}/seed{seed}/{tuned.name}")
        names = {"data": last_part(cell.data), "name": " ".join(cell.words), "model": cell.model, "seed": seed}
        rows += cell_rows(folder, label_fraction=fraction, **names)
    return rows


def tuning_settings(settings: CompareSettings) -> dict[str, Any]:
    """Those of every fine-tuning."""
    assert isinstance(settings.extra, dict)  # resolved
    length = training_length(settings.finetune_minutes, settings.finetune_epochs)
    return settings.common | length | {"eval_every": NO_END, "recipe": "light"} | settings.extra["finetune"]


def score_pixels(settings: CompareSettings, data: str, encoder: Autoencoder) -> list[dict]:
    """The rows of the raw pixels, which a probe scores beside a model: here one that learned nothing. A seed decides
    nothing in them but a draw of few labels.
    """
    folder = folder_of_pixels(settings, data)
    shared = settings.common | {"data": data, "weights": encoder, "controls": "raw_pixels"}
    rows = []
    for fraction in settings.label_fractions:
        for seed in settings.seeds if fraction < 1 else (0,):
            stage = folder / (name_stage("linear", fraction) + (f"-seed{seed}" if fraction < 1 else ""))
            names = {"seed": seed, "label_fraction": fraction}
            run_once(linear_probe, linear_probe.LinearProbeSettings(**shared | names, output_dir=stage), part=folder)
            rows.append(pixel_row(stage, data=last_part(data), model="pixels", **names))
    return rows


def folder_of_pixels(settings: CompareSettings, data: str) -> Path:
    """Where the probes of the raw pixels are."""
    return Path(settings.output_dir) / last_part(data) / "raw_pixels"


def tune(settings: CompareSettings, data: str, model: str, encoder: Autoencoder) -> dict | None:
    """Search for a model's best settings by its linear probe on validation. None if all of them are given."""
    fixed = {name: values[0] for name, values in grid_of(settings, MODELS[model][0]).items()}
    recipe = next(cell.settings for cell in plan(settings, data, {}) if cell.model == model)
    size: dict[str, Any] = {"image_size": encoder.image_size, "channels": encoder.in_channels}
    train_set = load_dataset(data, **size, **settings.reading)
    start = recipe.record() | recipe.plan_phases(train_set)[0].settled
    assert isinstance(settings.extra, dict)
    given = {*fixed, *settings.extra["pretrain"], *settings.extra[model]}
    space = search_space(MODELS[model][0], values=math.prod(train_set.image_shape), given=given)
    folder = Path(settings.output_dir) / last_part(data) / "search" / model
    seed = settings.seeds[0]
    shared = settings.common | {"data": data, "seed": seed}

    def objective(number: int, found: dict) -> float:
        trial = folder / f"trial{number}"
        length = training_length(settings.minutes, settings.epochs, settings.trial_ratio)
        chosen = choose(settings, model, fixed | found) | {"output_dir": trial / "pretrain"}
        try:
            run_once(pretrain, PretrainSettings(**PROTOCOL | shared | length | chosen), part=folder)
        except Diverged as error:  # a learning rate too high is a finding
            print(error)
            return 0.0
        probing = {"weights": trial / "pretrain", "no_test": True, "output_dir": trial / "linear"}
        return run_once(linear_probe, linear_probe.LinearProbeSettings(**shared | probing), part=folder)["probe_val"]

    return search(
        objective, space, start, folder=folder, storage=Path(settings.output_dir) / "search.db",
        study_name=f"{last_part(data)}/{model}", trials=settings.trials, seed=seed,
    )  # fmt: skip


def training_length(minutes: float | None, epochs: int | None, ratio: float = 1.0) -> dict[str, Any]:
    """Settings that end a training by the clock or by epochs, at a `ratio` of them."""
    epochs = NO_END if epochs is None else max(1, round(ratio * epochs))
    return {"epochs": epochs, "max_minutes": None if minutes is None else ratio * minutes}
