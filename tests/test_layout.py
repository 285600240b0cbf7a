"""Where a map lays images, what clusters they form, and which to label first."""

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from tinymae.evaluation import layout
from tinymae.evaluation.layout import choose_to_label, find_clusters, lay_out


def blobs(count: int, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 3
    return (3 * np.eye(3, width)[labels] + generator.normal(scale=0.3, size=(count, width))).astype(np.float32), labels


def test_groups_stay_together_on_the_map_and_in_clusters(monkeypatch):
    monkeypatch.setattr(layout, "has_umap", lambda: False)
    monkeypatch.setattr(layout, "FITTED", 90)
    features, labels = blobs(300)
    places = lay_out(features)
    assert places.shape == (300, 2) and places.min() >= 0 and places.max() <= 1
    assert silhouette_score(places, labels) > 0.5
    assert np.array_equal(places, lay_out(features))  # the same each time
    assert len(np.unique(places.round(6), axis=0)) == 300  # none hides another
    found = find_clusters(features, count=3, seed=0)
    assert all(len(np.unique(found[labels == label])) == 1 for label in range(3))
    two = find_clusters(features, count=2, seed=0)
    assert two.max() == 1 and np.bincount(two).argmax() == 0


@pytest.mark.parametrize(("count", "width"), [(1, 16), (2, 16), (8, 16), (30, 3), (30, 1)])
def test_few_images_or_features_are_a_map_too(count, width, monkeypatch):
    monkeypatch.setattr(layout, "has_umap", lambda: False)
    places = lay_out(blobs(count, width)[0])
    assert places.shape == (count, 2) and np.isfinite(places).all()


def test_what_to_label_first_is_one_image_near_the_middle_of_each_cluster(monkeypatch):
    middles = np.eye(6, dtype=np.float32)[np.repeat(np.arange(6), [40, 30, 20, 12, 10, 5])]
    far = np.random.default_rng(0).random(len(middles), dtype=np.float32)
    features = middles + far[:, None] * np.roll(middles, 1, axis=1) / 9
    centres = np.array([features[middles.argmax(axis=1) == number].mean(axis=0) for number in range(6)])
    distances = np.linalg.norm(features - centres[middles.argmax(axis=1)], axis=1)
    monkeypatch.setattr(layout, "fit_means", lambda *_: (middles.argmax(axis=1), distances))  # found as they were made
    labelled = np.zeros(len(features), dtype=bool)
    labelled[[3, 4, 75]] = True  # of the first cluster and of the third
    rows = choose_to_label(features, labelled, count=3)
    assert middles[rows].argmax(axis=1).tolist() == [1, 3, 4]
    for row in rows:
        mine = (middles == middles[row]).all(axis=1)
        assert abs(far[row] - far[mine].mean()) == abs(far[mine] - far[mine].mean()).min()
    everything = choose_to_label(features, labelled, count=500)
    assert sorted(everything) == np.flatnonzero(~labelled).tolist()
