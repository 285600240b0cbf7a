"""Settings: one frozen dataclass per command, whose fields are its flags, its keywords and the keys of args.json."""

import hashlib
import inspect
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import partial, update_wrapper
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor
from typing_extensions import Self

from ..data.batches import Batch, count_steps, split_batch, step_batches
from ..data.datasets import Dataset, Images, load_splits
from ..data.sources.open import COLUMNS, has_columns
from ..data.sources.table import LABEL_COLUMNS, PATH_COLUMNS, SPLIT_COLUMNS
from ..data.splits import SPLITS, balanced, few_labels
from ..errors import InputError
from ..evaluation.figures import Channels, require_shown
from ..files import digest, is_of_type
from ..interop.load import Model
from ..training.device import Precision, can_compile, create_accelerator, settle_precision
from ..training.run import Run
from ..training.trackers import require_installed

Size = int | tuple[int, int]  # one number, or height and width
WARMUP = 0.05  # ratio of a training, unless warmup_epochs says otherwise
PEAK = 2e-3  # learning rate at batch size 512
WORTH_COMPILING = 5_000  # steps: what torch.compile takes at the start comes back within them (docs/gpu.md)
WORTH_MINUTES = 3.0
PLAIN = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}  # types, and their words
M = TypeVar("M")
S = TypeVar("S", bound="Settings")
R = TypeVar("R")


@dataclass(frozen=True)
class Result(Generic[M]):
    """What a command gives back."""

    model: M  # in evaluation mode
    results: dict  # as in results.json
    folder: Path  # the output folder


def setting(default: Any = MISSING, help: str = "", *, group: str = "", **metadata: Any) -> Any:
    """A field with its help text. `group` is its heading in --help: by default the class's.

    Further metadata: `python=True` has no flag, `flag` and `key` name it otherwise, `free=True` does not change what is
    computed and is not recorded, `const` is the value of a flag without one, `positive=True` is at least 1.
    """
    return field(default=default, metadata={"help": help, "group": group, **metadata})


