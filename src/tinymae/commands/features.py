"""What commands that work on frozen features share: settings, images of several splits in one row, their features."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from typing_extensions import Self

from ..data.batches import pick
from ..data.datasets import Dataset, StreamedDataset, require_channels
from ..data.images import Depth
from ..errors import InputError, list_some
from ..evaluation.figures import Channels, Limits, display_limits, viewable
from ..evaluation.metrics import kind_of, map_dataset
from ..evaluation.sheets import SIDE
from ..interop.load import Model
from ..models.classifier import Classifier, feature_function
from ..tensors import pick_pixels
from ..training.device import choose_attention
from ..training.inputs import names_of
from ..training.processes import gather_parts, on_main, print_once
from .fields import Several, as_python, setting
from .settings import Pool, SheetSettings

LOOKED_AT = 256  # images whose contrast is compared with that of the weights' own
UNLIKE = 2.5  # times it, or standard deviations from its mean, in a channel
M = TypeVar("M", bound=nn.Module)
W = TypeVar("W", bound=Model)
Split = Literal["train", "val", "test", "all"]

LIMITS_OF = 64  # images that what is seen as black and white is found by


@dataclass(frozen=True, kw_only=True)
class WeightsSettings(SheetSettings):
    """What commands that put finished weights to work share."""

    heading = "weights"
    weights: str | Path | Model = setting(help="what a run gave: a folder, or a Hub id")
    batch_size: int = setting(256, "images in a forward pass", least=1)

    @property
    def computing(self) -> dict[str, Any]:
        """Images in a forward pass, and the processes that read them, as `map_together` takes it."""
        return {"batch_size": self.batch_size, "num_workers": self.num_workers}

    def begin(self, load: Callable[[str | Path | Model], W]) -> tuple[Self, Accelerator, W]:
        """These settings, resolved and with images read as those of the weights, the run's devices, and the weights."""
        settings = self.resolve()
        accelerator = settings.create_accelerator()
        model = place(load(settings.weights), accelerator)
        return settings.reading_like(model), accelerator, model


@dataclass(frozen=True, kw_only=True)
class JoinedSettings(WeightsSettings):
    """What those share that work on one row of images, of any splits."""

    split: Several[Split] = setting(("train", "val", "test"), "which images: one or several", group="data")

    def resolve(self) -> Self:
        """See `RunSettings.resolve`."""
        if not self.split:
            raise InputError(f"split () is empty: give one or several of {', '.join(get_args(Split))}")
        if "all" in self.split and len({*self.split}) > 1:
            raise InputError(f"split {' '.join(self.split)}: all has the images of the others; give it alone, or them")
        return super().resolve()

    def open_images(
        self, model: Model, accelerator: Accelerator, *, several: bool = False, unlabelled: bool = False,
        grouped: bool = False,
    ) -> "JoinedSplits":  # fmt: skip
        """The splits' images, sized for the model; labels, if an image may have `several`, only where asked for, and of
        `unlabelled` images none. Those that are `grouped` have their groups without being split, too.
        """
        options = {"image_size": model.image_size, "channels": model.in_channels, "present": len(self.split) > 1}
        loaded = self.load_splits(self.split, **options, several=several, unlabelled=unlabelled, grouped=grouped)
        if not loaded:
            raise InputError(f"split {' '.join(self.split)}: data {self.data_name} have none of them; give --split all")
        require_fit(model, next(iter(loaded.values())))  # all are of one source
        readable = {name: leave_out_unreadable(dataset, accelerator) for name, dataset in loaded.items()}
        on_device = {name: dataset.to(accelerator.device) for name, dataset in readable.items()}
        reopen = partial(replace(self, describe=False).load_splits, memory_limit_gb=0, unlabelled=unlabelled)
        return JoinedSplits(on_device, self.show_channels, reopen)


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(JoinedSettings):
    """Which features of the images."""

    heading = "features"
    pool: Pool | None = setting(
        None, "the mean of the patch tokens, or the class token (default: avg, or a classifier's own)"
    )
    layers: Several[int] = setting((-1,), "blocks whose features stand side by side, from 0 or from -1 backwards")

    def __post_init__(self) -> None:
        """In Python, a number above 0 is how many of the last blocks, as `encode` takes it; one below is a block."""
        layers = as_python(self.layers)
        if type(layers) is int and layers >= 0:
            if layers == 0:
                raise InputError("layers 0: a number is how many of the last; the first of them is a list, [0]")
            object.__setattr__(self, "layers", tuple(range(-layers, 0)))
        super().__post_init__()

    def encoder(self, model: Model, accelerator: Accelerator) -> Callable[[Tensor], Tensor]:
        """The model's function images (B, C, H, W) -> features (B, F)."""
        encode = feature_function(model, pool=self.pool, layers=self.layers)
        with torch.no_grad():  # layers that it does not have are said before anything is read
            encode(torch.zeros(1, model.in_channels, *model.image_size, dtype=torch.uint8, device=accelerator.device))
        return encode


