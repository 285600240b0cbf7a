"""Images with several labels each: read from a table, probed, and judged as scikit-learn judges them."""

import csv
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from pictures import encode, picture, pixels, write_table
from PIL import Image
from pyarrow import parquet
from running import edit_json, metrics, rows_of, tiny_mae
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

import tinymae
from tinymae import InputError, MaskedAutoencoder, load_dataset
from tinymae.commands import finetune, objective
from tinymae.data import load
from tinymae.data.datasets import with_classes
from tinymae.data.load import load_splits
from tinymae.data.splits import SPLITS
from tinymae.evaluation.metrics import several_metrics
from tinymae.evaluation.neighbours import vote
from tinymae.evaluation.probes import linear_fits
from tinymae.models.classifier import build_classifier
from tinymae.models.conv import ConvAutoencoder


@pytest.fixture
def table(tmp_path):
    """Two digits of 8 x 8 pixels beside each other, with the labels of both; of the last few rows none."""
    digits, generator = load_dataset("digits"), torch.Generator().manual_seed(0)
    rows = []
    for number, two in enumerate(torch.randperm(400, generator=generator).view(-1, 2)):
        pixels = torch.cat([*digits.images[two, 0]], dim=1)
        split = "train" if number < 140 else "val" if number < 170 else "test"
        if number >= 196:
            pixels[:] = 0
        names = [] if number >= 196 else [f"d{label}" for label in digits.labels[two].tolist()]
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{number}.png")
        rows.append((f"{number}.png", split, " ; ".join(names)))
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "split", "label"), *rows])
    return tmp_path / "labels.csv"


def small_model() -> MaskedAutoencoder:
    return tiny_mae(image_size=(8, 16))


def test_a_table_with_several_labels_a_cell_gives_a_column_for_each_class(table):
    splits = load_splits(table, ["train", "test"], image_size=(8, 16), channels=1, several=True)
    train, test = splits["train"], splits["test"]
    assert train.classes == [f"d{number}" for number in range(10)] and train.labels.shape == (140, 10)
    named = [{name.strip() for name in row["label"].split(";")} - {""} for row in rows_of(table)]
    found = [{test.classes[place] for place in row.nonzero()[:, 0].tolist()} for row in test.labels]
    assert found == named[170:] and found[-1] == set()
    assert "10 classes, several an image" in train.description[0]
    streamed = load_splits(table, ["train"], image_size=(8, 16), channels=1, several=True, memory_limit_gb=0)["train"]
    assert torch.equal(streamed.subset(torch.tensor([3, 1])).labels, train.labels[[3, 1]])


def test_the_images_are_cut_alike_whether_the_labels_are_used_or_not(table):
    table.write_text(table.read_text().replace(",split,", ",part,", 1))
    used = load_splits(table, SPLITS, labelled=True, several=True, image_size=8)
    unused = load_splits(table, SPLITS, image_size=8)
    assert unused["train"].labels is None
    assert {name: split.names for name, split in used.items()} == {name: split.names for name, split in unused.items()}


def test_labels_are_renumbered_by_the_names_of_their_classes(table):
    test = load_splits(table, ["test"], image_size=(8, 16), channels=1, several=True)["test"]
    other = [*reversed(test.classes[2:]), "none of them"]
    found = with_classes(test, other)
    assert found.classes == other and found.labels.shape == (30, 9) and not found.labels[:, 8].any()
    assert torch.equal(found.labels[:, :8].flip(1), test.labels[:, 2:])


def test_the_metrics_are_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(200, 5, generator=generator) < torch.tensor([0.5, 0.1, 0.9, 0.0, 1.0])).to(torch.uint8)
    scores = torch.rand(200, 5, generator=generator) + labels / 3
    found = several_metrics(scores, labels)
    assert found["ap"][:3] == pytest.approx(100 * average_precision_score(labels[:, :3], scores[:, :3], average=None))
    assert found["auc"][:3] == pytest.approx(100 * roc_auc_score(labels[:, :3], scores[:, :3], average=None))
    assert found["ap"][3:] == found["auc"][3:] == [None, None]
    assert found["mean_ap"] == pytest.approx(np.mean(found["ap"][:3]))