def with_default(base: type, name: str, default: Any) -> Any:
    """A field of `base` with another default."""
    return field(default=default, metadata=base.__dataclass_fields__[name].metadata)  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all commands share."""

    heading = "run"
    resumes = False  # whether a command that was stopped goes on where it was
    output_dir: str | Path = setting("runs/run", "folder of this run", free=True)

    def __post_init__(self) -> None:
        """Let one value stand for a tuple of it. Raises InputError for a value that is none of a field's choices, or is
        not of its type: the command line knows no others, Python would go on with them.
        """
        hints = get_type_hints(type(self))
        for f in fields(self):
            value, kinds = getattr(self, f.name), alternatives(hints[f.name])
            if isinstance(value, np.generic | range):  # as people compute numbers
                value = value.item() if isinstance(value, np.generic) else tuple(value)
                object.__setattr__(self, f.name, value)
            if value is None or len(kinds) > 1:
                continue
            choices, values = kinds[0], [value]
            if get_origin(choices) is tuple and get_args(choices)[-1] is Ellipsis:
                if isinstance(value, str | Path | int):
                    object.__setattr__(self, f.name, (value,))
                choices, values = get_args(choices)[0], getattr(self, f.name)
                if not isinstance(values, list | tuple):
                    values = [values]  # which is none of them
            elif value is True and "const" in f.metadata:  # a flag without a value
                object.__setattr__(self, f.name, f.metadata["const"])
                continue
            for each in values if get_origin(choices) is Literal else ():
                if each not in get_args(choices):
                    raise InputError(f"{f.name} {each!r} is none of {', '.join(map(str, get_args(choices)))}")
            if choices in PLAIN:
                require_plain(f.name, values, choices)

    def record(self) -> dict:
        """What args.json keeps: the settings that decide what a run computes, as JSON."""
        kept = (f for f in fields(self) if not f.metadata.get("free"))
        return {f.name: describe_value(getattr(self, f.name)) for f in kept}


def require_plain(name: str, values: Sequence[Any], wanted: type) -> None:
    """Raises InputError unless all values are of a plain type; a path may stand for a text."""
    for value in values:
        if not is_of_type(value, str | Path if wanted is str else wanted):
            raise InputError(f"{name} {reprlib.repr(value)} is of type {type(value).__name__}: give {PLAIN[wanted]}")


def alternatives(kind: Any) -> list[Any]:
    """The types that a hint allows, but None."""
    if get_origin(kind) not in (UnionType, Union):
        return [kind]
    return [each for each in get_args(kind) if each is not NoneType]


def describe_value(value: Any) -> Any:
    """A setting as args.json has it: objects from Python by their kind and digest."""
    if isinstance(value, Tensor | np.ndarray):
        array = np.ascontiguousarray(value.cpu().numpy() if isinstance(value, Tensor) else value)
        return f"array {list(array.shape)} of {array.dtype}, sha256 {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
    if isinstance(value, torch.nn.Module):
        return f"{type(value).__name__}, sha256 {digest(value.state_dict())[:16]}"
    if isinstance(value, torch.utils.data.Dataset):
        return f"{type(value).__name__} of {len(value)}"  # type: ignore[arg-type]  # map-style, see TorchSource
    if isinstance(value, list | tuple):
        return [describe_value(each) for each in value]
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """How data are read."""

    heading = "data"
    data_dir: str | Path = setting("data", "where named data sets are, or go", free=True)
    val_fraction: float | None = setting(
        None, "held out where the data have no validation (default: 0.1, without labels 0.05)"
    )
    test_fraction: float | None = setting(
        None, "held out where the data have no test split (default: 0.1, without labels 0)"
    )
    pixel_range: tuple[float, float] | None = setting(
        None,
        "values of black and white: of float or 32-bit pixels, and of 16-bit ones that use fewer (12 bits: 0 4095)",
        nargs=2,
    )
    image_column: str | None = setting(None, f"of a table (default: {', '.join(PATH_COLUMNS)})")
    label_column: str | None = setting(None, f"of a table (default: {', '.join(LABEL_COLUMNS)})")
    split_column: str | None = setting(None, f"of a table (default: {', '.join(SPLIT_COLUMNS)})")
    skip_unreadable: bool = setting(False, "leave out images that do not decode, or that are missing")

    @property
    def reading(self) -> dict[str, Any]:
        """These, as `load_dataset` takes them."""
        own = (f.name for f in fields(DataSettings) if f.name != "output_dir")
        return {name: getattr(self, name) for name in own}

    def reading_for(self, data: Any, *, beside: Any) -> dict[str, Any]:
        """`reading` for one of two data: columns are those of the other if that alone is a table."""
        of_other = has_columns(beside) and not has_columns(data)
        return self.reading | (dict.fromkeys(COLUMNS) if of_other else {})


@dataclass(frozen=True, kw_only=True)
class RunSettings(DataSettings):
    """What every command that reads data shares."""

    data: Images = setting(
        "cifar10",
        "a folder of images, or several without labels; image files; a table of paths (.csv, .tsv, .parquet); .npy, "
        ".npz or .h5; Parquet or save_to_disk of Hugging Face, hf:owner/name; or a name: digits, cifar10, mnist, ...",
        group="data", positional=True, several=True,
    )  # fmt: skip
    labels: Any = setting(None, "of a tensor or array", python=True)
    num_workers: int = setting(
        2, "processes that read and decode images larger than memory, beside each that computes", group="data",
        free=True,
    )  # fmt: skip
    overwrite: bool = setting(False, "move what is in the output folder aside and start anew", free=True)
    seed: int = setting(0, "everything random follows from it")
    mixed_precision: Precision = setting("auto", "auto: bf16 where the processor has it")

    def resolve(self) -> Self:
        """The same with every value settled. Raises InputError for one that cannot be."""
        for f in fields(self):
            value = getattr(self, f.name)
            if f.metadata.get("positive") and value is not None and value < 1:
                raise InputError(f"{f.name} {value} is below 1")
        return replace(self, mixed_precision=settle_precision(self.mixed_precision))

    def record(self) -> dict:
        """See `Settings.record`."""
        labels = np.asarray(self.labels) if isinstance(self.labels, Sequence) else self.labels
        return super().record() | {"labels": describe_value(labels)}

    def settle(self) -> Self:
        """`resolve`, reading what it needs from the weights."""
        return self.resolve()

    @property
    def further_data(self) -> Any:
        """Other data that are read alike, or None."""
        return None

    @property
    def data_name(self) -> str:
        """The data's name, or its folder's."""
        if isinstance(self.data, str | Path):
            return Path(self.data).name
        if isinstance(self.data, list | tuple):
            return ", ".join([Path(each).name for each in self.data[:3]] + ["..."] * (len(self.data) > 3))
        return "array" if isinstance(self.data, Tensor | np.ndarray) else type(self.data).__name__

    def load(self, *splits: str, image_size: Size | None, channels: int, **options: bool) -> list[Dataset]:
        """Splits of the data, which may have to be `labelled`, maybe with `several` labels. What was found is printed,
        once.
        """
        return [*self.load_splits(splits, image_size=image_size, channels=channels, **options).values()]

    def load_splits(self, splits: Sequence[str], **options: Any) -> dict[str, Dataset]:
        """The same by name; see `data.datasets.load_splits` for the options."""
        reading = self.reading_for(self.data, beside=self.further_data)
        loaded = load_splits(self.data, splits, labels=self.labels, **options, **reading)
        if PartialState().is_main_process and loaded:
            print(*next(iter(loaded.values())).description, sep="\n", flush=True)
        return loaded

    def create_accelerator(self) -> Accelerator:
        """Accelerate, with the run's precision."""
        return create_accelerator(settle_precision(self.mixed_precision))

    def open_run(
        self, accelerator: Accelerator, *, splits: dict[str, Dataset], weights: Model | None = None, **further: str
    ) -> Run:
        """The run's folder, for these inputs; `further` ones by their fingerprints."""
        inputs = {}
        if accelerator.is_main_process:  # which alone compares them: a folder's sizes need not be asked for by all
            inputs = {split: dataset.fingerprint for split, dataset in splits.items()} | further
            if weights is not None:
                inputs["weights"] = digest(weights.state_dict())
        return Run(
            self.output_dir, accelerator, arguments=self.record(), inputs=inputs, overwrite=self.overwrite,
            datasets=splits, **self.run_options(),
        )  # fmt: skip

    def run_options(self) -> dict:
        """Further arguments of `Run`."""
        return {}


