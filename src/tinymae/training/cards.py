"""Model cards: the README.md of a folder of weights, made from what its run recorded."""

import hashlib
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..files import last_part, read_json, write_bytes

SCORES = {
    "accuracy_test": "accuracy, test", "accuracy_val": "accuracy, validation", "probe_test": "linear probe, test",
    "probe_val": "linear probe, validation", "knn_test": "k-NN, test", "knn_val": "k-NN, validation",
    "mean_ap_test": "mean average precision, test", "mean_ap_val": "mean average precision, validation",
}  # fmt: skip
LENGTHS = ("epochs", "contrast_epochs", "warmup_epochs")  # of a training
PICTURES = ("reconstructions.png", "samples.png", "confusion_matrix.png", "curves.png")
# Width and number of blocks, by the second word of timm's name.
VITS = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24), "huge": (1280, 32)}
HUB_DATASETS = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "mnist": "ylecun/mnist"}


def write_card(
    folder: str | Path, *, run: str | Path | None = None, remarks: str = "",
    scores: dict[str, float] | None = None, licence: str | None = None, results: dict | None = None,
    defaults: dict | None = None,
) -> Path:  # fmt: skip
    """Write README.md beside weights: data, recipe, cost, scores, images, checksum and licence. Returns its path.

    `run` is the folder whose args.json and results.json state these (the weights' own by default), and `results` what
    its results.json is going to say; `remarks` is a paragraph of one's own, `scores` replaces the run's, in percent,
    `licence` is that of the weights ("MIT"). Settings that are at their value in `defaults` are left out. The head is
    metadata for the Hugging Face Hub, which shows the scores that name a split: "linear probe, test".

    Raises InputError if a file is missing or damaged.
    """
    folder, run = Path(folder), Path(run or folder)
    config, recorded = read_json(folder / "config.json"), read_json(run / "args.json")
    results = read_json(run / "results.json") if results is None else results
    settings = with_settled(recorded["arguments"], results)
    classifies = "label_names" in config
    sources = settings["data"] if isinstance(settings["data"], list) else [settings["data"]]
    data, name = ", ".join(last_part(str(each)) for each in sources), folder.absolute().name
    certainty = describe_certainty(results) if scores is None else {}  # that of other scores is not known
    scores = scores or {name: results[key] for key, name in SCORES.items() if key in results}
    stated = f" {licence} licence." if licence else ""
    given = {name: value for name, value in settings.items() if value != (defaults or {}).get(name)}
    checksum = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    parts = [
        front_matter(name, data=data, classifies=classifies, scores=scores, licence=licence),
        f"# {name}",
        f"{describe_model(config)}, trained on {data} with tinymae.{stated}" + (f"\n{remarks}" if remarks else ""),
        usage(name if folder.is_absolute() else folder.as_posix(), classifies=classifies),
        score_table(scores, certainty),
        cost(results, recorded),
        list_settings({key: value for key, value in given.items() if value not in (None, "", data)}),
        *(f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in PICTURES if (folder / name).exists()),
        f"sha256 of model.safetensors: `{checksum}`",
    ]
    write_bytes(folder / "README.md", ("\n\n".join(part for part in parts if part) + "\n").encode())
    return folder / "README.md"


def describe_model(config: dict) -> str:
    """What a config.json is of, in words.

    >>> describe_model({"architecture": "vit_tiny_patch16_224", "model_args": {
    ...     "img_size": [32, 32], "patch_size": [4, 4], "embed_dim": 192, "depth": 12}})
    'ViT-Tiny, patches of 4x4, images of 32x32 (timm `vit_tiny_patch16_224` with these sizes)'
    """
    kind: str = config["architecture"]
    sizes: dict = config.get("model_args") or config.get("autoencoder") or config
    encoder: str = kind if "model_args" in config else sizes.get("encoder") or ""
    if is_vit := encoder.startswith("vit_"):
        words = ("" if kind == encoder else "Masked autoencoder of a ") + describe_vit(encoder, sizes)
    else:
        words = kind + (f" on the encoder of a {sizes['architecture']}" if sizes is config.get("autoencoder") else "")
    if patch := sizes.get("patch_size"):
        words += f", patches of {by(patch)}"
    if image := sizes.get("img_size") or sizes.get("image_size"):
        words += f", images of {by(image)}"
    return words + (f" (timm `{encoder}`{' with these sizes' if is_vit else ''})" if encoder else "")


