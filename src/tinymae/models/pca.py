"""Principal components: the best linear autoencoder, and the floor that the others stand on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from .base import Autoencoder
from .outputs import AutoencoderOutput


class PrincipalComponents(Autoencoder, tags=["pca"]):
    """scikit-learn's PCA of normalised pixels, as an autoencoder: fitted by `fit`, not by gradients.

    Args:
        latent_dim: how many components are kept.
        others: as for ConvAutoencoder.

    Raises:
        InputError: more components than an image has values.
    """

    fitted = True

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        latent_dim: int = 128,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ):
        super().__init__()
        values = in_channels * self.image_size[0] * self.image_size[1]
        if not 1 <= latent_dim <= values:
            raise InputError(f"latent_dim {latent_dim} is not within 1 and the image's {values} values")
        self.num_features = latent_dim
        self.centre: Tensor
        self.components: Tensor
        self.register_buffer("centre", torch.zeros(values))
        self.register_buffer("components", torch.eye(latent_dim, values))

    @property
    def dtype(self) -> torch.dtype:
        """That of the components, which are no parameters."""
        return self.components.dtype

    def fit(self, images: Tensor) -> None:
        """Find the components of uint8 images (N, C, H, W). Raises InputError for fewer images than components."""
        from sklearn.decomposition import PCA

        if len(images) < self.num_features:
            raise InputError(f"latent_dim {self.num_features} needs as many images, there are {len(images)}")
        pixels = self.normalise(images).flatten(1).cpu().numpy()
        pca = PCA(self.num_features, svd_solver="covariance_eigh").fit(pixels)
        self.centre.copy_(torch.from_numpy(pca.mean_))
        self.components.copy_(torch.from_numpy(pca.components_))

    def encode(self, images: Tensor) -> Tensor:
        """Coordinates (B, latent_dim) of uint8 or normalised float images (B, C, H, W)."""
        with torch.autocast(self.mean.device.type, enabled=False):
            return (self.normalise(images).flatten(1) - self.centre) @ self.components.T

    def forward(self, images: Tensor) -> AutoencoderOutput:
        """The projection onto the components, and its squared error."""
        images = self.normalise(images)
        with torch.autocast(images.device.type, enabled=False):
            reconstruction = (self.encode(images) @ self.components + self.centre).view_as(images)
        return AutoencoderOutput(self.reconstruction_loss(reconstruction, images), reconstruction)