@dataclass(frozen=True, kw_only=True)
class SheetSettings(RunSettings):
    """What every command that draws sheets of images shares."""

    heading = "data"
    show_channels: Channels | None = setting(
        None, "channels that sheets of images show as red, green and blue, from 0 (default: the first three; the first "
        "in grey of one or two)", nargs=3, free=True,
    )  # fmt: skip

    def load_splits(self, splits: Sequence[str], **options: Any) -> dict[str, Dataset]:
        """See `RunSettings.load_splits`. Raises InputError as well if the images lack the channels to be shown."""
        loaded = super().load_splits(splits, **options)
        for dataset in loaded.values():
            require_shown(self.show_channels, dataset.image_shape[0])
        return loaded


@dataclass(frozen=True, kw_only=True)
class LabelSettings(RunSettings):
    """What every command that learns from labels shares."""

    heading = "labels"
    label_fraction: float = setting(1.0, "ratio of each class's labels used")
    val_labels: int | None = setting(
        None, "choose on this many labels of validation, the same number of each class (default: all): few show what "
        "choosing on few costs",
    )  # fmt: skip
    no_test: bool = setting(False, "leave the test split out: for choosing on validation")

    def load_labelled(self, *, image_size: Size | None, channels: int) -> dict[str, Dataset]:
        """Train, validation and, unless `no_test`, test; an image may have several labels or none. Raises InputError if
        a split has no label.
        """
        names = SPLITS[:2] if self.no_test else SPLITS
        return self.load_splits(names, image_size=image_size, channels=channels, labelled=True, several=True)

    def choose_labels(self, splits: dict[str, Dataset]) -> dict[str, Dataset]:
        """The splits with those images alone whose labels are used."""
        train, val = splits["train"], splits["val"]
        chosen = {"train": train.subset(few_labels(strata(train), self.label_fraction, self.seed))}
        if self.val_labels is not None:
            chosen["val"] = val.subset(balanced(strata(val), self.val_labels, self.seed))
        return splits | chosen