def describe_vit(encoder: str, sizes: dict) -> str:
    """The common name of a ViT, or its width and number of blocks where it has none."""
    usual = VITS.get(encoder.split("_")[1], (None, None))
    width, blocks = sizes.get("embed_dim") or usual[0], sizes.get("depth") or usual[1]
    if not (width and blocks):
        return encoder
    names = [name for name, shape in VITS.items() if shape == (width, blocks)]
    return f"ViT-{names[0].capitalize()}" if names else f"ViT of {blocks} block{'s'[: blocks != 1]}, {width} wide"


def by(size: Any) -> str:
    """Height and width, or one number for both, as people write them."""
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return f"{height}x{width}"


def list_settings(settings: dict) -> str:
    """Settings as Markdown, folded up; nothing if there are none."""
    lines = [f"- `{name}`: {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in settings.items()]
    if not lines:
        return ""
    head = "<details>\n<summary>Settings that were given, or followed from the images</summary>"
    return "\n".join([head, "", *lines, "", "</details>"])


def with_settled(settings: dict, results: dict) -> dict:
    """The settings of a run, and in place of those that were left open what its results say of them.

    Those do not say the lengths that were planned for a run which the clock ends: what it had is its cost.
    """
    leave = LENGTHS if settings.get("max_minutes") else ()
    found = {name: results.get(name) for name, value in settings.items() if value is None and name not in leave}
    return settings | found


def front_matter(name: str, *, data: str, classifies: bool, scores: dict[str, float], licence: str | None) -> str:
    """The YAML head of a card. Scores without a split in their name are controls, or of other weights."""
    task = "image-classification" if classifies else "image-feature-extraction"
    dataset = HUB_DATASETS.get(data)
    found = [
        EvalResult(
            task_type=task, dataset_type=dataset or data, dataset_name=data, dataset_split=split[1],
            metric_type="mAP" if "average precision" in score else "accuracy", metric_name=score,
            metric_value=round(float(value), 2),
        )
        for score, value in scores.items()
        if (split := re.search(r", (test|validation)\b", score))
    ]  # fmt: skip
    metadata = ModelCardData(
        library_name="tinymae", pipeline_tag=task, tags=["tinymae", data], license=licence and licence.lower(),
        datasets=[dataset] if dataset else None, eval_results=found or None, model_name=name if found else None,
    )  # fmt: skip
    return f"---\n{metadata.to_yaml()}\n---"


def usage(name: str, *, classifies: bool) -> str:
    """How the weights are loaded and called."""
    if classifies:
        lines = f'classifier = tinymae.load("{name}")  # classifier(images): logits; .classes'
    else:
        lines = f'model = tinymae.load("{name}")  # model.encode(images), model.reconstruct(images)'
    return f"```python\nimport tinymae\n\n{lines}\n```"


def cost(results: dict, recorded: dict) -> str:
    """What the training took, and on what; nothing if the run counted nothing."""
    counts = {key: results.get(key) for key in ("epochs", "steps", "minutes")}
    told = ", ".join(f"{count:.4g} {key}" for key, count in counts.items() if isinstance(count, int | float))
    return f"Cost: {told} on {recorded['device']}, torch {recorded['versions']['torch']}." if told else ""


def describe_certainty(results: dict) -> dict[str, str]:
    """Of each score with an interval: how many images it is of, and the interval, as cells of `score_table`.

    >>> describe_certainty({"accuracy_test": 50.0, "accuracy_test_interval": [25.38, 74.62], "num_test_labels": 12})
    {'accuracy, test': ' 12 | 25.4 to 74.6 |'}
    """
    return {
        name: " {:,} | {:.1f} to {:.1f} |".format(results[f"num_{key.split('_')[-1]}_labels"], *interval)
        for key, name in SCORES.items()
        if (interval := results.get(f"{key}_interval"))
    }


def score_table(scores: dict[str, float], certainty: dict[str, str]) -> str:
    """Scores in percent as Markdown, with their certainty where that of any is known; nothing if there are none."""
    rows = [
        f"| {name} | {value:.2f} |{certainty.get(name, '  |  |' * bool(certainty))}" for name, value in scores.items()
    ]
    head = ["| score | % |", "|---|---|"]
    if certainty:
        head = ["| score | % | images | 95 % interval |", "|---|---|---|---|"]
    return "\n".join([*head, *rows]) if rows else ""
