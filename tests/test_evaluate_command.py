"""A closer look at a classifier, and at an autoencoder's reconstructions."""

import csv

import numpy as np
import pytest
import torch
from running import DIGITS, FEW, remember_training, rows_of, save_images, tiny_mae
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

import tinymae
from tinymae import InputError, MaskedAutoencoder, load_dataset
from tinymae.commands import evaluate
from tinymae.commands.evaluate import EvaluateSettings, evaluate_classifier
from tinymae.data import datasets
from tinymae.models.classifier import build_classifier

pytestmark = pytest.mark.usefixtures("quick_figures")


def classifier_of(classes):
    return build_classifier(tiny_mae(), classes=classes).eval()


def test_a_classifiers_errors_are_counted(pretrained, quick_probes, tmp_path):
    probe = tinymae.linear_probe(**DIGITS, weights=pretrained, output_dir=tmp_path / "probe")
    run = tinymae.evaluate(**DIGITS, weights=tmp_path / "probe", output_dir=tmp_path / "evaluate")
    scores = run.results
    assert scores["accuracy"] == pytest.approx(probe.results["probe_test"], abs=0.3)
    assert scores["report"]["accuracy"] == pytest.approx(scores["accuracy"] / 100)
    assert scores["report"].keys() == {"accuracy", "macro avg", "weighted avg"}
    matrix = np.array(scores["confusion_matrix"])
    assert matrix.sum() == scores["images"] == 360
    for number in range(10):
        assert scores["by_class"][str(number)]["recall"] == pytest.approx(matrix[number, number] / matrix[number].sum())
    assert len((tmp_path / "evaluate" / "per_class.csv").read_text().splitlines()) == 11
    assert run.model.classes == load_dataset("digits").classes


def test_a_test_split_that_was_loaded_before_is_judged_whole(tmp_path):
    common = {"mixed_precision": "no", "weights": classifier_of([*"0123456789"])}
    expected = tinymae.evaluate("digits", **common, output_dir=tmp_path / "named")
    found = tinymae.evaluate(load_dataset("digits", "test"), **common, output_dir=tmp_path / "loaded")
    assert found.results == expected.results and found.results["images"] == 360