def strata(dataset: Dataset) -> Tensor:
    """The classes (N,) that a part of the images keeps the ratios of: one for all where an image has not one class."""
    labels = dataset.labels
    return torch.zeros(len(dataset), dtype=torch.long) if labels is None or labels.ndim == 2 else labels


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(RunSettings):
    """What pretraining and fine-tuning share."""

    heading = "training"
    resumes = True
    batch_range = (64, 512)  # of the default
    warmup_epochs: float | None = setting(None, "the learning rate rises in them (default: a twentieth of --epochs)")
    max_minutes: float | None = setting(None, "finish by then: the learning rate follows the clock down to zero")
    pause_after_minutes: float | None = setting(
        None, "save and exit with code 75 then; the same command goes on, and ends in the same weights", free=True
    )
    batch_size: int | None = setting(
        None, "images a step, over all processes (default: 512; of fewer than 8,192 training images a sixteenth of "
        "them, as a power of two, but at least 64)", positive=True,
    )  # fmt: skip
    base_lr: float | None = setting(
        None, "learning rate = base_lr x batch_size / 256 (default: what makes it 2e-3 at batch size 512, and lets it "
        "change with the root of the batch size)",
    )  # fmt: skip
    optimizer: Literal["adamw", "muon"] = setting("adamw", "muon: for the matrices, and AdamW for the rest")
    weight_decay: float = setting(0.05, "of matrices, decoupled")
    clip_grad: float | None = setting(None, "largest norm of the gradient (default: no limit)")
    gradient_accumulation_steps: int = setting(1, "micro-batches a step", positive=True)
    gradient_checkpointing: bool = setting(False, "less memory for more computing", free=True)
    compile: bool | None = setting(
        None, "torch.compile the model: half a minute at the start, faster steps on a GPU (default: where steps are "
        f"CUDA graphs, in runs of {WORTH_COMPILING:,} steps and {WORTH_MINUTES:g} minutes or more)"
    )  # fmt: skip
    cuda_graph: bool | None = setting(
        None, "launch each step as one CUDA graph (default: a ViT's, on one GPU)", free=True
    )
    deterministic: bool = setting(False, "meant to give the same bits each time on a GPU as well, where that is slower")
    log_every: int = setting(
        20, "steps between lines of metrics.jsonl and points of the curves", group="watching", free=True, positive=True
    )
    log_with: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = setting(
        ("tensorboard",), "one or several; MLflow's store is in --output-dir, or at MLFLOW_TRACKING_URI",
        group="watching", free=True,
    )  # fmt: skip
    checkpoint_minutes: float = setting(5.0, "minutes between checkpoints", group="watching", free=True)

    def resolve(self) -> Self:
        """See `RunSettings.resolve`."""
        require_installed(self.log_with)
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise InputError(f"max_minutes {self.max_minutes:g} is not above 0: leave it out for no limit")
        return super().resolve()

    def warmup_of(self, epochs: int) -> float:
        """What ratio of so many epochs is warm-up. Raises InputError for more than all."""
        if self.warmup_epochs is None:
            return WARMUP
        if not 0 <= self.warmup_epochs < epochs:
            raise InputError(f"warmup_epochs {self.warmup_epochs:g} is not within 0 and the {epochs} epochs")
        return self.warmup_epochs / epochs

    def create_accelerator(self) -> Accelerator:
        """Accelerate, with the run's precision and gradient accumulation."""
        precision = settle_precision(self.mixed_precision)
        accelerator = create_accelerator(precision, gradient_accumulation_steps=self.gradient_accumulation_steps)
        if self.cuda_graph and (missing := self.missing_for_graphs(accelerator)):
            raise InputError(f"cuda_graph needs {' and '.join(missing)}: leave cuda_graph out")
        return accelerator

    def missing_for_graphs(self, accelerator: Accelerator) -> list[str]:
        """What a run would need for its steps to be CUDA graphs, and does not have."""
        obstacles = {
            "a GPU": accelerator.device.type != "cuda",
            "one process": accelerator.num_processes > 1,
            "gradient_accumulation_steps 1": self.gradient_accumulation_steps > 1,
            "mixed_precision bf16 or no": accelerator.scaler is not None,
            "no gradient_checkpointing": self.gradient_checkpointing,
        }
        return [name for name, found in obstacles.items() if found]

    def uses_graphs(self, accelerator: Accelerator, *, is_vit: bool) -> bool:
        """Whether steps are CUDA graphs: as asked, or else where they have been tried."""
        return is_vit and not self.missing_for_graphs(accelerator) if self.cuda_graph is None else self.cuda_graph

    def compiles(self, accelerator: Accelerator, *, is_vit: bool, steps: int) -> bool:
        """Whether a run of so many steps compiles its model: as asked, or else where that was faster in all."""
        if self.compile is not None:
            return self.compile
        long = steps >= WORTH_COMPILING and (self.max_minutes is None or self.max_minutes >= WORTH_MINUTES)
        return long and self.uses_graphs(accelerator, is_vit=is_vit) and can_compile(accelerator.device)

    def run_options(self) -> dict:
        """Further arguments of `Run`."""
        names = ("log_every", "log_with", "checkpoint_minutes", "pause_after_minutes", "gradient_checkpointing")
        return {name: getattr(self, name) for name in names}

    def choose_batch_size(self, dataset: Dataset) -> int:
        """As asked, or else one that gives an epoch of few images some steps."""
        return self.batch_size or batch_for(len(dataset), self.batch_range)

    def plan_batches(
        self, accelerator: Accelerator, dataset: Dataset, *, batch_size: int, first_epoch: int = 0,
        seed: int | None = None,
    ) -> tuple[int, Callable[..., Iterator[list[Batch]]]]:  # fmt: skip
        """Steps in an epoch, and a function of `start_step` that gives this process's part of each step's batch.

        `seed` is for a second stream of batches; the first has the run's own.

        Raises InputError if the batch does not fit the dataset, or does not divide among processes and micro-batches.
        """
        parts = split_batch(batch_size, accelerator.num_processes * self.gradient_accumulation_steps)
        return count_steps(dataset, batch_size), partial(
            step_batches, dataset, batch_size=batch_size, device=accelerator.device,
            seed=self.seed if seed is None else seed,
            parts=parts[accelerator.process_index :: accelerator.num_processes], num_workers=self.num_workers,
            first_epoch=first_epoch,
        )  # fmt: skip