def test_the_probe_is_one_logistic_regression_of_scikit_learns_for_each_class():
    digits = load_dataset("digits")
    features = digits.images.flatten(1)[:, digits.images.flatten(1).float().std(dim=0) > 2] / 16.0
    labels = torch.nn.functional.one_hot(digits.labels % 4, 4).to(torch.uint8)
    labels[:, 3] = (digits.labels > 5).to(torch.uint8)  # overlaps with the others
    ((_, probe),) = linear_fits(features, labels, num_classes=4, grid=[1e-2])
    scaled = StandardScaler().fit_transform(features)
    theirs = OneVsRestClassifier(LogisticRegression(C=1 / (len(features) * 1e-2), max_iter=1000)).fit(scaled, labels)
    with torch.no_grad():
        assert np.abs(probe(features).sigmoid().numpy() - theirs.predict_proba(scaled)).max() < 0.02


def test_smoothing_moves_each_target_towards_one_half():
    settings = finetune.FinetuneSettings(weights="somewhere", label_smoothing=0.2)
    compute_losses = objective.create_losses(
        settings, nn.Identity(), SimpleNamespace(several=True), None, soft=False, priors=0.0
    )
    logits, targets = torch.randn(5, 3), torch.randint(2, (5, 3))
    chances = logits.sigmoid()
    cross_entropies = -(0.8 * targets + 0.1) * chances.log() - (0.9 - 0.8 * targets) * (1 - chances).log()
    torch.testing.assert_close(compute_losses(logits, targets)["loss"], cross_entropies.sum(dim=1).mean())


