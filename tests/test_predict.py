"""Predictions for new images, the temperature of their probabilities, and what the probabilities are worth."""

import numpy as np
import pytest
import torch
from pictures import resized
from PIL import Image
from running import DIGITS, note_sheets, refused, remember_training, rows_of, save_images, tiny_mae
from sklearn.metrics import log_loss, top_k_accuracy_score

import tinymae
from tinymae import InputError, load_dataset
from tinymae.commands import evaluate, predict
from tinymae.commands.predict import describe
from tinymae.data.load import load_splits
from tinymae.evaluation.calibration import fit_temperature, probability_metrics, reliability
from tinymae.models.classifier import build_classifier


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The folder of a classifier of digits that is right more often than not, and too sure."""
    model = tiny_mae(embed_dim=32)
    classifier = build_classifier(model, classes=[*"0123456789"]).eval()
    digits = load_dataset("digits")
    with torch.no_grad():
        features = classifier.encoder.encode(digits.images)
        targets = torch.nn.functional.one_hot(digits.labels).float() - 0.1
        solution = torch.linalg.lstsq(features, targets).solution
        classifier.head.weight.copy_(30 * solution.T)
    classifier.write_weights(tmp_path_factory.mktemp("classifier"))
    return classifier


def logits_of(classifier, images) -> torch.Tensor:
    with torch.no_grad():
        return classifier(images)


def test_new_images_without_labels_are_classified(classifier, tmp_path, capsys, monkeypatch):
    sheets = note_sheets(monkeypatch, predict)
    images = load_dataset("digits", "test").images[:60]
    save_images(tmp_path / "new", images)
    run = tinymae.predict(tmp_path / "new", weights=classifier, output_dir=tmp_path / "run")
    rows = rows_of(run.folder / "predictions.csv")
    probabilities = logits_of(classifier, images).softmax(dim=1)
    expected, of_image = probabilities.topk(2, dim=1), {row["name"]: row for row in rows}
    assert len(rows) == len(of_image) == 60
    for number, (values, classes) in enumerate(zip(expected.values, expected.indices, strict=True)):
        row = of_image[f"{number:02}.png"]
        assert [row["class"], row["next_class"]] == [str(name) for name in classes.tolist()]
        assert [float(row["probability"]), float(row["next_probability"])] == pytest.approx(values.tolist(), abs=2e-4)
        assert [float(row[name]) for name in "0123456789"] == pytest.approx(probabilities[number].tolist(), abs=2e-4)
    counted = expected.indices[:, 0].bincount(minlength=10)
    assert [run.results["by_class"][str(number)] for number in range(10)] == counted.tolist()
    assert len([*(run.folder / "classes").iterdir()]) == int((counted > 0).sum())
    assert {tile.image.shape for tiles in sheets.values() for tile in tiles} == {(3, 96, 96)}  # from the files
    assert run.results["temperature"] == 1
    assert run.results["median_confidence"] == pytest.approx(probabilities.max(dim=1).values.median().item(), abs=1e-4)
    frequent = f"{int(counted.argmax())}: {int(counted.max())}"
    printed = capsys.readouterr().out
    assert f"60 images ({frequent}, " in printed
    assert "--calibrate DATA, the labelled data of training, does that, with the same split flags (" in printed


@pytest.mark.parametrize("names", [["cat"], ["cat", "class", *map(str, range(98))]], ids=["one", "a hundred"])
def test_each_class_has_its_probability_however_small_and_however_many_there_are(names, tmp_path):
    images, model = load_dataset("digits", "test").images[:3], build_classifier(tiny_mae(), classes=names)
    with torch.no_grad():
        model.head.weight.normal_(std=4, generator=torch.Generator().manual_seed(0))
    tinymae.predict(images, weights=model, output_dir=tmp_path)
    columns = ["probability of class" if name == "class" else name for name in names]
    found = [[float(row[column]) for column in columns] for row in rows_of(tmp_path / "predictions.csv")]
    expected = logits_of(model, images).log_softmax(dim=1)
    assert len(names) == 1 or expected.min() < -10
    torch.testing.assert_close(torch.tensor(found).log(), expected, rtol=1e-3, atol=1e-3)


def test_probabilities_are_the_same_on_a_processor_that_has_bf16(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr("tinymae.training.device.supports_bf16", lambda device: True)
    images = load_dataset("digits", "test").images[:20]
    run = tinymae.predict(images, weights=classifier, output_dir=tmp_path)
    expected = logits_of(classifier, images).softmax(dim=1).max(dim=1).values
    found = [float(row["probability"]) for row in rows_of(run.folder / "predictions.csv")]
    assert found == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_sheet_has_the_name_of_its_class_in_any_script_and_the_most_confident_images_first(tmp_path, monkeypatch):
    sheets = note_sheets(monkeypatch, predict)
    monkeypatch.setattr(predict, "SHOWN", 10)
    model = build_classifier(tiny_mae(), classes=["鳥 birds", "кошка/cat"]).eval()
    images = load_dataset("digits", "test").images[:60]
    torch.nn.init.normal_(model.head.weight, std=5, generator=torch.Generator().manual_seed(0))
    run = tinymae.predict(images, weights=model, output_dir=tmp_path)
    names = {"鳥 birds": "000_鳥_birds.png", "кошка/cat": "001_кошка_cat.png"}
    found = {names[name] for name, count in run.results["by_class"].items() if count}
    assert {path.name for path in (tmp_path / "classes").iterdir()} == found == sheets.keys()
    probabilities = logits_of(model, images).softmax(dim=1)
    for name, tiles in sheets.items():
        of_class = probabilities[probabilities.argmax(dim=1) == int(name[:3]), int(name[:3])].sort(descending=True)
        best = of_class.values if len(of_class.values) <= 10 else torch.cat([of_class.values[:5], of_class.values[-5:]])
        sure = [float(tile.lines[1].rstrip(" %")) for tile in tiles]
        assert sure == pytest.approx((100 * best).tolist(), abs=0.06)
        assert all(torch.equal(tile.image, images[int(tile.lines[0])].expand(3, -1, -1)) for tile in tiles)
        framed = [tile.frame == predict.LEAST_CONFIDENT for tile in tiles]
        assert framed == [len(of_class.values) > 10 and place >= 5 for place in range(len(tiles))]
    assert max(run.results["by_class"].values()) > 10


def test_many_classes_are_summed_up():
    results = {"images": 78, "by_class": {f"class {n}": n for n in range(13)}, "median_confidence": 0.5}
    line = describe(results)
    assert line.startswith("78 images (class 12: 12, class 11: 11, ")
    assert ", class 3: 3, 2 other classes: 3, none: class 0), " in line
    assert ", no class: 7), " in describe(results | {"images_without_class": 7})


def test_the_temperature_is_found_on_validation_and_changes_no_class(classifier, tmp_path, capsys):
    settings = {**DIGITS, "weights": classifier, "split": ("test",)}
    plain = tinymae.predict(**settings, output_dir=tmp_path / "plain")
    assert "1,797 images, whose labels are not used here\n" in capsys.readouterr().out
    run = tinymae.predict(**settings, calibrate="digits", output_dir=tmp_path / "calibrated")
    val = load_dataset("digits", "val")
    assert run.results["temperature"] == pytest.approx(
        fit_temperature(logits_of(classifier, val.images), val.labels), rel=1e-3
    )
    assert run.results["temperature"] > 1.2  # it was too sure
    assert run.results["calibrated_val"]["nll"] < run.results["uncalibrated_val"]["nll"]
    before, after = (rows_of(tmp_path / name / "predictions.csv") for name in ("plain", "calibrated"))
    assert [row["class"] for row in before] == [row["class"] for row in after]
    powers = np.array([[float(row[name]) for name in "0123456789"] for row in before]) ** (
        1 / run.results["temperature"]
    )
    expected = powers / powers.sum(axis=1, keepdims=True)  # as docs/use.md has it for exported graphs
    np.testing.assert_allclose([[float(row[name]) for name in "0123456789"] for row in after], expected, atol=1e-5)
    mean = [sum(float(row["probability"]) for row in rows) for rows in (before, after)]
    assert mean[1] < mean[0] and plain.results["by_class"] == run.results["by_class"]


def test_images_to_predict_may_lack_columns_that_calibration_has(classifier, tmp_path):
    digits = load_dataset("digits", "test")
    save_images(tmp_path / "images", digits.images[:100])
    lines = [f"images/{n:02}.png,{digits.labels[n]},{n // 10},{('train', 'val')[n % 3 > 0]}" for n in range(90)]
    (tmp_path / "fold.csv").write_text("\n".join(["path,digit,film,fold", *lines]))
    (tmp_path / "new.csv").write_text("\n".join(["path", *(f"images/{n}.png" for n in range(90, 100))]))
    columns = {"label_column": "digit", "group_column": "film", "split_column": "fold"}
    common = {"weights": classifier, "mixed_precision": "no", **columns}
    run = tinymae.predict(tmp_path / "new.csv", calibrate=tmp_path / "fold.csv", **common, output_dir=tmp_path / "run")
    val = load_dataset(tmp_path / "fold.csv", "val", image_size=8, channels=1, **columns)
    expected = fit_temperature(logits_of(classifier, val.images), val.labels)
    assert len(val) == 60 and run.results["temperature"] == pytest.approx(expected, rel=1e-3)
    assert run.results["images"] == 10
    for data, wrong in ({}, ".*"), ({"calibrate": tmp_path / "new.csv"}, ".*new"):
        with pytest.raises(InputError, match=f"_column (digit|film) is none of table {wrong}"):
            tinymae.predict(tmp_path / "new.csv", **common, **data, output_dir=tmp_path / "wrong")


def test_calibration_reads_its_data_by_the_same_settings(classifier, tmp_path):
    digits = load_dataset("digits", "test")
    np.savez(tmp_path / "floats.npz", images=digits.images.numpy() / np.float32(255), labels=digits.labels)
    reading = {"pixel_range": (0, 1), "val_fraction": 0.5}
    settings = {"weights": classifier, "split": ("test",), "output_dir": tmp_path / "run"}
    run = tinymae.predict(tmp_path / "floats.npz", **settings, **reading, calibrate=tmp_path / "floats.npz")
    val = load_dataset(tmp_path / "floats.npz", "val", **reading)
    assert run.results["temperature"] == pytest.approx(
        fit_temperature(logits_of(classifier, val.images), val.labels), rel=1e-3
    )


def test_few_images_of_calibration_are_called_few_and_a_class_that_the_weights_do_not_know_is_named(tmp_path, capsys):
    digits = load_dataset("digits", "val")
    model = build_classifier(tiny_mae(), classes=[*"0123456789"]).eval()
    for count, few in ((120, ""), (50, ", which are few")):
        folder = tmp_path / str(count)
        save_images(folder / "new", digits.images[:3])
        for number in range(10):
            save_images(
                folder / "labelled" / "val" / str(number), digits.images[:count][digits.labels[:count] == number]
            )
            save_images(folder / "labelled" / "train" / str(number), digits.images[:1])
        save_images(folder / "labelled" / "train" / "smudge", digits.images[:1])
        tinymae.predict(folder / "new", weights=model, calibrate=folder / "labelled", output_dir=folder / "run")
        printed = capsys.readouterr().out
        assert f" from {count} validation images{few}\n" in printed and "not calibrated" not in printed
        assert "labelled knows smudge as well, which weights (Classifier) do not" in printed


def test_images_of_calibration_that_the_weights_were_trained_on_are_remarked_on(classifier, tmp_path, capsys):
    digits = load_dataset("digits")
    for number in range(10):
        save_images(tmp_path / "data" / str(number), digits.images[digits.labels == number][:10])
    classifier.save_pretrained(tmp_path / "weights")
    held_out = {name: load_dataset(tmp_path / "data", "val", image_size=8, channels=1, val_fraction=fraction).names
                for name, fraction in (("asked", 0.4), ("trained", 0.1))}  # fmt: skip
    names = load_dataset(tmp_path / "data", "train", image_size=8, channels=1, val_fraction=0.1).names
    remember_training(tmp_path / "weights", train=names)
    known = len({*names}.intersection(held_out["asked"]))
    assert known > 0
    for name, fraction in (("asked", 0.4), ("trained", 0.1)):
        tinymae.predict(digits.images[:3], weights=tmp_path / "weights", calibrate=tmp_path / "data",
                        val_fraction=fraction, output_dir=tmp_path / name)  # fmt: skip
        said = f"{known} of the {len(held_out[name])} val images are called like some that the weights were trained on"
        assert (said in capsys.readouterr().out) == (name == "asked")


def test_the_temperature_minimises_the_loss():
    logits, labels = 5 * torch.randn(400, 4), torch.randint(0, 4, (400,))
    logits[torch.arange(400), labels] += 6
    best = fit_temperature(logits, labels)
    losses = {t: torch.nn.functional.cross_entropy(logits / t, labels).item() for t in (0.9 * best, best, 1.1 * best)}
    assert min(losses, key=losses.get) == best
    grid = torch.logspace(-1, 1, 400)
    by_grid = min(grid.tolist(), key=lambda t: torch.nn.functional.cross_entropy(logits / t, labels).item())
    assert best == pytest.approx(by_grid, rel=0.02)


def test_probabilities_are_judged_as_scikit_learn_and_brute_force_do():
    probabilities, labels = torch.randn(500, 8).double().mul(2).softmax(dim=1), torch.randint(0, 8, (500,))
    found = probability_metrics(probabilities, labels)
    assert found["nll"] == pytest.approx(log_loss(labels, probabilities, labels=range(8)), rel=1e-4)
    assert found["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, probabilities, k=5))
    confidence, predicted = (values.numpy() for values in probabilities.max(dim=1))
    right = predicted == labels.numpy()
    error = 0.0
    bins = reliability(probabilities, labels)
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        assert bins["images"][number] == inside.sum()
        if inside.any():
            assert bins["accuracy"][number] == pytest.approx(right[inside].mean())
            error += abs(right[inside].mean() - confidence[inside].mean()) * inside.mean()
    assert found["ece"] == pytest.approx(100 * error, abs=1e-3)
    assert probability_metrics(torch.tensor([[0.5, 0.5]]), torch.tensor([0])).keys() == {"nll"}  # no bin says anything


def test_evaluation_says_what_probabilities_are_worth_and_shows_errors(
    classifier, tmp_path, quick_figures, monkeypatch
):
    sheets = note_sheets(monkeypatch, evaluate)
    run = tinymae.evaluate(**DIGITS, weights=classifier, output_dir=tmp_path)
    digits = load_dataset("digits", "test")
    logits = logits_of(classifier, digits.images)
    assert run.results["nll"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, digits.labels).item(), rel=1e-3
    )
    assert run.results["macro_f1"] == pytest.approx(100 * run.results["report"]["macro avg"]["f1-score"])
    assert 0 < run.results["ece"] < 100 and run.results["top5"] > run.results["accuracy"]
    sheet = np.asarray(Image.open(tmp_path / "errors.png"))
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    assert digits.labels is not None
    worst = int(torch.where(predicted != digits.labels, confidence, -1).argmax())
    assert np.allclose(sheet[27:123, 8:104, 0], resized(digits.images[worst, 0], 96), atol=1)
    said = [digits.names[worst], f"{digits.labels[worst]}, not", f"{predicted[worst]} {100 * confidence[worst]:.0f} %"]
    assert [*sheets["errors.png"][0].lines] == said and (tmp_path / "reliability.png").exists()


def test_the_calibration_error_of_few_images_is_left_out(classifier, tmp_path, capsys, quick_figures):
    digits = load_dataset("digits", "test")
    few = {"labels": digits.labels[:29], "split": "all", "weights": classifier}
    run = tinymae.evaluate(digits.images[:29], **few, output_dir=tmp_path)
    assert "ece" not in run.results and "too few for calibration" in capsys.readouterr().out


def test_weights_without_a_head_and_other_classes_are_refused(classifier, tmp_path, capsys):
    tiny_mae().save_pretrained(tmp_path / "mae")
    settings = {**DIGITS, "output_dir": tmp_path / "run"}
    assert "hold an autoencoder" in refused(capsys, "predict", **settings, weights=tmp_path / "mae")
    build_classifier(tiny_mae(), classes=["a", "b"]).write_weights(tmp_path / "two")
    line = refused(capsys, "predict", **settings, weights=tmp_path / "two", calibrate="digits")
    assert "know 2 classes (a, b), calibrate digits has 10 others" in line and not (tmp_path / "run").exists()


def test_images_that_cannot_be_read_have_no_results_however_large_the_data_are(classifier, tmp_path, monkeypatch):
    digits = load_dataset("digits", "test")
    for number, image in enumerate(digits.images[:8]):
        path = tmp_path / "data" / "03"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
        if number == 3:
            path.write_bytes(path.read_bytes()[:60])
    settings = {"weights": classifier, "mixed_precision": "no", "skip_unreadable": True}
    found = {}
    for name in ("memory", "stream"):
        run = tinymae.predict(tmp_path / "data", **settings, output_dir=tmp_path / name)
        look = tinymae.evaluate(tmp_path / "data", **settings, split="all", output_dir=tmp_path / f"look {name}")
        assert run.results["images"] == 7 == sum(map(sum, look.results["confusion_matrix"]))
        assert (tmp_path / name / "skipped.txt").read_text() == "3/3.png\n"
        found[name] = rows_of(tmp_path / name / "predictions.csv")
        monkeypatch.setitem(load_splits.__kwdefaults__, "memory_limit_gb", 0)
    assert found["memory"] == found["stream"]
