"""The features of a pretrained encoder as a scikit-learn transformer."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError
from ..interop.load import Model, load
from ..models.classifier import feature_function


class Features(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Images -> features (B, F) of a pretrained encoder, float32, for scikit-learn's pipelines.

    Args:
        weights: what `tinymae.load` reads, a folder or a Hugging Face Hub id for instance, or a model of any family, or
            a classifier. `fit` loads or copies it and learns nothing: `transform` gives what it had learned before.
        pool: "avg", the mean of the patch tokens, or "cls"; None is a classifier's own.
        layers: of a ViT, whose features stand side by side, as in `MaskedAutoencoder.encode`.
        batch_size: images computed at a time.
        device: where, for instance "cuda".

    Images are (B, C, H, W), (B, H, W, C), grey (B, H, W), or flattened (B, C*H*W), channels first as in CIFAR's files;
    one image is a batch of one. Of a stream, call `transform` of each batch.
    Integers are pixels, 0 to 255, or 0 to 65535 of uint16, and booleans black and white; floats are taken as already
    normalised by the model's mean and std, like everywhere here, so cast float pixels to uint8 before.

    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from tinymae import MaskedAutoencoder
    >>> model = MaskedAutoencoder(image_size=8, patch_size=2, in_channels=1, embed_dim=24, depth=2, num_heads=2)
    >>> images, labels = np.random.randint(0, 256, (20, 8, 8), dtype=np.uint8), [0, 1] * 10
    >>> make_pipeline(Features(model), LogisticRegression()).fit(images, labels).predict(images).shape
    (20,)

    Raises InputError: no weights, images of another shape than the model's, integers that are no pixels.
    """

    def __init__(
        self,
        weights: str | Path | Model,
        *,
        pool: str | None = "avg",
        layers: int | Sequence[int] = 1,
        batch_size: int = 256,
        device: str | torch.device = "cpu",
    ):
        self.weights = weights
        self.pool = pool
        self.layers = layers
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: ArrayLike, y=None) -> Features:
        """Load the weights and check that these images suit them; `y` is ignored.

        >>> from tinymae import MaskedAutoencoder
        >>> model = MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=2, num_heads=2)
        >>> Features(model, layers=2).fit(np.zeros((1, 3, 8, 8), np.uint8)).n_features_in_
        192
        """
        if self.batch_size < 1:
            raise InputError(f"batch_size {self.batch_size} is below 1")
        given = self.weights
        # A copy, as a fitted estimator must not change when the given model is trained on.
        model = copy.deepcopy(given) if isinstance(given, torch.nn.Module) else load(given)
        self.model_ = model.eval().to(self.device)
        self._n_features_out = self._encode(self._check(X, reset=True)[:1]).shape[1]
        return self

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Features (B, F), float32.

        >>> from tinymae import MaskedAutoencoder
        >>> model = MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=2, num_heads=2)
        >>> Features(model, layers=2).fit_transform(np.zeros((5, 3, 8, 8), np.uint8)).shape
        (5, 48)
        """
        check_is_fitted(self)
        return self._encode(self._check(X, reset=False)).cpu().numpy()

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        batches = images.split(self.batch_size)
        encode = feature_function(self.model_, pool=self.pool, layers=self.layers)
        return torch.cat([encode(batch.to(self.device)).float() for batch in batches])

    def _check(self, X: ArrayLike, *, reset: bool) -> Tensor:
        """Images in any accepted form -> uint8, uint16 or float32 (B, C, H, W)."""
        shape = (self.model_.in_channels, *self.model_.image_size)
        if isinstance(X, Iterator | DataLoader | Dataset):
            raise InputError(f"X is a {type(X).__name__}: give an array of images, of a stream one batch after another")
        X = np.asarray(X) if isinstance(X, list | tuple) else X
        if getattr(X, "ndim", 2) > 2:
            X = flatten_images(np.asarray(X), shape)
        # Remembers n_features_in_, refuses NaN, sparse and complex values.
        pixels: np.ndarray = validate_data(self, X, reset=reset)
        if (count := pixels.shape[1]) != np.prod(shape):
            raise InputError(
                f"X has n_features = {count}, this model wants images {shape} or {np.prod(shape)} values of each"
            )
        if np.issubdtype(pixels.dtype, np.floating):
            pixels = pixels.astype(np.float32)
        elif pixels.dtype == bool:
            pixels = pixels.astype(np.uint8) * 255
        elif np.issubdtype(pixels.dtype, np.uint16):
            pixels = pixels.astype(np.uint16)  # in this machine's byte order, which torch wants
        elif pixels.min() < 0 or pixels.max() > 255:
            low, high = pixels.min(), pixels.max()
            raise InputError(f"X holds integers from {low} to {high}: pixels are 0 to 255, else give uint16 or floats")
        else:
            pixels = pixels.astype(np.uint8)
        return torch.from_numpy(np.ascontiguousarray(pixels)).view(-1, *shape)


def flatten_images(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Images (B, C, H, W), (B, H, W, C) or, with one channel, (B, H, W) -> (B, C*H*W), `shape` being (C, H, W).

    >>> flatten_images(np.zeros((5, 4, 6, 3)), (3, 4, 6)).shape
    (5, 72)

    Raises InputError for another shape.
    """
    channels, height, width = shape
    if images.shape in (shape, (height, width, channels)):
        images = images[None]
    if images.shape[1:] == (height, width, channels) != shape:
        images = np.moveaxis(images, -1, 1)
    elif images.shape[1:] != shape and (channels, *images.shape[1:]) != (1, height, width):
        raise InputError(f"X has shape {images.shape}, this model wants images {shape}, channels first or last")
    return images.reshape(len(images), channels * height * width)
