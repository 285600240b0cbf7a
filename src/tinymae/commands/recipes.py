"""Recipes of fine-tuning: which settings belong together, and what they come to on the images at hand."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from accelerate import Accelerator
from typing_extensions import Self

from ..data.batches import count_steps
from ..data.datasets import Dataset, has_colour, has_several, no_colour
from ..errors import InputError
from .families import show
from .fields import setting
from .learning import LONG_ON_CPU, batch_for
from .unlabelled import Stage, UnlabelledSettings

# What settings that are left open come to. Strong made the released classifier, in minutes of a GPU. Light is for an
# hour of a CPU and many labels: it sees more images in the time, and learns more from each.
EPOCHS, LEAST_STEPS = 80, 1_500
RECIPES: dict[str, dict[str, Any]] = {
    "strong": {
        "largest_batch": 512, "patch_drop": 0.25, "layer_decay": 0.9, "trivial_augment": True, "random_erasing": 0.25,
        "mixup": 0.8, "cutmix": 1.0, "final_ratio": 3 / 16,
    },
    "light": {
        "largest_batch": 128, "patch_drop": 0.5, "layer_decay": 0.75, "trivial_augment": False, "random_erasing": 0.0,
        "mixup": 0.0, "cutmix": 0.0, "final_ratio": 0.0,
    },
}  # fmt: skip


def by_recipe(name: str) -> str:
    """A default as help texts say it."""
    return "; ".join(f"{recipe}: {show(values[name])}" for recipe, values in RECIPES.items())


@dataclass(frozen=True, kw_only=True)
class RecipeSettings(UnlabelledSettings):
    """Lengths, regularisation and augmentation of fine-tuning: None follows from the recipe, or from the images."""

    recipe: Literal["strong", "light"] = setting(
        "strong", "what else is not given follows from this: strong regularisation and augmentation, or light ones for "
        "an hour of a CPU and many labels", group="training",
    )  # fmt: skip
    epochs: int | None = setting(
        None, f"passes over the labelled images (default: {EPOCHS}; of few images what makes {LEAST_STEPS:,} steps)",
        group="training", least=1,
    )  # fmt: skip
    batch_size: int | None = setting(
        None, f"labelled images a step, over all processes (default: {by_recipe('largest_batch')}; of few images a "
        "sixteenth of them, as a power of two, but at least 32)", group="training", least=1,
    )  # fmt: skip

    layer_decay: float | None = setting(
        None, f"learning rate of a ViT's layer over that of the one above (default: {by_recipe('layer_decay')}; 1 from "
        "scratch)", group="regularisation", above=0, most=1,
    )  # fmt: skip
    patch_drop: float | None = setting(
        None, f"ratio of patches a ViT does not see in training (default: {by_recipe('patch_drop')})",
        group="regularisation", least=0, below=1,
    )  # fmt: skip
    mixup: float | None = setting(
        None, "alpha of the Beta distribution that blends two images (arXiv 1710.09412); 0 is off (default: "
        f"{by_recipe('mixup')}; 0 with several labels an image or none)", group="regularisation", least=0,
    )  # fmt: skip
    cutmix: float | None = setting(
        None, "the same, of a rectangle of another image (arXiv 1905.04899; default: "
        f"{by_recipe('cutmix')}; 0 likewise)", group="regularisation", least=0,
    )  # fmt: skip
    drop_path: float = setting(
        0.1, "probability that an image skips a residual branch of a ViT's last block; 0 in its first",
        group="regularisation", least=0, below=1,
    )  # fmt: skip
    label_smoothing: float = setting(
        0.1, "ratio of each target that is spread over all classes", group="regularisation", least=0, below=1
    )
    logit_adjustment: float = setting(
        0.0, "counts mistakes on rare classes more: 1 trains for balanced accuracy, where each class counts alike "
        "(arXiv 2007.07314); probabilities are then those among as many images of each class", group="regularisation",
        least=0,
    )  # fmt: skip
    ema_decay: float = setting(
        0.999, "of the moving average of the weights; 0 is off", group="regularisation", least=0, below=1
    )

    crop_padding: int = setting(4, "pixels", group="augmentation", least=0)
    trivial_augment: bool | None = setting(
        None, f"arXiv 2103.10158 (default: {by_recipe('trivial_augment')}; no unless images are grey or RGB of 8 bits)",
        group="augmentation",
    )  # fmt: skip
    random_erasing: float | None = setting(
        None, f"probability (default: {by_recipe('random_erasing')})", group="augmentation", least=0, most=1
    )
    final_epochs: int | None = setting(
        None, "last ones, on all patches, with crop, flip and turns alone: without --patch-drop, --mixup, --cutmix, "
        "--trivial-augment and --random-erasing (default: 3 of 16; light: 0)", group="augmentation",
    )  # fmt: skip

    def resolve(self) -> Self:
        """See `RunSettings.resolve`; what depends on the images is left to `settle_for`."""
        if self.epochs is not None:
            self.check_lengths(self.epochs)
        self.check_pairs()
        return super().resolve()

    def check_pairs(self) -> None:
        """Raises InputError for batches that mixup and cutmix cannot pair."""
        if (self.batch_size or 0) % 2 and (self.mixup or self.cutmix):
            raise InputError(
                f"batch_size {self.batch_size} is odd, mixup and cutmix pair images: make it even, or both 0"
            )

    def check_images(self, dataset: Dataset) -> None:
        """Raises InputError for given settings that do not go with such images."""
        self.check_shape(dataset)
        if has_several(dataset) and (self.mixup or self.cutmix or self.unlabelled or self.logit_adjustment):
            raise InputError(
                f"data {self.data_name} has several labels an image: leave out mixup, cutmix, unlabelled and "
                "logit_adjustment"
            )
        if self.trivial_augment and not has_colour(dataset):
            raise no_colour("trivial_augment", dataset)

    def check_lengths(self, epochs: int) -> None:
        """Raises InputError for a part that is longer than all the epochs."""
        if not 0 <= (self.final_epochs or 0) < epochs:
            raise InputError(f"final_epochs {self.final_epochs} is not within 0 and {epochs - 1}")
        self.warmup_of(epochs)

    def settle_for(self, train_set: Dataset) -> Self:
        """The recipe's values in place of None, as far as the images allow. Raises InputError for given ones that they
        do not.
        """
        self.check_images(train_set)
        recipe = dict(RECIPES[self.recipe])
        if has_several(train_set) or self.unlabelled:
            recipe |= {"mixup": 0.0, "cutmix": 0.0}
        if not has_colour(train_set):
            recipe["trivial_augment"] = False
        batch = self.batch_size or batch_for(len(train_set), least=32, most=recipe.pop("largest_batch"))
        epochs = self.epochs or max(EPOCHS, math.ceil(LEAST_STEPS / count_steps(train_set, batch)))
        recipe |= {"batch_size": batch, "epochs": epochs, "final_epochs": round(recipe["final_ratio"] * epochs)}
        recipe |= {"eval_every": max(5, round(epochs / 16)), "warmup_epochs": self.warmup_of(epochs) * epochs}
        self.check_lengths(epochs)
        names = [f.name for f in fields(self) if getattr(self, f.name) is None and f.name in recipe]
        settled = replace(self, **{name: recipe[name] for name in names})
        settled.check_pairs()
        return settled

    def plan_stages(self, accelerator: Accelerator, chosen: dict[str, Dataset]) -> tuple[int, list[Stage]]:
        """See `UnlabelledSettings.plan_stages`; the last stage is cut in two where the final epochs begin."""
        steps_per_epoch, stages = super().plan_stages(accelerator, chosen)
        if self.final_epochs:
            assert self.epochs is not None  # settled
            last = stages.pop()
            begin = (self.epochs - self.final_epochs) / self.epochs
            stages += [replace(last, until=begin), replace(last, is_final=True)]
        return steps_per_epoch, stages

    def advise(self, images: int, device: str) -> str | None:
        """What to say before so many images are trained on, if another recipe learns more in the time."""
        if self.recipe == "light" or device != "cpu" or images < LONG_ON_CPU:
            return None
        return f"without a GPU {images:,} images take hours: --recipe light --max-minutes 60 learns more in such a time"

    def without_distortion(self) -> Self:
        """These settings in the final epochs."""
        return replace(self, patch_drop=0.0, mixup=0.0, cutmix=0.0, trivial_augment=False, random_erasing=0.0)
