"""Features in two dimensions, and in clusters: what a map shows."""

import importlib.util

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import from_numpy

from .neighbours import nearest

MOST_CLUSTERS = 500  # unless more images are to be labelled
FITTED = 4000  # images that t-SNE lays out; its time grows faster than their number
Array = NDArray[np.float32]


def has_umap() -> bool:
    """Whether umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def lay_out(features: Array, *, seed: int = 0) -> Array:
    """Places (N, 2) in the unit square of features (N, F), similar ones (by cosine) close together.

    UMAP (arXiv 1802.03426) if umap-learn is installed. Else t-SNE, of 50 principal components: it lays out 4,000 of the
    rows, and each further row goes between the three of these that are most similar to it.

    >>> lay_out(np.eye(3, dtype=np.float32)).shape
    (3, 2)
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    count = len(unit)
    if count == 1:
        return np.full((1, 2), 0.5, dtype=np.float32)
    if count < 8:  # too few for neighbourhoods
        places = np.pad(PCA(min(2, count, unit.shape[1])).fit_transform(unit), ((0, 0), (0, 2)))[:, :2]
    elif has_umap():
        from umap import UMAP

        neighbours = min(15, count - 1)
        umap = UMAP(n_neighbors=neighbours, min_dist=0.05, metric="cosine", random_state=seed, n_jobs=1)
        places = umap.fit_transform(unit)
    else:
        places = lay_out_by_tsne(unit, seed)
    return to_unit_square(np.asarray(places, dtype=np.float32))


def lay_out_by_tsne(rows: Array, seed: int) -> Array:
    """Places (N, 2) of rows (N, F)."""
    generator = np.random.default_rng(seed)
    fitted = np.sort(generator.permutation(len(rows))[:FITTED])
    reduced = PCA(min(50, len(fitted), rows.shape[1]), random_state=seed).fit_transform(rows[fitted])
    perplexity = min(30.0, (len(fitted) - 1) / 3)
    init = "pca" if reduced.shape[1] > 1 else "random"  # one feature has no second component
    laid = TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(reduced)
    if len(fitted) == len(rows):
        return laid
    similarity, index = (t.numpy() for t in nearest(from_numpy(rows), from_numpy(rows[fitted]), k=3))
    weights = np.exp((similarity - similarity[:, :1]) / 0.05)  # (N, 3), by how much less similar than the first
    places = (laid[index] * (weights / weights.sum(axis=1, keepdims=True))[..., None]).sum(axis=1)
    # Twins of a row would hide each other: spread them over what is usual between neighbours.
    spread = np.median(np.linalg.norm(laid[index[fitted, 1]] - laid, axis=1))
    places += generator.normal(scale=0.3 * spread, size=places.shape)
    places[fitted] = laid
    return places


def to_unit_square(places: Array) -> Array:
    """The same shape, moved and scaled to fill the middle of [0, 1] x [0, 1]."""
    low, high = places.min(axis=0), places.max(axis=0)
    return (places - (low + high) / 2) / max(float((high - low).max()), 1e-12) + 0.5


def find_clusters(features: Array, *, count: int, seed: int) -> NDArray[np.int64]:
    """The cluster (N,) of each row (N, F) by k-means on their directions; the largest cluster is number 0.

    >>> find_clusters(np.eye(2, dtype=np.float32)[[0, 0, 1]], count=2, seed=0).tolist()
    [0, 0, 1]
    """
    found = fit_means(features, count, seed)[0]
    order = np.argsort(-np.bincount(found), kind="stable")
    return np.argsort(order)[found]


def fit_means(features: Array, count: int, seed: int) -> tuple[NDArray[np.int64], Array]:
    """K-means of the directions of rows (N, F): the cluster (N,) of each row, and its distance (N,) from the centre."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    means = MiniBatchKMeans(min(count, len(unit)), n_init=3, random_state=seed, batch_size=4096).fit(unit)
    found = means.labels_.astype(np.int64)
    return found, np.linalg.norm(unit - means.cluster_centers_[found], axis=1)


def choose_to_label(features: Array, labelled: NDArray[np.bool_], *, count: int, seed: int = 0) -> NDArray[np.int64]:
    """The rows (M,) of features (N, F) to label first; `labelled` (N,) are those that have a label.

    There are as many clusters as there are going to be labels, up to 500. The next image is always of the cluster with
    the fewest labels, of the largest of these, and the one that is closest to its centre (after Hacohen et al., arXiv
    2202.02794). Where there are fewer than `count` without a label, these are all.

    >>> choose_to_label(np.eye(2, dtype=np.float32)[[0, 0, 1]], np.array([True, False, False]), count=1)
    array([2])
    """
    clusters = max(count, min(count + int(labelled.sum()), MOST_CLUSTERS))
    found, distance = fit_means(features, clusters, seed)
    rows = np.flatnonzero(~labelled)
    rows = rows[np.lexsort((distance[rows], found[rows]))]  # cluster by cluster, from the centre outwards
    _, start, place = np.unique(found[rows], return_index=True, return_inverse=True)
    known, size = np.bincount(found[labelled], minlength=clusters), np.bincount(found, minlength=clusters)
    labels_before = known[found[rows]] + np.arange(len(rows)) - start[place]
    return rows[np.lexsort((-size[found[rows]], labels_before))][:count]
