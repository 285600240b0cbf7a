"""Data of which few images have a label: the others are left out where labels are needed, and used elsewhere."""

import numpy as np
import pytest
import torch
from pictures import encode, picture, pixels, write_table
from running import FEW, QUICK, metrics, rows_of, same_files, tiny_mae
from test_unlabelled import TUNE

import tinymae
from tinymae import InputError, load_dataset
from tinymae.data.datasets import with_label
from tinymae.data.load import load_splits
from tinymae.files import read_json

DIGITS = load_dataset("digits", "train")
COUNTS = {"train": (64, 40), "val": (20, 5), "test": (20, 5)}  # images with a label, and without


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict:
    """The same labelled digits twice as .npz: alone, and each split with others, without a label, among them."""
    folder = tmp_path_factory.mktemp("digits")
    both: dict[str, dict] = {"alone": {}, "among": {}}
    start = 0
    for split, (labelled, others) in COUNTS.items():
        rows = np.arange(start, start + labelled + others)
        start += len(rows)
        images, labels = DIGITS.images[rows].numpy(), DIGITS.labels[rows].numpy().copy()
        hidden = np.random.default_rng(0).permutation(len(rows))[:others]
        labels[hidden] = -1
        kept = labels >= 0
        both["alone"] |= {f"{split}_images": images[kept], f"{split}_labels": labels[kept]}
        both["among"] |= {f"{split}_images": images, f"{split}_labels": labels}
    for name, arrays in both.items():
        np.savez(folder / f"{name}.npz", **arrays)
    return {name: folder / f"{name}.npz" for name in both}


# ---- reading


@pytest.mark.parametrize("limit", [0, 4])
def test_no_label_is_the_same_in_every_kind_of_data(tmp_path, hub, limit):
    images, names = pixels(12, 6, 6, 3), np.array(["cat", "", "dog"] * 4)
    numbers = np.array([0, -1, 1] * 4)
    rows = [{"path": f"{n}.png", "label": names[n]} for n in range(12)]
    for row in rows:
        picture(tmp_path / "photos" / (row["label"] or "Unlabelled/new") / row["path"], size=(6, 6))
    missing = [{"path": row["path"], "label": int(n) if n >= 0 else None} for row, n in zip(rows, numbers, strict=True)]
    features = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=["cat", "dog"])})
    column = [{"bytes": encode(image), "path": None} for image in images]
    parquet = str(tmp_path / "a.parquet")
    hub.Dataset.from_dict({"image": column, "label": [m["label"] for m in missing]}, features=features).to_parquet(
        parquet
    )
    for data, labels in [
        (images, names), (images, numbers), (write_table(tmp_path, rows), None), (parquet, None),
        (write_table(tmp_path, missing, "numbers.csv"), None), (write_table(tmp_path, missing, "b.parquet"), None),
    ]:  # fmt: skip
        dataset = load_dataset(data, "all", labels=labels, image_size=6, memory_limit_gb=limit)
        assert dataset.labels.tolist() == numbers.tolist() and len(dataset.classes) == 2
        assert dataset.description[0].endswith("12 images in 2 classes, 4 of them without a label")
        known = with_label(dataset)
        assert known.labels.tolist() == [0, 1] * 4
        assert torch.equal(known[torch.arange(8)][0], dataset[torch.tensor(numbers >= 0).nonzero()[:, 0]][0])
    folder = load_dataset(tmp_path / "photos", "all", image_size=6, memory_limit_gb=limit)
    assert folder.classes == ["cat", "dog"] and sorted(folder.labels.tolist()) == sorted(numbers)
    assert all(("Unlabelled" in name) == (label < 0) for name, label in zip(folder.names, folder.labels, strict=True))


def test_a_folder_without_labels_beside_the_splits_is_of_train(tmp_path):
    for number in range(6):
        for place in ("Train/cat", "Train/dog", "test/cat", "test/dog", "unlabeled", "train/unlabelled"):
            picture(tmp_path / "photos" / place.lower() / f"{number}.png")
    splits = load_splits(tmp_path / "photos", ["train", "val", "test"], image_size=12, val_fraction=0.2)
    assert splits["test"].labels.tolist() == [0] * 6 + [1] * 6 and splits["test"].classes == ["cat", "dog"]
    labels = [label for name in ("train", "val") for label in splits[name].labels.tolist()]
    assert sorted(labels) == [-1] * 12 + [0] * 6 + [1] * 6
    picture(tmp_path / "plain" / "unlabelled" / "1.png")
    picture(tmp_path / "plain" / "unlabelled" / "2.png")
    assert load_dataset(tmp_path / "plain", "all").labels is None