def peak_rate(base_lr: float | None, batch_size: int) -> float:
    """The highest learning rate: base_lr x batch_size / 256, as papers give it; or without one the rate of the recipes
    at 512, scaled by the root of the batch size, as fits Adam (Malladi et al., arXiv 2205.10287).

    >>> [peak_rate(base_lr, batch_size) for base_lr in (1e-3, None) for batch_size in (512, 128)]
    [0.002, 0.0005, 0.002, 0.001]
    """
    return PEAK * (batch_size / 512) ** 0.5 if base_lr is None else base_lr * batch_size / 256


def batch_for(images: int, limits: tuple[int, int]) -> int:
    """How many of so many images are in a step: a sixteenth, within limits that are powers of two, as it is itself.

    >>> [batch_for(images, (64, 512)) for images in (50, 400, 5_000, 48_000)]
    [32, 64, 256, 512]
    """
    least, most = limits
    sixteenth, all_of_them = (2 ** (max(count, 1).bit_length() - 1) for count in (images // 16, images))
    return min(max(sixteenth, least), most, all_of_them)


@dataclass(frozen=True, kw_only=True)
class EncoderSettings(Settings):
    """Which encoder to build; None is what the model's constructor takes, or what the weights have."""

    heading = "model"
    encoder: str | None = setting(None, constructor=True)
    image_size: Size | None = setting(
        None, "pixels, or height and width (default: the data's, or the weights'; folders: 32)"
    )
    patch_size: Size | None = setting(None, constructor=True)
    in_channels: int | None = setting(
        None, "of files: 1 (grey), 3, or as many as multi-band TIFF or .npy files have (default: 3, or the weights')"
    )
    embed_dim: int | None = setting(None, constructor=True)
    depth: int | None = setting(None, constructor=True)
    num_heads: int | None = setting(None, constructor=True)

    @property
    def constructor_settings(self) -> dict[str, Any]:
        """Those that are arguments of a family's constructor, as given: None is its default."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.metadata.get("constructor")}


def keywords_of(run: Callable[[S], R], settings: type[S]) -> Callable[..., R]:
    """A command as a Python function: the settings' fields are its keywords, the positional one may come first."""

    def call(*args, **keywords) -> R:
        return run(settings(**signature.bind(*args, **keywords).arguments))

    ordered = sorted(fields(settings), key=lambda f: not f.metadata.get("positional"))
    signature = inspect.Signature([parameter_of(f) for f in ordered])
    update_wrapper(call, run)
    call.__name__ = call.__qualname__ = run.__module__.rsplit(".", 1)[-1]
    call.__signature__ = signature  # type: ignore[attr-defined]
    arguments = "".join(f"    {f.name}: {f.metadata['help']}\n" for f in ordered if f.metadata["help"])
    call.__doc__ = f"{inspect.cleandoc(run.__doc__ or '')}\n\nArgs:\n{arguments}"
    return call


def parameter_of(f: Field) -> inspect.Parameter:
    """A field as a parameter of a function."""
    positional = f.metadata.get("positional")
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if positional else inspect.Parameter.KEYWORD_ONLY
    default = inspect.Parameter.empty if f.default is MISSING else f.default
    return inspect.Parameter(f.name, kind, default=default, annotation=f.type)