def test_classes_may_have_any_name(tmp_path):
    names = ["accuracy", "macro avg", 'a "quoted", comma', "weighted avg", "=1+1"]
    digits = load_dataset("digits")
    few = [int(label) < len(names) for label in digits.labels]
    data = {"data": digits.images[few][:100], "labels": [names[n] for n in digits.labels[few][:100]]}
    names = sorted(names)  # as names are numbered
    run = tinymae.evaluate(
        **data, mixed_precision="no", split="train", weights=classifier_of(names), output_dir=tmp_path
    )
    assert run.results["by_class"].keys() == set(names)
    assert isinstance(run.results["report"]["accuracy"], float) and len(run.results["report"]) == 3
    with open(tmp_path / "per_class.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["class", "precision", "recall", "f1-score", "support", "average_precision", "roc_auc"]
    assert [row[0] for row in rows[1:]] == names and sum(float(row[4]) for row in rows[1:]) == run.results["images"]
    for name, _, recall, *_ in rows[1:]:
        assert float(recall) == pytest.approx(run.results["by_class"][name]["recall"], rel=1e-3)


MANY = FEW["labels"]
MISMATCHED = {
    "others": (MANY, ["a", "b"], r"know 2 classes \(a, b\), data set array has 10 others \(0, 1, 2, 3, 4, ...\): give"),
    "more": (MANY, ["0", "1"], r"array has images of [2-9, .]+, which weights \(Classifier\) do not know \(0, 1\)"),
    "another language": (  # by order the good ones would be bad
        ["gut", "schlecht"] * 40, ["bad", "good"],
        r"know 2 classes \(bad, good\), data set array has 2 others \(gut, schlecht\): give the same names",
    ),
    "case alone": (  # where two names differ by it, only the same one is meant
        ["Ok", "ok", "no", "no"] * 20, ["no", "ok"],
        r"array has images of Ok, which weights \(Classifier\) do not know \(no, ok\)",
    ),
    "no labels": (None, [*"0123456789"], "data set array has no labels in train"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISMATCHED)
def test_classes_that_mean_something_else_are_refused(case, tmp_path):
    labels, classes, message = MISMATCHED[case]
    with pytest.raises(InputError, match=message):
        tinymae.evaluate(
            **FEW | {"labels": labels}, split="train", weights=classifier_of(classes), output_dir=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("limit", [4, 0], ids=["in memory", "streamed"])
def test_classes_are_matched_by_name(limit, tmp_path):
    digits = load_dataset("digits", "test")
    names = np.array([*"0123456789"])[digits.labels]
    some = names != "7"  # one class that the classifier knows has no image
    common = {"weights": classifier_of([*"9876543210"]), "mixed_precision": "no", "split": "all"}
    for number, label in ((0, "all"), (1, "some")):
        kept = some if number else np.ones(len(names), dtype=bool)
        data = load_dataset(digits.images[kept], "all", labels=names[kept], memory_limit_gb=limit)
        run = tinymae.evaluate(data, **common, output_dir=tmp_path / label)
        predicted = run.model(digits.images[kept]).argmax(dim=1)
        assert run.results["accuracy"] == pytest.approx(
            100 * np.mean(np.array([*"9876543210"])[predicted] == names[kept])
        )
        assert run.results["by_class"]["3"]["support"] == (names[kept] == "3").sum()
    assert run.results["by_class"]["7"]["support"] == 0


@pytest.mark.parametrize("limit", [4, 0], ids=["in memory", "streamed"])
def test_names_that_differ_in_case_and_in_spaces_around_are_the_same(limit, tmp_path):
    known = ["kept ", "scrap", "Über"]
    labels = np.array(["Scrap", "kept", "ÜBER"])[np.arange(60) % 3]
    images = load_dataset("digits").images[:60]
    data = load_dataset(images, "all", labels=labels, memory_limit_gb=limit)
    model = build_classifier(tiny_mae(), classes=known)
    run = tinymae.evaluate(data, weights=model, mixed_precision="no", split="all", output_dir=tmp_path)
    numbers = np.array([1, 0, 2])[np.arange(60) % 3]
    assert run.results["accuracy"] == pytest.approx(100 * np.mean(run.model(images).argmax(dim=1).numpy() == numbers))
    assert run.results["by_class"].keys() == {*known}


def test_classes_that_are_numbers_on_one_side_are_taken_by_their_order_and_that_is_said(tmp_path, capsys):
    for names, said in (([*"0123456789"], False), ([*"abcdefghij"], True)):
        tinymae.evaluate(**FEW, weights=classifier_of(names), output_dir=tmp_path / names[0])
        line = "names its classes otherwise than the weights: taken by their order, 0 = a, 1 = b, 2 = c, ..."
        assert (line in capsys.readouterr().out) == said
    three = FEW | {"labels": FEW["labels"] % 3, "weights": classifier_of(["dia", "hor", "ver"])}
    tinymae.evaluate(**three, output_dir=tmp_path / "three")
    assert "taken by their order, 0 = dia, 1 = hor, 2 = ver\n" in capsys.readouterr().out  # these are all


def test_a_table_may_have_a_part_of_the_classes_by_their_numbers(tmp_path, capsys):
    digits = load_dataset("digits", "test")
    some = [(row, label) for row, label in enumerate(digits.labels.tolist()) if label in (1, 4, 7)]
    save_images(tmp_path, digits.images[[row for row, _ in some]])
    rows = [f"{number:02}.png,{label}" for number, (_, label) in enumerate(some)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    for names, said in ([*"0123456789"], False), ([*"abcdefghij"], True):
        weights = classifier_of(names)
        run = tinymae.evaluate(tmp_path / "t.csv", weights=weights, split="all", output_dir=tmp_path / names[0])
        support = {name: row["support"] for name, row in run.results["by_class"].items()}
        assert support == {name: sum(names[label] == name for _, label in some) for name in names}
        assert ("taken by their order, 1 = b, 4 = e, 7 = h\n" in capsys.readouterr().out) == said


def test_an_autoencoder_is_evaluated(pretrained, tmp_path):
    scores = tinymae.evaluate(**DIGITS, weights=pretrained, output_dir=tmp_path / "a").results
    assert scores["masked"]["mse_hidden"] == pytest.approx(scores["masked"]["mse"] / 0.75)
    told = tinymae.evaluate(**DIGITS, weights=pretrained, statistics="target", output_dir=tmp_path / "b").results
    assert told["statistics"] == "target" and told["masked"]["psnr"] > scores["masked"]["psnr"]


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_errors_with_nothing_hidden_say_whether_patches_were_given_their_mean_and_std(norm_pix_loss, tmp_path, capsys):
    model = MaskedAutoencoder(image_size=8, patch_size=4, in_channels=1, embed_dim=16, depth=1, num_heads=2,
                              norm_pix_loss=norm_pix_loss)  # fmt: skip
    tinymae.evaluate(**FEW, weights=model, output_dir=tmp_path / "run")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("nothing hidden"))
    assert ("each patch with its own mean and std, which it was given: mse" in line) == norm_pix_loss


def test_by_default_the_images_are_those_of_test_or_where_there_is_none_of_val(tmp_path):
    unlabelled, model = FEW | {"labels": None}, tiny_mae()  # of the former none are held out for test
    for data, split in ((FEW, "test"), (unlabelled, "val")):
        found = tinymae.evaluate(**data, weights=model, output_dir=tmp_path / split)
        asked = tinymae.evaluate(**data, weights=model, split=split, output_dir=tmp_path / split)  # the same
        assert (
            found.results["images"]
            == asked.results["images"]
            == len(load_dataset(data["data"], split, labels=data["labels"]))
        )
    with pytest.raises(InputError, match="has no images for val, only"):
        tinymae.evaluate(**unlabelled, val_fraction=0, weights=model, output_dir=tmp_path / "none")


def test_of_a_fold_that_was_learned_from_whole_the_images_are_by_default_those_of_val(tmp_path):
    images = load_dataset("digits", "val").images
    for place, some in (("train/a", images[:40]), ("train/b", images[40:80]), ("val/a", images[80:100])):
        save_images(tmp_path / "fold" / place, some)
    classifier_of(["a", "b"]).save_pretrained(tmp_path / "weights")
    remember_training(tmp_path / "weights", train=[f"train/{k}/{number:02}.png" for number in range(40) for k in "ab"])
    run = tinymae.evaluate(tmp_path / "fold", weights=tmp_path / "weights", output_dir=tmp_path / "look")
    assert run.results["images"] == 20


def test_masks_are_drawn_by_the_seed_for_each_batch_and_errors_are_of_what_they_hide(tmp_path, monkeypatch):
    drawn, draw, model = [], evaluate.random_mask, tiny_mae()
    monkeypatch.setattr(evaluate, "random_mask", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    images, common = load_dataset("digits", "val").images[:40], {"weights": model, "split": "all", "batch_size": 20}
    masks = []
    for seed, name in ((1, "one"), (1, "again"), (2, "other")):
        drawn.clear()
        run = tinymae.evaluate(images, seed=seed, **common, mixed_precision="no", output_dir=tmp_path / name)
        masks.append(torch.cat(drawn[:2]))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert not torch.equal(*masks[2].chunk(2))
    hidden = model.reconstruct(images, masks[2]).error
    assert run.results["masked"]["mse_hidden"] == pytest.approx(float(hidden.mean()), rel=1e-4)


def test_another_ratio_of_patches_may_be_hidden(tmp_path):
    model = tiny_mae()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = tinymae.evaluate(**FEW, weights=model, mask_ratio=0.25, output_dir=tmp_path / "run").results
    assert scores["mask_ratio"] == 0.25 and scores["masked"]["mse_hidden"] == pytest.approx(4 * scores["masked"]["mse"])
    again = tinymae.evaluate(**FEW, weights=model, mask_ratio=0.25, batch_size=3, output_dir=tmp_path / "again")
    assert again.results["full"]["mse"] == pytest.approx(scores["full"]["mse"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.model.state_dict().items())
    assert again.model.mask_ratio == 0.5  # which is that of its training
    conv = tinymae.models.conv.ConvAutoencoder(image_size=8, in_channels=1, width=8, latent_dim=8)
    with pytest.raises(InputError, match="mask_ratio 0.5: a ConvAutoencoder hides nothing; leave it out"):
        tinymae.evaluate(**FEW, weights=conv, mask_ratio=0.5, output_dir=tmp_path / "conv")


def test_images_too_small_for_ssim_are_evaluated_without_it(tmp_path):
    model = MaskedAutoencoder(image_size=(2, 8), patch_size=2, in_channels=1, embed_dim=16, depth=1, num_heads=2)
    images = {**FEW, "data": FEW["data"][:, :, :2]}
    results = tinymae.evaluate(**images, weights=model, output_dir=tmp_path / "run").results
    assert results["full"].keys() == {"mse", "psnr"} and "ssim" not in results["masked"]


def test_classes_without_an_image_are_not_judged(tmp_path, capsys):
    digits = load_dataset("digits")
    labels = digits.labels[:100].clamp(max=7)  # of the ten that the model knows, these images show eight
    model = classifier_of([*"0123456789"])
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(2))
    dataset = datasets.ImageDataset("some", digits.images[:100], labels, [*"0123456789"])
    settings = EvaluateSettings(**FEW, weights=model, split="train", output_dir=tmp_path)
    with settings.open_run(settings.create_accelerator(), splits={"train": dataset}, weights=model) as run:
        scores = evaluate_classifier(settings, model, run, dataset)
    with torch.no_grad():
        predictions = model(dataset.images).argmax(dim=1)
    assert (predictions > 7).any() and scores["classes_judged"] == 8
    expected = f1_score(labels.numpy(), predictions.numpy(), labels=range(8), average="macro", zero_division=0)
    assert scores["macro_f1"] == pytest.approx(100 * expected)
    assert scores["report"]["macro avg"]["f1-score"] == pytest.approx(expected)
    assert "2 of the 10 classes have no train image, and are not judged" in capsys.readouterr().out
    rows = [line.split(",") for line in (tmp_path / "per_class.csv").read_text().splitlines()]
    assert rows[-1] == ["9", "", "", "", "0", "", ""] and all(rows[1])


def test_classes_are_ranked_and_recalls_averaged_as_scikit_learn_does(tmp_path, capsys):
    digits = load_dataset("digits", "test")
    labels = digits.labels.clamp(max=2)  # four in five have the last class
    model = classifier_of(["0", "1", "2", "3"])
    torch.nn.init.normal_(model.head.weight, std=20, generator=torch.Generator().manual_seed(2))
    common = {"weights": model, "mixed_precision": "no", "split": "all"}
    run = tinymae.evaluate(digits.images, labels=labels, **common, output_dir=tmp_path / "run")
    with torch.no_grad():
        logits = model(digits.images)
    probabilities, truth = logits.double().softmax(dim=1)[:, :3], torch.nn.functional.one_hot(labels)
    assert probabilities.max() > 1 - 1e-9  # where float32 has ties
    rows = rows_of(tmp_path / "run" / "per_class.csv")
    for column, mean, metric in [
        ("average_precision", "mean_ap", average_precision_score), ("roc_auc", "mean_auc", roc_auc_score)
    ]:  # fmt: skip
        expected = metric(truth, probabilities, average=None)
        assert [run.results["by_class"][name][column] for name in "012"] == pytest.approx(expected, abs=1e-4)
        assert [float(row[column]) for row in rows[:3]] == pytest.approx(expected, abs=2e-4)
        assert run.results[mean] == pytest.approx(100 * expected.mean(), abs=0.01)
        assert run.results["by_class"]["3"][column] is None and rows[3][column] == ""
    balanced = 100 * balanced_accuracy_score(labels, logits.argmax(dim=1))
    assert run.results["balanced_accuracy"] == pytest.approx(balanced)
    assert f"balanced accuracy {balanced:.1f} %, the mean recall" in capsys.readouterr().out
    one = tinymae.evaluate(digits.images[:9], labels=labels[:9] * 0, **common, output_dir=tmp_path / "one")
    assert one.results["by_class"]["0"]["roc_auc"] is None and "mean_auc" not in one.results
    assert "balanced accuracy" not in capsys.readouterr().out


def test_a_table_by_class_has_all_digits_of_large_counts(tmp_path):
    row = dict.fromkeys(("precision", "recall", "f1-score", "average_precision", "roc_auc"), 0.5)
    path = evaluate.write_table({"a": row | {"support": 12345.0}}, tmp_path / "table.csv")
    assert rows_of(path)[0]["support"] == "12345"


@pytest.fixture
def two_digits(tmp_path):
    """A folder with 20 images of each of two classes, and 20 without a label."""
    digits = load_dataset("digits")
    for label, folder in ((0, "0"), (1, "1"), (2, "unlabelled")):
        save_images(tmp_path / "data" / folder, digits.images[digits.labels == label][:20])
    return tmp_path / "data"


def test_images_that_the_weights_were_trained_on_are_remarked_on_where_they_are_judged(two_digits, tmp_path, capsys):
    build_classifier(tiny_mae(), classes=["0", "1"]).save_pretrained(tmp_path / "weights")
    tiny_mae().save_pretrained(tmp_path / "mae")
    test = load_dataset(two_digits, "test", image_size=8, channels=1)
    labelled = [name for name, label in zip(test.names, test.labels.tolist(), strict=True) if label >= 0]
    assert len(labelled) < len(test)  # the others are not judged by a classifier
    for weights, split, known, said in [
        ("weights", None, 2, f"2 of the {len(labelled)} test images are called like some that the weights were trained "
         "on: if they are the same, split alike in training and here (--group-column, --val-fraction, ...)\n"),
        ("weights", "all", 2, "2 of the 40 images are called like some that the weights were trained on: if they are "
         "the same, give --split test, and split alike in training and here ("),
        ("mae", None, 2, f"the encoder was pretrained on 2 of the {len(test)} test images, if names tell, without "),
        ("weights", None, 0, ""),
        ("weights", "train", 2, ""),
    ]:  # fmt: skip
        remember_training(tmp_path / weights, train=labelled[:known])
        capsys.readouterr()
        tinymae.evaluate(
            two_digits, weights=tmp_path / weights, split=split, overwrite=True, output_dir=tmp_path / "look"
        )
        printed = capsys.readouterr().out
        assert said in printed and ("called like some" in printed or "pretrained on" in printed) == bool(said)


def test_that_more_images_could_be_judged_is_said_where_none_was_trained_on(two_digits, tmp_path, capsys):
    build_classifier(tiny_mae(), classes=["0", "1"]).save_pretrained(tmp_path / "weights")
    names = {split: load_dataset(two_digits, split, image_size=8, channels=1).names for split in ("train", "test")}
    own = tmp_path / "own"  # splits of its own
    for part in ("train", "test"):
        (own / part).mkdir(parents=True)
        for label in "01":
            (own / part / label).symlink_to(two_digits / label)
    for data, trained, split, said in [
        (two_digits, {"train": ["another.png"]}, None, True),
        (two_digits, {"train": ["another.png"]}, "test", False),  # it was asked for
        (two_digits, names, None, False),  # the data of training
        (two_digits, {"train": names["train"]}, None, False),  # the same, trained with no_test
        (two_digits, {"train": [f"data/{names['train'][0]}"]}, None, False),  # the same, from another folder
        (two_digits, {}, None, False),  # nothing is known
        (own, {"train": ["another.png"]}, None, False),
    ]:
        remember_training(tmp_path / "weights", **trained)
        capsys.readouterr()
        run = tinymae.evaluate(
            data, weights=tmp_path / "weights", split=split, overwrite=True, output_dir=tmp_path / "look"
        )
        line = f"--split all judges all 40, not the {run.results['images']} of test\n"
        assert (line in capsys.readouterr().out) == said
