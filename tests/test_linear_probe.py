"""Probing frozen features, as a command and against scikit-learn."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import digits_as_rows
from PIL import Image
from running import DIGITS, FEW, remember_training, same_files, save_images, tiny_mae
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score
from sklearn.preprocessing import StandardScaler

import tinymae
from tinymae import InputError, load_dataset
from tinymae.commands import linear_probe as command
from tinymae.commands.probing import untrained_twin
from tinymae.evaluation.probes import L2_GRID, choose_probe, fit_mlp, linear_fits, predict_score
from tinymae.files import read_json
from tinymae.interop.load import load_classifier


def test_a_probe_reports_and_leaves_a_classifier(pretrained, quick_probes, tmp_path):
    run = tinymae.linear_probe(**DIGITS, weights=pretrained, controls="all", output_dir=tmp_path)
    results = run.results
    assert results["encoder_unchanged"] and results["num_features"] == 32
    assert results["raw_pixels"]["probe_test"] > 90 > results["untrained"]["knn_test"]
    test = load_dataset("digits", "test")
    for classifier in (load_classifier(tmp_path), run.model):
        with torch.no_grad():
            predictions = classifier(test.images).argmax(1)
        score = 100 * float((predictions == test.labels).double().mean())
        assert score == pytest.approx(results["probe_test"], abs=0.3)
    assert np.asarray(Image.open(tmp_path / "confusion_matrix.png")).std() > 10
    assert np.sum(results["confusion_matrix"]) == results["num_test_labels"] == 360
    expected = confusion_matrix(test.labels, predictions)  # a tie may be broken in another way
    assert np.abs(results["confusion_matrix"] - expected).sum() <= 4 < np.abs(expected - expected.T).sum()
    assert results["classes"] == test.classes


def test_the_untrained_control_has_the_same_architecture_and_none_of_the_weights():
    model = tiny_mae()
    twin = untrained_twin(model, SimpleNamespace(device=torch.device("cpu"), mixed_precision="no"), seed=3)
    before = model.state_dict()
    same = [name for name, tensor in twin.state_dict().items() if tensor.ndim > 1 and torch.equal(tensor, before[name])]
    assert twin.config == model.config and all("pos_embed" in name for name in same)


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_the_classifier_of_a_probe_pools_as_the_probe_did(pool, quick_figures, quick_probes, tmp_path):
    given = FEW | {"weights": tiny_mae(), "pool": pool, "val_fraction": 0.4, "test_fraction": 0.4}
    run = tinymae.linear_probe(**given, output_dir=tmp_path)
    test = load_dataset(FEW["data"], "test", labels=FEW["labels"], val_fraction=0.4, test_fraction=0.4)
    for classifier in (run.model, load_classifier(tmp_path)):
        right = classifier(test.images).argmax(dim=1) == test.labels
        assert run.results["probe_test"] == pytest.approx(100 * float(right.double().mean()))


def test_recall_and_f1_are_averaged_over_unequal_classes_as_by_evaluate(quick_figures, quick_probes, tmp_path, capsys):
    digits = load_dataset("digits", "test")
    data = {"data": digits.images, "labels": digits.labels.clamp(max=3), "mixed_precision": "no"}  # most have the last
    given = data | {"weights": tiny_mae(), "no_test": True}
    for learn, short in ((tinymae.linear_probe, {}), (tinymae.finetune, {"epochs": 1, "recipe": "light"})):
        run = learn(**given, **short, output_dir=tmp_path / learn.__name__)
        matrix = np.array(run.results["confusion_matrix"])
        truth, predicted = (np.repeat(each.ravel(), matrix.ravel()) for each in np.indices(matrix.shape))
        expected = {
            "balanced_accuracy": 100 * balanced_accuracy_score(truth, predicted),
            "macro_f1": 100 * f1_score(truth, predicted, average="macro", labels=np.unique(truth)),
        }
        line = f"balanced accuracy {expected['balanced_accuracy']:.1f} %, the mean recall\n"
        assert line in capsys.readouterr().out and expected["balanced_accuracy"] < 100 * np.mean(truth == predicted)
        look = tinymae.evaluate(**data, weights=run.model, split="val", output_dir=run.folder / "look")
        for name, value in expected.items():
            assert run.results[f"{name}_val"] == look.results[name] == pytest.approx(value)
        assert line in capsys.readouterr().out


def test_pixels_as_features_are_averaged_no_further_than_they_must_be():
    images = torch.arange(64 * 64).view(1, 1, 64, 64).fmod(251).to(torch.uint8).expand(2, 3, 64, 64)
    assert command.VALUES / 2 < command.few_values(images).shape[1] <= command.VALUES
    few = images[:, :, :8, :8]
    assert torch.equal(command.few_values(few), (few / 255).flatten(1))


def test_few_labels_and_the_mlp_head(pretrained, quick_figures, tmp_path):
    few = {"label_fraction": 0.1, "head": "mlp", "pool": "cls"}
    run = tinymae.linear_probe(**DIGITS, **few, weights=pretrained, output_dir=tmp_path)
    assert 120 <= run.results["num_labels"] <= 140 and run.results["probe_test"] > 20
    assert (tmp_path / "head.safetensors").exists() and not (tmp_path / "model.safetensors").exists()
    assert run.model(torch.zeros(2, 32)).shape == (2, 10)


def test_few_labels_of_validation_choose_the_head(pretrained, quick_figures, quick_probes, tmp_path):
    whole = tinymae.linear_probe(**DIGITS, weights=pretrained, output_dir=tmp_path / "whole").results
    run = tinymae.linear_probe(**DIGITS, weights=pretrained, val_labels=20, output_dir=tmp_path / "few")
    assert (whole["num_val_labels"], run.results["num_val_labels"]) == (137, 20)
    assert all(accuracy % 5 == 0 for accuracy in run.results["tried_on_val"].values())
    assert run.results["knn_test"] == whole["knn_test"]  # nothing in it is chosen
    recorded = [read_json(tmp_path / each / "args.json") for each in ("whole", "few")]
    assert recorded[0]["inputs"] == recorded[1]["inputs"]


def test_a_model_in_training_is_probed_as_in_evaluation(quick_figures, tmp_path):
    torch.manual_seed(0)
    model = tiny_mae()
    for block in model.encoder.blocks:
        block.mlp.drop1.p = 0.9  # dropout that training would show
    scores = [
        tinymae.linear_probe(**FEW, weights=model.train(mode), head="mlp", output_dir=tmp_path / str(mode)).results
        for mode in (True, False)
    ]
    assert scores[0]["tried_on_val"] == scores[1]["tried_on_val"]
    assert same_files(tmp_path / "True", tmp_path / "False", "head.safetensors")


def test_another_seed_gives_another_mlp(quick_figures, quick_probes, tmp_path):
    for seed in (1, 2):
        given = FEW | {"weights": tiny_mae(), "head": "mlp", "seed": seed, "output_dir": tmp_path / str(seed)}
        tinymae.linear_probe(**given)
    assert not same_files(tmp_path / "1", tmp_path / "2", "head.safetensors")


def test_images_of_test_that_pretraining_saw_are_remarked_on(quick_figures, quick_probes, tmp_path, capsys):
    digits = load_dataset("digits")
    for label in (0, 1):
        save_images(tmp_path / "data" / str(label), digits.images[digits.labels == label][:30])
    tiny_mae().save_pretrained(tmp_path / "mae")
    common = {"weights": tmp_path / "mae", "mixed_precision": "no"}
    tune = {"epochs": 1, "batch_size": 16, "log_with": ()}
    for split in ("test", "val"):
        names = load_dataset(tmp_path / "data", split, image_size=8, channels=1).names
        remember_training(tmp_path / "mae", train=names[:2])
        said = (
            f"the encoder was pretrained on 2 of the {len(names)} {split} images, if names tell, without their labels: "
            "for a strict test, pretrain on the same splits, the data's own or by --val-fraction"
        )
        for learn, name, given in [
            (tinymae.linear_probe, "probe", {}),
            (tinymae.finetune, "finetune", tune),
            (tinymae.finetune, "scratch", tune | {"from_scratch": True}),  # which starts at no weights
        ]:
            folder = tmp_path / f"{name} {split}"
            learn(tmp_path / "data", **common, **given, no_test=split == "val", output_dir=folder)
            assert (said in capsys.readouterr().out) == (name != "scratch")


def test_what_cannot_be_probed_is_refused_before_a_folder_is_made(tmp_path):
    probe = tinymae.models.classifier.build_classifier(tiny_mae(), classes=["0", "1"])
    for settings, message in [
        ({"weights": probe}, r"weights \(Classifier\) hold a classifier; give the folder of a pretraining run"),
        ({"weights": tmp_path / "nothing"}, "nothing does not exist"),
        ({"label_fraction": 1.5}, "label_fraction 1.5 is above 1"),
        ({"batch_size": 0}, "batch_size 0 is below 1"),
        ({"labels": None}, "data set array has no labels in train"),
    ]:
        with pytest.raises(InputError, match=message):
            tinymae.linear_probe(**FEW | {"weights": tiny_mae()} | settings, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("classes", [10, 2])
def test_a_linear_probe_is_scikit_learns_logistic_regression(classes):
    """The same optimum, not only as good a one; a bias common to all classes is free."""
    train, test = (
        (split.images.flatten(1)[split.labels < classes] / 255, split.labels[split.labels < classes])
        for split in (load_dataset("digits"), load_dataset("digits", "test"))
    )
    alive = train[0].std(0) > 0.05  # BatchNorm's epsilon counts where a pixel hardly varies; scikit-learn has none
    scaler = StandardScaler().fit(train[0][:, alive])
    for l2, probe in linear_fits(train[0][:, alive], train[1], num_classes=classes, grid=[1e-1, 1e-3]):
        strength = 1 / (len(train[1]) * l2)
        if classes == 2:  # one weight w there stands for w/2 and -w/2 here, whose penalty is half as large
            strength *= 2
        theirs = LogisticRegression(C=strength, max_iter=1000).fit(scaler.transform(train[0][:, alive]), train[1])
        expected = theirs.predict_proba(scaler.transform(test[0][:, alive]))
        with torch.no_grad():
            probabilities = probe(test[0][:, alive]).softmax(dim=1)
        torch.testing.assert_close(probabilities, torch.from_numpy(expected).float(), atol=0.05, rtol=0)
        assert float((probabilities.argmax(1) == test[1]).double().mean()) > 0.9


def test_features_that_a_study_keeps_are_not_computed_again_and_change_nothing(
    pretrained, quick_figures, quick_probes, tmp_path, monkeypatch
):
    settings = DIGITS | {"weights": pretrained, "head": "mlp"}
    alone = tinymae.linear_probe(**settings, output_dir=tmp_path / "alone").results
    kept, calls = {}, []
    extract = command.split_features
    monkeypatch.setattr(command, "split_features", lambda *a, **k: calls.append(1) or extract(*a, **k))
    for head in ("linear", "mlp"):
        own = {"head": head, "controls": "untrained" if head == "linear" else None, "output_dir": tmp_path / head}
        results = command.run(command.LinearProbeSettings(**settings | own), kept).results
    assert len(calls) == 2  # of the encoder, and of the untrained one, which is nobody's features
    assert results == alone


def test_the_probe_is_chosen_on_validation():
    (features, labels), (val, val_labels), _ = digits_as_rows()
    fits = linear_fits(features, labels, num_classes=10, grid=L2_GRID[:3])  # the others take the longest
    probe, l2, tried = choose_probe(fits, lambda probe: predict_score(probe, val, val_labels))
    assert tried[l2] == max(tried.values()) and len({*tried.values()}) == 3
    assert predict_score(probe, val, val_labels) == tried[l2]


@pytest.mark.parametrize("seed", range(20))
def test_of_probes_that_differ_by_one_image_of_validation_the_most_regularised_is_chosen(seed):
    generator = torch.Generator().manual_seed(seed)
    images = int(torch.randint(3, 60, (1,), generator=generator))
    right = torch.randint(0, images + 1, (len(L2_GRID),), generator=generator).tolist()
    scores = {l2: 100 * count / images for l2, count in zip(L2_GRID, right, strict=True)}
    enough = [l2 for l2, count in zip(L2_GRID, right, strict=True) if count >= max(right) - 1]
    for order in (L2_GRID, L2_GRID[::-1]):
        probes = {l2: torch.nn.Linear(1, 1) for l2 in order}
        strength = {probe: l2 for l2, probe in probes.items()}
        judge = lambda probe, strength=strength: scores[strength[probe]]  # noqa: E731
        probe, l2, tried = choose_probe(probes.items(), judge, tolerance=100 / images)
        assert (strength[probe], l2, tried) == (max(enough), max(enough), scores)


def test_a_probe_takes_one_image_of_validation_for_no_evidence(pretrained, quick_figures, tmp_path, capsys):
    settings = DIGITS | {"weights": pretrained, "label_fraction": 0.05, "val_labels": 10}
    run = tinymae.linear_probe(**settings, output_dir=tmp_path)
    tried = {float(l2): score for l2, score in run.results["tried_on_val"].items()}
    assert run.results["chosen"] == max(l2 for l2, score in tried.items() if score >= max(tried.values()) - 10.01)
    assert f"labels, regularisation {run.results['chosen']:g}" in capsys.readouterr().out


def test_mlp_learns_and_repeats_itself():
    (features, labels), _, (test, test_labels) = digits_as_rows()
    fit = {"num_classes": 10, "weight_decay": 0.1, "seed": 3, "epochs": 5}
    probe = fit_mlp(features, labels, **fit)
    assert predict_score(probe, test, test_labels) > 90
    again = fit_mlp(features, labels, **fit)
    assert torch.equal(probe(test), again(test))


def test_weight_decay_makes_the_weights_of_an_mlp_smaller():
    data = {"features": torch.randn(200, 8), "labels": torch.arange(200) % 3, "num_classes": 3, "seed": 0, "epochs": 20}
    without, much = (fit_mlp(**data, weight_decay=decay)[1].weight.norm() for decay in (0.0, 10.0))
    assert much < 0.9 * without