def place(model: M, accelerator: Accelerator) -> M:
    """A copy of the model on the run's device, in evaluation mode and float32: a given one stays as it was."""
    model = copy.deepcopy(model).to(accelerator.device, torch.float32).eval()
    choose_attention(model, accelerator)
    return model


def leave_out_unreadable(dataset: Dataset, accelerator: Accelerator) -> Dataset:
    """Without the images that cannot be read, where results are of each image: in training another one of the class
    stands in for one of those that are read batch by batch.
    """
    if not (isinstance(dataset, StreamedDataset) and dataset.skip_unreadable):
        return dataset
    return dataset.subset(on_main(accelerator, dataset.find_readable))


def require_fit(model: Model, dataset: Dataset) -> None:
    """Raises InputError unless the images have the weights' channels. Says so where images in memory have quite other
    values than those of training: read with another range, they look black or white to the weights.
    """
    require_channels(dataset, model.in_channels)
    if isinstance(dataset, StreamedDataset):  # nothing is decoded twice
        return
    some = pick(dataset, LOOKED_AT)
    std, mean = torch.std_mean(model.normalise(some[torch.arange(len(some))][0]), dim=(0, 2, 3))  # in training 1 and 0
    odd = ((std < 1 / UNLIKE) | (std > UNLIKE) | (mean.abs() > UNLIKE)).nonzero()[:, 0]
    if len(odd):
        where = f"channel{'s'[: len(odd) != 1]} {list_some([*map(str, odd.tolist())])}"
        print_once(
            f"data {dataset.name}: in {where} the images have {std[odd].mean():.2g} times the contrast of those that "
            f"the weights were trained on, and a mean that is {mean[odd].mean():+.2g} of their standard deviations "
            "from theirs: were these read with another pixel_range?"
        )


def remark_on_known(model: Model, dataset: Dataset) -> None:
    """Say so if images that are to judge the weights, all or held out, have names of files that were trained on."""
    if dataset.split == "train" or not dataset.of_files:
        return
    if known := len(names_of(model.source, "train").intersection(dataset.names)):
        count = f"{known:,} of the {len(dataset):,} {kind_of(dataset.split)}images"
        if not isinstance(model, Classifier):
            print_once(
                f"the encoder was pretrained on {count}, if names tell, without their labels: for a strict test, "
                "pretrain on the same splits, the data's own or by --val-fraction, --test-fraction or --group-column"
            )
            return
        print_once(
            f"{count} are called like some that the weights were trained on: if they are the same, "
            f"{'give --split test, and ' * (dataset.split == 'all')}split alike in training and here (--group-column, "
            "--val-fraction, ...)"
        )


