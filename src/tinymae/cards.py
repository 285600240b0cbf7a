"""Model cards: the README.md of a folder of weights, made from what its run recorded."""

import hashlib
import textwrap
from pathlib import Path

from .files import read_json, write_atomically

SCORES = {
    "accuracy_test": "accuracy, test", "accuracy_val": "accuracy, validation", "probe_test": "linear probe, test",
    "knn_test": "k-NN, test", "knn_val": "k-NN, validation",
}  # fmt: skip
PICTURES = ("reconstructions.png", "samples.png", "confusion_matrix.png", "curves.png")


def write_card(
    folder: str | Path, *, run: str | Path | None = None, title: str | None = None, remarks: str = "",
    scores: dict[str, float] | None = None, licence: str | None = None,
) -> Path:  # fmt: skip
    """Write README.md beside weights: data, recipe, cost, scores, pictures, checksum and licence. Returns its path.

    `run` is the folder whose args.json and results.json tell these (the weights' own by default); `remarks` is a
    paragraph of one's own, `scores` replaces the run's, in percent, `licence` is that of the weights ("MIT"). The head
    is metadata for the Hugging Face Hub.

    Raises InputError if a file is missing or damaged.
    """
    folder, run = Path(folder), Path(run or folder)
    config, recorded, results = (
        read_json(folder / "config.json"), read_json(run / "args.json"), read_json(run / "results.json")
    )  # fmt: skip
    settings, classifies = recorded["arguments"], "label_names" in config
    data = Path(str(settings["data"])).name
    task = "image-classification" if classifies else "image-feature-extraction"
    if classifies:
        use = f'classifier = tinymae.load_classifier("{folder.name}")  # classifier(images): logits; .classes'
    else:
        use = f'model = tinymae.load_autoencoder("{folder.name}")  # model.encode(images), model.reconstruct(images)'
    scores = scores or {name: results[key] for key, name in SCORES.items() if key in results}
    told = ", ".join(f"{name} {value}" for name, value in settings.items() if value not in (None, "", data))
    cost = ", ".join(
        f"{results[key]:.4g} {key}"
        for key in ("epochs", "steps", "minutes")
        if isinstance(results.get(key), int | float)
    )
    checksum = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    hub, stated = ([f"license: {licence.lower()}"], f" {licence} licence.") if licence else ([], "")
    parts = [
        "\n".join(["---", *hub, "library_name: tinymae", f"pipeline_tag: {task}", f"tags: [tinymae, {data}]", "---"]),
        f"# {title or folder.name}",
        f"{config['architecture']}, trained on {data} with tinymae.{stated}" + (f"\n{remarks}" if remarks else ""),
        f"```python\nimport tinymae\n\n{use}\n```",
        textwrap.fill(f"Settings: {told}.", 118, break_long_words=False, break_on_hyphens=False),
        f"Cost: {cost} on {recorded['device']}, torch {recorded['versions']['torch']}." if cost else "",
        "| score | % |\n|---|---|\n" + "\n".join(f"| {name} | {value:.2f} |" for name, value in scores.items())
        if scores
        else "",
        *(f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in PICTURES if (folder / name).exists()),
        f"sha256 of model.safetensors: `{checksum}`",
    ]
    path = folder / "README.md"
    write_atomically(path, lambda beside: beside.write_text("\n\n".join(part for part in parts if part) + "\n"))
    return path
