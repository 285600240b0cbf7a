"""What an inspection finds of what was planted, and that its parts do what independent implementations do."""

import itertools

import numpy as np
import pytest
import torch
from pictures import picture
from running import note_sheets, refused, rows_of, tiny_mae
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import tinymae
from tinymae import MaskedAutoencoder
from tinymae.commands import inspect as command
from tinymae.commands.features import JoinedSplits
from tinymae.commands.inspect import show_group
from tinymae.data.datasets import ImageDataset
from tinymae.data.images import read_image
from tinymae.data.load import load_splits
from tinymae.evaluation.inspection import (
    CANDIDATES,
    aligned_correlation,
    candidate_pairs,
    confident_issues,
    find_duplicates,
    group_pairs,
    held_out_probabilities,
    to_details,
)
from tinymae.randomness import derive_seed


def photographs(count: int, seed: int = 0) -> torch.Tensor:
    """Smooth random images in colour, uint8 (count, 3, 32, 32), as different from each other as photographs."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic", antialias=True)
    return (255 * smooth).clamp(0, 255).to(torch.uint8)


def crop(image: torch.Tensor) -> torch.Tensor:
    """A corner of 27 x 27 pixels at the old size, mirrored."""
    part = image[None, :, 3:30, :27].flip(3).float()
    return torch.nn.functional.interpolate(part, (32, 32), mode="bilinear")[0].round().to(torch.uint8)


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    """An inspection of 100 images, of which 3 are copies and one is a line on white, with labels by brightness."""
    images = photographs(100)
    images[90], images[91], images[92] = images[5], crop(images[6]), (images[7] / 2 + 60).to(torch.uint8)
    images[93] = 255
    images[93, :, 10:14, 4:29] = 0
    model = MaskedAutoencoder(image_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=2).eval()
    with pytest.MonkeyPatch.context() as patch:  # features of random weights propose nothing: compare all pairs
        patch.setitem(CANDIDATES, "features", 99)
        run = tinymae.inspect(images, labels=labels_of(images), weights=model, mixed_precision="no",
                              output_dir=tmp_path_factory.mktemp("inspect"))  # fmt: skip
    return run, images, model


def originals(images: torch.Tensor) -> dict[tuple[str, str], int]:
    """The place in `images`, labelled as they were, of each split and name; of an exact copy that of its original."""
    joined = JoinedSplits(load_splits(images, ["train", "val", "test"], labels=labels_of(images), present=True))
    every = torch.arange(len(joined))
    places = [int((images == image).flatten(1).all(dim=1).nonzero()[0]) for image in joined[every]]
    return {(split, name): place for (name, split, _), place in zip(joined.about(every), places, strict=True)}


def labels_of(images: torch.Tensor) -> torch.Tensor:
    """Dark or bright."""
    return (images.float().mean(dim=(1, 2, 3)) > 127).long()


def test_copies_are_grouped_and_leaks_between_splits_named(inspected):
    run, images, _ = inspected
    places, groups = originals(images), {}
    for row in rows_of(run.folder / "duplicates.csv"):
        groups.setdefault(row["group"], []).append(row)
    found = {frozenset(places[row["split"], row["name"]] for row in group) for group in groups.values()}
    # The group of an exact copy has one place.
    assert found == {frozenset({5}), frozenset({6, 91}), frozenset({7, 92})}
    for group in groups.values():
        across = len({row["split"] for row in group}) > 1
        assert all(row["across_splits"] == ("yes" if across else "no") for row in group)
        assert all(float(row["correlation"]) >= 0.86 for row in group)
    assert run.results["duplicate_groups"] == 3 and run.results["duplicate_images"] == 6
    leaks = [group[0]["across_splits"] for group in groups.values()]
    assert leaks == sorted(leaks, reverse=True) and run.results["groups_across_splits"] == leaks.count("yes")


def test_outliers_are_ranked_as_scikit_learn_ranks_them(inspected):
    run, images, model = inspected
    places, rows = originals(images), rows_of(run.folder / "outliers.csv")
    assert len(rows) == 100 and places[rows[0]["split"], rows[0]["name"]] == 93
    with torch.no_grad():
        features = model.encode(images).numpy()
    distances = NearestNeighbors(n_neighbors=11, metric="cosine").fit(features).kneighbors(features)[0][:, 10]
    given = [float(row["distance"]) for row in rows]
    assert given == pytest.approx(sorted(distances.tolist(), reverse=True), abs=2e-4)


def test_every_label_is_ranked_by_its_probability_to_a_probe_of_other_images(inspected):
    run, images, model = inspected
    joined = JoinedSplits(load_splits(images, ["train", "val", "test"], labels=labels_of(images), present=True))
    every = torch.arange(len(joined))
    with torch.no_grad():
        features = model.encode(joined[every])
    probabilities = held_out_probabilities(
        features, joined.labels, num_classes=2, folds=5, seed=derive_seed(0, "folds")
    )
    own, high = probabilities.gather(1, joined.labels[:, None])[:, 0].tolist(), probabilities.amax(dim=1).tolist()
    doubtful = confident_issues(probabilities, joined.labels).tolist()
    names = [name for name, *_ in joined.about(every)]
    expected = dict(zip(names, zip(joined.labels.tolist(), own, high, doubtful, strict=True), strict=True))
    rows = rows_of(run.folder / "doubtful_labels.csv")
    found = [float(row["label_probability"]) for row in rows]
    assert len(expected) == len({row["name"] for row in rows}) == 100 and found == sorted(found)
    for row in rows:
        label, probability, likeliest, doubt = expected[row["name"]]
        assert (row["label"], row["doubtful"]) == (str(label), "yes" if doubt else "no")
        assert float(row["label_probability"]) == pytest.approx(probability, abs=2e-3)
        assert float(row["guess_probability"]) == pytest.approx(likeliest, abs=2e-3)
    assert run.results["doubtful_labels"] == sum(doubtful)


def test_the_page_shows_three_sheets(inspected):
    run, *_ = inspected
    page = (run.folder / "index.html").read_text()
    for name in ("duplicates", "outliers", "doubtful_labels"):
        assert f'src="{name}.png"' in page and f'href="{name}.csv"' in page and (run.folder / f"{name}.png").exists()


def test_labels_of_rare_classes_are_not_judged(inspected, tmp_path):
    images = photographs(60)
    labels = [*([0] * 29), *([1] * 28), 2, 2, 3]
    settings = {"labels": labels, "weights": inspected[2], "mixed_precision": "no", "split": ("all",)}
    tinymae.inspect(images, **settings, output_dir=tmp_path)
    rows = rows_of(tmp_path / "doubtful_labels.csv")
    assert [row["doubtful"] for row in rows[-3:]] == ["too few to judge"] * 3
    assert {row["label"] for row in rows[-3:]} == {"2", "3"} and {row["label"] for row in rows[:-3]} == {"0", "1"}


def test_a_probe_that_is_often_wrong_and_many_groups_are_said_to_mean_little(tmp_path, inspected, monkeypatch):
    sheets = note_sheets(monkeypatch, command)
    images = photographs(60)
    images[40:] = images[3]
    labels = torch.randint(0, 4, (60,), generator=torch.Generator().manual_seed(0))
    run = tinymae.inspect(images, labels=labels, weights=inspected[2], mixed_precision="no", output_dir=tmp_path)
    rows = rows_of(tmp_path / "doubtful_labels.csv")
    assert run.results["held_out_accuracy"] == pytest.approx(100 * np.mean([r["guess"] == r["label"] for r in rows]))
    assert run.results["held_out_accuracy"] < 50 and run.results["duplicate_images"] == 21
    remarks = ("too rarely for this list to mean much", "raise --least-correlation, which is 0.86 here")
    assert all(remark in (tmp_path / "index.html").read_text() for remark in remarks)
    assert remarks[1] not in (inspected[0].folder / "index.html").read_text()  # 6 of 100 images
    for name, tiles in sheets.items():  # whose captions are of what they show
        assert all(torch.equal(tile.image, images[int(tile.lines[0])]) for tile in tiles), name
    assert len(sheets["outliers.png"]) == len(sheets["doubtful_labels.png"]) == 60
    shown = [
        (tile.lines[0], *(line.split()[-1].rstrip("?") for line in tile.lines[1:]))
        for tile in sheets["doubtful_labels.png"]
    ]
    assert shown == [(row["name"], row["label"], row["guess"]) for row in rows]
    assert [row["label"] for row in rows] == [str(int(labels[int(row["name"])])) for row in rows]


def test_sheets_show_files_larger_than_the_encoder_sees_them(tmp_path, monkeypatch):
    for number in range(12):
        picture(tmp_path / "photos" / "ab"[number % 2] / f"{number}.png", size=(40, 40), seed=number // 3)
    sheets = note_sheets(monkeypatch, command)
    settings = {"weights": tiny_mae(), "mixed_precision": "no", "split": ("all",)}
    tinymae.inspect(tmp_path / "photos", **settings, output_dir=tmp_path / "run")
    assert sheets.keys() == {"duplicates.png", "outliers.png", "doubtful_labels.png"}
    for tile in itertools.chain(*sheets.values()):
        seen = read_image(tmp_path / "photos" / tile.lines[0], (1, 96, 96), depth="uint8")
        assert torch.equal(tile.image, seen.expand(3, -1, -1))


def test_a_large_group_says_how_many_it_does_not_show():
    images = JoinedSplits({"train": ImageDataset("some", photographs(20), None, [])})
    best = torch.linspace(0.99, 0.86, 15)
    tiles = show_group(images, torch.arange(15), best, 1, frame="red")
    assert [tile.lines[0] for tile in tiles] == [str(row) for row in range(12)] and tiles[-1].lines[-1] == "+3 more"
    assert [tile.lines[2] for tile in tiles] == [f"correlation {value:.2f}" for value in best[:12]]
    assert "more" not in show_group(images, torch.arange(12), best[:12], 1, frame="red")[-1].lines[-1]


def test_an_outlier_is_far_from_a_tenth_of_the_images_but_no_more_than_500(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "kth_distance", lambda features, k: torch.rand(len(features)))
    settings = command.InspectSettings(weights="somewhere")
    for count, k in ((2, 1), (9, 1), (60, 6), (5200, 500)):
        images = JoinedSplits({"train": ImageDataset("some", photographs(1).expand(count, -1, -1, -1), None, [])})
        assert command.inspect_outliers(settings, images, torch.zeros(count, 4), tmp_path).numbers["k"] == k


def test_without_labels_there_are_two_sheets(tmp_path):
    model = MaskedAutoencoder(image_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2).eval()
    run = tinymae.inspect(photographs(12), weights=model, mixed_precision="no", output_dir=tmp_path)
    assert not (tmp_path / "doubtful_labels.csv").exists() and "Doubtful" not in (tmp_path / "index.html").read_text()
    assert run.results["images"] == 12 and "doubtful_labels" not in run.results


# ---- the parts


def test_duplicates_are_the_pairs_that_correlate_as_much_as_was_asked_for(tmp_path):
    images = photographs(40)
    images[30:] = (0.5 * images[:10] + 0.5 * photographs(10, seed=1)).to(torch.uint8)  # more and less alike
    joined = JoinedSplits({"train": ImageDataset("some", images, None, [])})
    features = images.flatten(1).float()
    every = find_duplicates(features, joined.__getitem__, least_correlation=-1)
    for least in (0.5, 0.75, 0.95):
        settings = command.InspectSettings(weights="somewhere", least_correlation=least)
        found = command.inspect_duplicates(settings, joined, features, tmp_path).numbers["duplicate_images"]
        kept = every.correlation >= least
        assert found == len({*every.first[kept].tolist(), *every.second[kept].tolist()})


def test_a_crop_a_mirror_and_other_colours_correlate_and_other_images_do_not():
    images = photographs(60)
    grey = to_details(images)
    copies = {
        "cropped": torch.stack([crop(image) for image in images]),
        "darker": (images / 2 + 20).to(torch.uint8),
        "inverted channels": images.flip(1),
    }
    for name, copy in copies.items():
        assert aligned_correlation(grey, to_details(copy)).min() > 0.9, name
        assert torch.allclose(aligned_correlation(grey, to_details(copy)), aligned_correlation(to_details(copy), grey))
    assert aligned_correlation(grey, grey.roll(1, dims=0)).max() < 0.9
    flat = torch.full((2, 16, 16), 7.0)
    assert torch.equal(aligned_correlation(flat, grey[:2]), torch.zeros(2))  # without contrast nothing is alike


def test_without_a_shift_it_is_the_correlation_of_the_pixels():
    one, two = torch.rand(1, 16, 16), torch.rand(1, 16, 16)
    pearson = float(np.corrcoef(one.flatten(), two.flatten())[0, 1])
    assert aligned_correlation(one, two).item() >= pearson
    assert aligned_correlation(one, one + 0.01 * two).item() == pytest.approx(
        float(np.corrcoef(one.flatten(), (one + 0.01 * two).flatten())[0, 1]), abs=1e-5
    )


def test_pairs_and_groups_are_those_of_brute_force():
    index = torch.tensor([[1, 4], [0, 4], [4, 5], [5, 2], [1, 2], [3, 2], [7, 7], [6, 6]])
    first, second = candidate_pairs(index)
    expected = {tuple(sorted((row, other))) for row, others in enumerate(index.tolist()) for other in others}
    assert [*zip(first.tolist(), second.tolist(), strict=True)] == sorted(expected)
    assert group_pairs(torch.tensor([0, 1, 3]), torch.tensor([1, 4, 5]), 7).tolist() == [0, 0, -1, 1, 0, 1, -1]


def test_held_out_probabilities_are_those_of_scikit_learn_and_find_wrong_labels():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    features = torch.randn(300, 8, generator=generator) + 3 * torch.eye(3, 8)[labels]
    wrong = torch.zeros(300, dtype=torch.bool)
    wrong[::20] = True
    given = torch.where(wrong, (labels + 1) % 3, labels)
    probabilities = held_out_probabilities(features, given, num_classes=3, folds=5, seed=0)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (240 * 1e-2), tol=1e-6))
    folds = [fold.numpy() for fold in torch.randperm(300, generator=torch.Generator().manual_seed(0)).tensor_split(5)]
    parts = [(np.setdiff1d(np.arange(300), fold), fold) for fold in folds]
    expected = cross_val_predict(probe, features.numpy(), given.numpy(), cv=parts, method="predict_proba")
    assert np.allclose(probabilities.numpy(), expected, atol=2e-3)
    own = probabilities.gather(1, given[:, None])[:, 0]
    assert average_precision_score(wrong, -own) > 0.5  # at random 0.05
    issues = confident_issues(probabilities, given)
    assert issues[wrong].float().mean() > 0.6 and issues[~wrong].float().mean() < 0.1


def test_folds_keep_groups_whole_so_that_no_image_of_a_subject_judges_another():
    generator = torch.Generator().manual_seed(0)
    subjects = torch.arange(200) // 5
    truth = subjects % 2
    given = torch.where(subjects == 7, 1 - truth, truth)  # wrong throughout
    features = torch.randn(40, 300, generator=generator)[subjects] + torch.eye(2, 300)[truth] * 4
    features += 0.1 * torch.randn(200, 300, generator=generator)  # images of a subject hardly differ
    common = {"num_classes": 2, "folds": 5, "seed": 0}
    groups = [f"subject {number}" for number in subjects.tolist()]
    probabilities = held_out_probabilities(features, given, **common, groups=groups)
    parts = GroupKFold(5, shuffle=True, random_state=0)
    # For two classes it has one weight, the difference of ours.
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=2 / (160 * 1e-2), tol=1e-6))
    expected = cross_val_predict(
        probe, features.numpy(), given.numpy(), groups=groups, cv=parts, method="predict_proba"
    )
    assert np.allclose(probabilities.numpy(), expected, atol=5e-3)
    assert (probabilities.argmax(dim=1) == truth)[subjects == 7].all()
    by_image = held_out_probabilities(features, given, **common).argmax(dim=1)
    assert (by_image == given)[subjects == 7].all()  # its other images confirm the label


@pytest.mark.parametrize("split", [("train", "val", "test"), ("all",)])
def test_inspection_judges_labels_by_groups_and_recommends_them_only_where_there_are_none(tmp_path, split, monkeypatch):
    for number in range(48):  # four images of each subject; of class c there is one subject
        label = "c" if number < 4 else "ab"[number // 4 % 2]
        picture(tmp_path / "photos" / label / f"s{number // 4}_{number}.png", seed=number // 4)
    seen = {}

    def judge(features, labels, *, groups, **options):
        seen["groups"] = groups
        return held_out_probabilities(features, labels, groups=groups, **options)

    monkeypatch.setattr(command, "held_out_probabilities", judge)
    common = {"weights": tiny_mae(in_channels=3), "mixed_precision": "no", "split": split}
    run = tinymae.inspect(tmp_path / "photos", group_pattern=r"s\d+", **common, output_dir=tmp_path / "run")
    rows = rows_of(run.folder / "doubtful_labels.csv")
    assert len(seen["groups"]) == 48 and {*seen["groups"]} == {f"s{number}" for number in range(12)}
    assert {row["label"] for row in rows if row["doubtful"] == "too few to judge"} == {"c"}
    page = (run.folder / "index.html").read_text()
    assert "4 are of classes with fewer than 5 groups, and not judged" in page
    assert "frames of one group;" in page and "--group-column" not in page
    tinymae.inspect(tmp_path / "photos", **common, output_dir=tmp_path / "plain")
    assert not seen["groups"] and "--group-column" in (tmp_path / "plain" / "index.html").read_text()
    few = tinymae.inspect(tmp_path / "photos", group_pattern=r"s\d+", folds=13, **common, output_dir=tmp_path / "few")
    assert "of classes with fewer than 12 groups" in (few.folder / "index.html").read_text()  # as many as there are
    one = tinymae.inspect(
        tmp_path / "photos", group_pattern="s", **common | {"split": "all"}, output_dir=tmp_path / "one"
    )
    assert (one.folder / "duplicates.csv").exists() and not (one.folder / "doubtful_labels.csv").exists()


def test_a_probability_was_found_without_the_image_itself():
    features, labels = torch.randn(40, 200), torch.arange(40) % 2  # so wide that any labels can be learned by heart
    probabilities = held_out_probabilities(features, labels, num_classes=2, folds=5, seed=0)
    assert (probabilities.argmax(dim=1) == labels).float().mean() < 0.8
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(40), atol=1e-5)


def test_confident_learning_as_the_paper_counts():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4), 200).astype(np.float32)
    labels = generator.integers(0, 4, 200)
    thresholds = [probabilities[labels == c, c].mean() for c in range(4)]
    expected = []
    for row, label in zip(probabilities, labels, strict=True):
        confident = [c for c in range(4) if row[c] >= thresholds[c]]
        expected.append(bool(confident) and max(confident, key=lambda c: row[c]) != label)
    assert confident_issues(torch.tensor(probabilities), torch.tensor(labels)).tolist() == expected


def test_settings_that_cannot_work_are_one_line(tmp_path, capsys):
    tiny_mae().save_pretrained(tmp_path / "weights")
    settings = {"weights": tmp_path / "weights", "data": "digits", "output_dir": tmp_path / "run"}
    assert "folds 1 is below 2" in refused(capsys, "inspect", **settings, folds=1)
    assert "least_correlation 2 is above 1" in refused(capsys, "inspect", **settings, least_correlation=2)
    assert not (tmp_path / "run").exists()