def test_neighbours_vote_for_each_class_by_itself():
    cosines = torch.tensor([[0.5, 0.5, 0.4]])
    one = torch.tensor([[0, 1, 1]])
    expected = vote(cosines, one, num_classes=2)
    assert torch.allclose(vote(cosines, torch.nn.functional.one_hot(one, 2), num_classes=2), expected)
    both = torch.tensor([[[1, 1], [1, 0], [1, 0]]], dtype=torch.uint8)
    assert vote(cosines, both, num_classes=2)[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_the_command_judges_by_mean_average_precision(table, head, quick_probes, tmp_path):
    settings = {"weights": small_model(), "head": head, "controls": "raw_pixels", "mixed_precision": "no"}
    run = tinymae.linear_probe(table, **settings, output_dir=tmp_path / "run")
    results, test = run.results, load_splits(table, ["test"], image_size=(8, 16), channels=1, several=True)["test"]
    with torch.no_grad():
        scores = run.model(test.images) if head == "linear" else run.model(small_model().eval().encode(test.images))
    expected = average_precision_score(test.labels, scores, average=None)
    assert results["ap_test"] == pytest.approx(100 * expected, abs=0.01)
    assert results["probe_test"] == results["mean_ap_test"] == pytest.approx(100 * expected.mean(), abs=0.01)
    if head == "linear":
        require_saved(run.folder, test, scores)
        assert results["raw_pixels"]["probe_test"] > 60 > 100 * float(test.labels.float().mean())
    rows = rows_of(tmp_path / "run" / "per_class.csv")
    assert [row["class"] for row in rows] == test.classes
    assert sum(int(row["images"]) for row in rows) == test.labels.sum()
    for column, percent in {"average_precision": results["ap_test"], "roc_auc": results["auc_test"]}.items():
        assert [100 * float(row[column]) for row in rows] == pytest.approx(percent, abs=0.01)


def require_saved(folder, test, scores) -> None:
    """The folder holds a classifier of several labels that gives these logits."""
    classifier = tinymae.load(folder)
    assert classifier.several and classifier.classes == test.classes
    with torch.no_grad():
        torch.testing.assert_close(classifier(test.images), scores, atol=1e-5, rtol=1e-4)
        assert torch.equal(classifier.probabilities(scores), scores.sigmoid())


FAMILIES = {
    "mae": small_model,
    "conv_ae": lambda: ConvAutoencoder(image_size=(8, 16), in_channels=1, width=8, latent_dim=8),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_of_several_labels_is_tuned_saved_evaluated_and_predicts(table, family, quick_figures, tmp_path):
    recipe = {"epochs": 30, "batch_size": 20, "base_lr": 5e-2, "patch_drop": 0.0, "ema_decay": 0.9, "drop_path": 0.0,
              "crop_padding": 0, "flip": False, "eval_every": 15, "mixed_precision": "no"}  # fmt: skip
    run = tinymae.finetune(table, weights=FAMILIES[family](), **recipe, output_dir=tmp_path / "run")
    test = load_splits(table, ["test"], image_size=(8, 16), channels=1, several=True)["test"]
    with torch.no_grad():
        scores = run.model(test.images)
    require_saved(run.folder, test, scores)
    expected = average_precision_score(test.labels, scores, average=None)
    assert run.results["ap_test"] == pytest.approx(100 * expected, abs=0.01)
    assert run.results["mean_ap_test"] > 2 * 100 * float(test.labels.float().mean())  # twice what guessing has
    assert [row["step"] for row in metrics(run.folder) if "mean_ap_val" in row] == [105, 210]
    assert (
        f"| mean average precision, test | {run.results['mean_ap_test']:.2f} |"
        in (run.folder / "README.md").read_text()
    )
    assert len(rows_of(run.folder / "per_class.csv")) == 10

    found = tinymae.evaluate(table, weights=run.folder, mixed_precision="no", output_dir=tmp_path / "evaluate").results
    assert found["mean_ap"] == pytest.approx(run.results["mean_ap_test"], abs=0.01)

    settings = {"split": ("test",), "mixed_precision": "no", "output_dir": tmp_path / "predict"}
    predicted = tinymae.predict(table, weights=run.folder, **settings)
    rows = rows_of(tmp_path / "predict" / "predictions.csv")
    assert [row["name"] for row in rows] == test.names
    probabilities = np.array([[float(row[name]) for name in test.classes] for row in rows])
    assert np.abs(probabilities - scores.sigmoid().numpy()).max() < 1e-3
    for row, chances in zip(rows, probabilities, strict=True):
        assert row["classes"] == ";".join(np.array(test.classes)[chances >= 0.5])
    assert predicted.results["images_without_class"] == sum(row["classes"] == "" for row in rows)


def test_one_label_and_several_are_not_taken_for_each_other(table, quick_figures, tmp_path):
    common = {"weights": small_model(), "mixed_precision": "no", "output_dir": tmp_path / "run"}
    for own in ({"mixup": 0.8}, {"unlabelled": 1}):
        with pytest.raises(InputError, match="several labels an image: leave out mixup, cutmix, unlabelled"):
            tinymae.finetune(table, batch_size=20, **own, **common)
    several = build_classifier(small_model(), classes=["a", "b"], several=True)
    one = build_classifier(small_model(), classes=[f"d{number}" for number in range(10)])
    several.write_weights(tmp_path / "several")
    one.write_weights(tmp_path / "one")
    images = torch.zeros(20, 1, 8, 16, dtype=torch.uint8)
    data = {"data": images, "labels": torch.arange(20) % 2, "split": "all", "mixed_precision": "no"}
    with pytest.raises(InputError, match="has one label an image, weights .*several know several"):
        tinymae.evaluate(**data, weights=tmp_path / "several", output_dir=tmp_path / "run")
    with pytest.raises(InputError, match="labels has several labels an image, this command or its weights know one"):
        tinymae.evaluate(table, weights=tmp_path / "one", output_dir=tmp_path / "run")
    with pytest.raises(InputError, match="calibrate is for one label an image"):
        tinymae.predict(data=images, weights=tmp_path / "several", calibrate="digits", output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_config_that_does_not_say_truly_whether_labels_are_several_is_refused(tmp_path):
    build_classifier(small_model(), classes=["a", "b"], several=True).write_weights(tmp_path)
    edit_json(tmp_path / "config.json", {"several_labels": "yes"})
    with pytest.raises(InputError, match="several_labels"):
        tinymae.load(tmp_path)


def test_what_does_not_know_several_labels_goes_without(table, quick_figures, tmp_path):
    tinymae.embed(table, weights=small_model(), mixed_precision="no", output_dir=tmp_path / "embed")
    with np.load(tmp_path / "embed" / "embeddings.npz") as arrays:
        assert (arrays["labels"] == -1).all() and len(arrays["names"]) == 200


# ---- lists of labels


LISTS = [["cat", "dog"], ["dog"], [], None, ["dog", None, "ant"]]


HAS = [[0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0], [1, 0, 1]]  # ant, cat, dog


def test_lists_of_labels_are_several_labels_an_image(tmp_path, hub):
    names = [[name for name in row or () if name] for row in LISTS]
    words = write_table(tmp_path, [{"path": f"{n}.png", "label": ";".join(row)} for n, row in enumerate(names)])
    lists = write_table(tmp_path, [{"path": f"{n}.png", "labels": row} for n, row in enumerate(LISTS)], "a.parquet")
    for table in (words, lists):
        dataset = load_splits(table, ["all"], several=True)["all"]
        assert dataset.labels.tolist() == HAS and dataset.classes == ["ant", "cat", "dog"]
    numbers = [[["dog", "cat", "ant", "emu"].index(name) for name in row] for row in names]
    images = [{"bytes": encode(image), "path": None} for image in pixels(5, 6, 6, 3)]
    kinds = hub.Sequence(hub.ClassLabel(names=["dog", "cat", "ant", "emu"]))
    stored = hub.Dataset.from_dict(
        {"image": images, "tags": numbers}, features=hub.Features({"image": hub.Image(), "tags": kinds})
    )
    stored.save_to_disk(tmp_path / "one")
    hub.DatasetDict(train=stored.select([1, 2]), test=stored.select([4, 0])).save_to_disk(tmp_path / "two")
    one, two = (load_splits(tmp_path / name, ["all"], several=True)["all"] for name in ("one", "two"))
    assert one.classes == ["dog", "cat", "ant", "emu"]
    assert one.labels.tolist() == [[*reversed(row), 0] for row in HAS]
    assert two.labels.tolist() == one.labels[[1, 2, 4, 0]].tolist()


def test_a_table_of_lists_is_written_by_parquet_as_by_pandas(tmp_path):
    picture(tmp_path / "1.png")
    table = pa.table({"path": ["1.png"], "label": pa.array([["b", "a"]], pa.large_list(pa.large_string()))})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert load_splits(tmp_path / "a.parquet", ["all"], several=True)["all"].labels.tolist() == [[1, 1]]


@pytest.mark.parametrize("kind", ["npz", "h5", "tensor"])
def test_labels_of_several_columns_are_several_labels_an_image(tmp_path, kind):
    """As ChestMNIST has them."""
    images, labels = pixels(20, 6, 6), np.random.default_rng(0).integers(0, 2, (20, 14))
    data, given = tmp_path / f"chest.{kind}", {}
    if kind == "npz":
        np.savez(
            data, train_images=images[:15], train_labels=labels[:15], test_images=images[15:], test_labels=labels[15:]
        )
    elif kind == "h5":
        with pytest.importorskip("h5py").File(data, "w") as file:
            file["images"], file["labels"] = images, labels
    else:
        data, given = torch.from_numpy(images), {"labels": torch.from_numpy(labels)}
    dataset = load.load_splits(data, ["all"], several=True, **given)["all"]
    assert dataset.labels.dtype == torch.uint8 and dataset.labels.tolist() == labels.tolist()
    assert dataset.classes == [str(number) for number in range(14)]


def test_several_labels_that_are_not_used_are_announced(tmp_path):
    table = write_table(tmp_path, [{"path": f"{n}.png", "label": "a;b"} for n in range(4)])
    (dataset,) = load_splits(table, ["all"]).values()
    assert "4 images, whose labels are not used here" in "\n".join(dataset.description)