def test_where_no_image_has_a_label_there_are_none(files):
    images = pixels(20, 6, 6)
    nothing = load_dataset(images, "all", labels=np.full(20, -1))
    assert nothing.labels is None and "no labels" in nothing.description[0]
    assert load_dataset(images, "all", labels=[""] * 20).labels is None
    items = torch.utils.data.TensorDataset(torch.from_numpy(images[:, None]), torch.full((20,), -1))
    unknown = load_dataset(items, image_size=6, channels=1)
    assert unknown.labels is None and "no labels" in unknown.description[0]
    assert unknown.names == load_dataset(images).names  # so nothing is held out for a test
    assert with_label(nothing) is nothing
    labels = np.arange(20) % 2
    complete = load_dataset(images, "all", labels=labels)
    assert with_label(complete) is complete
    with pytest.raises(InputError, match="has no labels in all: give labels with the images"):
        load_splits(images, ["all"], labels=np.full(20, -1), labelled=True)


@pytest.mark.parametrize("seed", range(10))
def test_few_labels_among_many_images_are_in_every_split(seed):
    labels = np.full(1000, -1)
    labels[np.random.default_rng(seed).permutation(1000)[:15]] = np.arange(15) % 3
    splits = load_splits(pixels(1000, 1, 1), ["train", "val", "test"], labels=labels, labelled=True)
    assert all({bool(label < 0) for label in split.labels} == {True, False} for split in splits.values())
    assert sum(len(with_label(split)) for split in splits.values()) == 15
    assert set(with_label(splits["train"]).labels.tolist()) == {0, 1, 2}


# ---- commands


def test_labels_are_learned_as_if_the_other_images_were_not_there(files, quick_figures, quick_probes, tmp_path):
    model = tiny_mae()
    for command, settings in [
        (tinymae.linear_probe, {}),
        (tinymae.finetune, {"epochs": 2, "batch_size": 16, "flip": False, "patch_drop": 0.0}),
    ]:
        name = command.__name__
        alone, among = (
            command(
                files[kind], weights=model, mixed_precision="no", output_dir=tmp_path / f"{name} {kind}", **settings
            )
            for kind in ("alone", "among")
        )
        assert same_files(alone.folder, among.folder)
        for key in ("num_labels", "num_val_labels", "confusion_matrix"):
            assert alone.results[key] == among.results[key]
        assert among.results["num_labels"] == 64 and np.sum(among.results["confusion_matrix"]) == 20
    found = tinymae.evaluate(files["among"], weights=alone.folder, mixed_precision="no", output_dir=tmp_path / "look")
    assert found.results["images"] == 20
    assert found.results["confusion_matrix"] == alone.results["confusion_matrix"]
    sure = {"weights": alone.folder, "split": ["val"], "mixed_precision": "no"}
    temperatures = [
        tinymae.predict(files[kind], calibrate=files[kind], output_dir=tmp_path / f"new {kind}", **sure).results
        for kind in ("alone", "among")
    ]
    assert temperatures[0]["temperature"] == temperatures[1]["temperature"]
    assert [found["images"] for found in temperatures] == [20, 25]


def test_images_without_a_label_are_those_that_a_teacher_labels(files, quick_figures, tmp_path, capsys):
    settings = TUNE | {"data": files["among"], "weights": tiny_mae()}
    del settings["labels"]
    run = tinymae.finetune(**settings, output_dir=tmp_path)
    assert (
        "2 more for each, without labels, of all 104: 40 with no label that is learned from" in capsys.readouterr().out
    )
    assert run.results["num_labels"] == 64
    row = metrics(run.folder)[-2]
    assert "unlabelled_loss" in row and "unlabelled_right" not in row  # of most it is not known


def test_pretraining_learns_from_all_and_watches_those_with_a_label(files, quick_figures, tmp_path):
    settings = {name: value for name, value in QUICK.items() if name not in FEW}
    run = tinymae.pretrain(files["among"], mixed_precision="no", output_dir=tmp_path, **settings)
    recorded = read_json(tmp_path / "args.json")
    assert recorded["inputs"]["train"].startswith("104 images")
    assert run.results["knn_val"] * 20 / 100 == pytest.approx(round(run.results["knn_val"] * 20 / 100))


def test_a_table_of_features_and_an_inspection_keep_both(files, quick_figures, tmp_path):
    model = tiny_mae()
    table = tinymae.embed(
        files["among"], weights=model, mixed_precision="no", formats=["npz"], output_dir=tmp_path / "table"
    )
    with np.load(table.folder / "embeddings.npz") as arrays:
        named = [*zip(arrays["names"].tolist(), arrays["splits"].tolist(), arrays["labels"].tolist(), strict=True)]
    known = {(name, split): str(label) for name, split, label in named if label >= 0}
    assert len(named) == 154 and len(known) == 104
    looked = tinymae.inspect(files["among"], weights=model, mixed_precision="no", output_dir=tmp_path / "look")
    rows = rows_of(looked.folder / "doubtful_labels.csv")
    assert {(row["name"], row["split"]): row["label"] for row in rows} == known
    assert looked.results["labels"] == 104
