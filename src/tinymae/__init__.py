"""tinymae: masked autoencoders for small images, built from timm parts.

Names are imported when they are first asked for, so that the command line starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .commands.embed import embed
    from .commands.evaluate import evaluate
    from .commands.export import export
    from .commands.finetune import finetune
    from .commands.inspect import inspect
    from .commands.linear_probe import linear_probe
    from .commands.neighbours import neighbours
    from .commands.predict import predict
    from .commands.pretrain import pretrain
    from .commands.results import Result
    from .data.load import load_dataset
    from .data.unreadable import UnreadableImage
    from .errors import Diverged, InputError, Stopped
    from .evaluation.explain import anomaly_map, attention_maps
    from .evaluation.scikit_learn import Features
    from .interop.huggingface import classifier_from_transformers, from_transformers, to_transformers
    from .interop.images import load_image
    from .interop.load import load
    from .interop.official import from_official, to_official
    from .interop.timm import export_timm
    from .models.adapt import adapt
    from .models.classifier import Classifier, build_classifier
    from .models.mae import MAEOutput, MaskedAutoencoder
    from .models.masking import patchify, random_mask, unpatchify
    from .models.outputs import Reconstruction
    from .study.compare import compare

__version__ = "0.2.0"
__all__ = [
    "Classifier",
    "Diverged",
    "Features",
    "InputError",
    "MAEOutput",
    "MaskedAutoencoder",
    "Reconstruction",
    "Result",
    "Stopped",
    "UnreadableImage",
    "adapt",
    "anomaly_map",
    "attention_maps",
    "build_classifier",
    "classifier_from_transformers",
    "compare",
    "embed",
    "evaluate",
    "export",
    "export_timm",
    "finetune",
    "from_official",
    "from_transformers",
    "inspect",
    "linear_probe",
    "load",
    "load_dataset",
    "load_image",
    "neighbours",
    "patchify",
    "predict",
    "pretrain",
    "random_mask",
    "to_official",
    "to_transformers",
    "unpatchify",
]
HOMES = {
    "commands.embed": ["embed"],
    "commands.evaluate": ["evaluate"],
    "commands.export": ["export"],
    "commands.finetune": ["finetune"],
    "commands.inspect": ["inspect"],
    "commands.linear_probe": ["linear_probe"],
    "commands.neighbours": ["neighbours"],
    "commands.predict": ["predict"],
    "commands.pretrain": ["pretrain"],
    "commands.results": ["Result"],
    "data.load": ["load_dataset"],
    "data.unreadable": ["UnreadableImage"],
    "errors": ["Diverged", "InputError", "Stopped"],
    "evaluation.explain": ["anomaly_map", "attention_maps"],
    "evaluation.scikit_learn": ["Features"],
    "interop.huggingface": ["classifier_from_transformers", "from_transformers", "to_transformers"],
    "interop.images": ["load_image"],
    "interop.load": ["load"],
    "interop.official": ["from_official", "to_official"],
    "interop.timm": ["export_timm"],
    "models.adapt": ["adapt"],
    "models.classifier": ["Classifier", "build_classifier"],
    "models.mae": ["MAEOutput", "MaskedAutoencoder"],
    "models.masking": ["patchify", "random_mask", "unpatchify"],
    "models.outputs": ["Reconstruction"],
    "study.compare": ["compare"],
}


def __getattr__(name: str):
    for module, names in HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