class JoinedSplits:
    """Splits of one data set as a single row of images, in the given order.

    Attributes:
        parts: the splits by name.
        classes: the names of the labels; of an unlabelled set none.
        labels: int64 (N,) on the CPU, -1 where there is none; of several an image uint8 (N, classes).
        channels: those to look at, see `viewable`.
        reopen: what opens the splits of a list again, at a given `image_size` with so many `channels`.
    """

    def __init__(
        self, parts: dict[str, Dataset], channels: Channels | None = None,
        reopen: Callable[..., dict[str, Dataset]] | None = None,
    ):  # fmt: skip
        self.parts, self.channels, self.reopen = parts, channels, reopen
        self.classes = next((part.classes for part in parts.values() if part.labels is not None), [])
        self.all_names = [part.names for part in parts.values()]
        self.starts = torch.tensor([0, *(len(part) for part in parts.values())]).cumsum(0)
        self.labels = torch.cat([
            torch.full((len(part),), -1) if part.labels is None else part.labels.cpu() for part in parts.values()
        ])  # fmt: skip

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Images uint8 (B, C, H, W) at `indices` (B,)."""
        where = self.find(indices)
        places = [(where == number).nonzero()[:, 0] for number in range(len(self.parts))]
        parts = zip(self.parts.values(), self.starts, places, strict=False)
        images = torch.cat([part[indices[here] - start][0] for part, start, here in parts if len(here)])
        return pick_pixels(images, torch.cat(places).argsort().to(images.device))  # not written into: uint16 cannot be

    def view(self, indices: Tensor) -> Tensor:
        """The same to look at: RGB, uint8 (B, 3, H, W) on the CPU, all stretched alike."""
        return viewable(self[indices].cpu(), self.channels, self.limits)

    def look_closer(self, indices: Tensor) -> Tensor:
        """The same for a person to recognise: files are read again, at the size of a sheet's tile if that is larger."""
        if self.larger is self:
            return self.view(indices)
        return self.larger.view(torch.tensor([self.larger.place_of[name] for name, *_ in self.about(indices)]))

    @cached_property
    def larger(self) -> "JoinedSplits":
        """All images of these splits at the size of `look_closer`; itself where that is no other."""
        size = self.tile_shape[1:]
        if size == self.image_shape[1:] or self.reopen is None or not all(p.of_files for p in self.parts.values()):
            return self
        return JoinedSplits(self.reopen([*self.parts], image_size=size, channels=self.image_shape[0]), self.channels)

    @cached_property
    def place_of(self) -> dict[str, int]:
        """Where the image of each name is."""
        return {name: row for row, name in enumerate(itertools.chain(*self.all_names))}

    @property
    def tile_shape(self) -> tuple[int, int, int]:
        """`image_shape`, enlarged to fill a sheet's tile."""
        channels, *sides = self.image_shape
        height, width = (round(max(1.0, SIDE / max(sides)) * side) for side in sides)
        return channels, height, width

    @cached_property
    def limits(self) -> Limits:
        """What is seen as black and white, by some of the images."""
        some = torch.linspace(0, len(self) - 1, min(len(self), LIMITS_OF)).long()
        return display_limits(self[some], self.channels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        return next(iter(self.parts.values())).image_shape

    @property
    def depth(self) -> Depth:
        """uint8 or uint16"""
        return next(iter(self.parts.values())).depth

    @property
    def groups(self) -> list[str]:
        """Of each image, if it has one."""
        return [*itertools.chain(*(part.groups for part in self.parts.values()))]

    def find(self, indices: Tensor) -> Tensor:
        """The number of the split (B,) that each of `indices` (B,) lies in."""
        return torch.searchsorted(self.starts, indices, right=True) - 1

    def about(self, indices: Tensor) -> list[tuple[str, str, str | None]]:
        """Of each image its name, which is its path or its row, its split, and its class or None."""
        splits, starts = list(self.parts), self.starts.tolist()
        rows = zip(indices.tolist(), self.find(indices).tolist(), self.labels[indices].tolist(), strict=True)
        return [
            (self.all_names[part][row - starts[part]], splits[part], self.classes[label] if label >= 0 else None)
            for row, part, label in rows
        ]


def whole_batches(indices: Tensor, batch_size: int, processes: int) -> list[Tensor]:
    """Each process's part of `indices`, in order, cut where batches of all of them end.

    >>> [part.tolist() for part in whole_batches(torch.arange(7), 2, 2)]
    [[0, 1, 2, 3], [4, 5, 6]]
    """
    batches = indices.split(batch_size)
    ends = [len(batches) * number // processes for number in range(processes + 1)]
    parts = (batches[start:end] for start, end in itertools.pairwise(ends))
    return [torch.cat(part) if part else indices[:0] for part in parts]


def map_together(
    function: Callable[[Tensor], Tensor], dataset: Dataset, accelerator: Accelerator, *,
    batch_size: int = 256, at: Tensor | None = None, num_workers: int = 2, desc: str | None = None,
) -> Tensor:  # fmt: skip
    """`function` of the images at `at` (N,), or of all: (N, ...) in float32 on the CPU of every process.

    Each process computes a part of the batches that one process would have, so that the bits are the same.
    """
    indices = torch.arange(len(dataset)) if at is None else at
    parts = whole_batches(indices, batch_size, accelerator.num_processes)
    own = parts[accelerator.process_index]
    with accelerator.autocast():
        rows = map_dataset(
            function, dataset, at=own if len(own) else indices[:1], device=accelerator.device, batch_size=batch_size,
            num_workers=num_workers, desc=desc if accelerator.is_main_process else None,
        )[: len(own)]  # fmt: skip  # without a batch of its own it still learns the width
    return gather_parts(accelerator, rows.flatten(1), parts).unflatten(1, rows.shape[1:])


def map_images(
    function: Callable[[Tensor], Tensor], images: JoinedSplits, accelerator: Accelerator, *, at: Tensor | None = None,
    desc: str = "features", **options: Any,
) -> Tensor:  # fmt: skip
    """`map_together` of the images at sorted `at` (N,), or of all."""
    indices, found = torch.arange(len(images)) if at is None else at, []
    for start, part in zip(images.starts, images.parts.values(), strict=False):
        here = indices[(indices >= start) & (indices < start + len(part))] - start
        if len(here):
            found.append(map_together(function, part, accelerator, at=here, desc=desc, **options))
    return torch.cat(found)


def split_features(
    function: Callable[[Tensor], Tensor], splits: dict[str, Dataset], accelerator: Accelerator, **options: Any
) -> dict[str, Tensor]:
    """`map_together` of each split's images, on the device."""
    return {
        name: map_together(function, split, accelerator, desc=f"features of {name}", **options).to(accelerator.device)
        for name, split in splits.items()
    }
