"""A contrastive loss beside the reconstruction: masked views of one image should have similar features.

The contrastive masked autoencoder of Mishra et al., arXiv 2210.16870 (CAN), without its third part, the noise, and with
any number of views of each image.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import InputError
from .base import Autoencoder
from .mae import MaskedAutoencoder

HIDDEN, PROJECTION = 1024, 128  # widths of the projector


def nt_xent(views: Tensor, *, temperature: float) -> Tensor:
    """The normalised, temperature-scaled cross-entropy between views (V, B, F) of B images; a scalar, float32.

    Each of the V B rows has V - 1 positives, the other views of its image; its loss is the mean over them of the
    negative log-softmax of the cosines with all other rows (Khosla et al., arXiv 2004.11362, equation 2, with images as
    classes). With two views this is SimCLR's loss (Chen et al., arXiv 2002.05709, equation 1).

    >>> same, different = torch.eye(2).expand(3, 2, 2), torch.rand(3, 2, 2)
    >>> nt_xent(same, temperature=0.1) < nt_xent(different, temperature=0.1)
    tensor(True)
    """
    num_views, num_images, _ = views.shape
    with torch.autocast(views.device.type, enabled=False):
        rows = nn.functional.normalize(views.flatten(0, 1).float(), dim=1)
        similarity = rows @ rows.T / temperature
        similarity.fill_diagonal_(-torch.inf)
        steps = num_images * torch.arange(1, num_views, device=rows.device)
        positives = (torch.arange(len(rows), device=rows.device)[:, None] + steps) % len(rows)  # (V B, V - 1)
        return -similarity.log_softmax(dim=1).gather(1, positives).mean()


class ContrastiveLearner(nn.Module):
    """A masked autoencoder in training on several views of each image. Only `model` is worth keeping afterwards.

    Each view has its own mask; all or the first few are reconstructed. The mean of a view's visible patch tokens goes
    through a projector of three layers with batch normalisation, and `nt_xent` compares the projections of the whole
    global batch: processes share their features, so that many make the same run as one.

    Args:
        model: what is trained.
        weight: of the contrastive loss; that of the reconstruction is 1.
        temperature: of the softmax over cosines.
        num_views: views of an image, at least 2.
        decoded_views: how many of them are reconstructed, at least 1.

    Raises InputError for a temperature that is not positive, or numbers of views that do not fit.
    """

    def __init__(
        self, model: MaskedAutoencoder, *, weight: float, temperature: float, num_views: int, decoded_views: int
    ):
        super().__init__()
        if temperature <= 0:
            raise InputError(f"temperature {temperature} is not positive")
        if num_views < 2:
            raise InputError(f"views {num_views} leaves nothing to contrast: give at least 2")
        if not 1 <= decoded_views <= num_views:
            raise InputError(f"decoded_views {decoded_views} is not within 1 and the {num_views} views")
        self.model, self.weight, self.temperature = model, weight, temperature
        self.num_views, self.decoded_views = num_views, decoded_views

        def layer(before: int) -> list[nn.Module]:
            linear = nn.Linear(before, HIDDEN, bias=False)
            return [linear, nn.BatchNorm1d(HIDDEN, track_running_stats=False), nn.GELU()]

        self.projector = nn.Sequential(*layer(model.num_features), *layer(HIDDEN), nn.Linear(HIDDEN, PROJECTION))

    def forward(self, images: Tensor, mask: Tensor, num_hidden: int | None = None) -> dict[str, Tensor]:
        """Images (V B, C, H, W), masks (V B, N): the first views, then the second ones in the same order, and so on.

        `num_hidden` is how many patches each mask hides, if it is known. Gives the "loss" and its two parts.
        """
        num_images = len(images) // self.num_views
        reconstruction, _, features = self.model.forward_masked(
            self.model.normalise(images), mask, decoded=self.decoded_views * num_images, num_hidden=num_hidden
        )
        features = features.float().unflatten(0, (self.num_views, num_images))
        features = gather_rows(features.transpose(0, 1)).transpose(0, 1)  # (V, images of all processes, F)
        projected = self.projector(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        contrast = nt_xent(projected, temperature=self.temperature)
        loss = reconstruction + self.weight * contrast
        return {"loss": loss, "reconstruction_loss": reconstruction, "contrastive_loss": contrast}


class ReconstructionLearner(nn.Module):
    """Any autoencoder in training: a module whose forward pass gives losses, for DistributedDataParallel to wrap."""

    def __init__(self, model: Autoencoder):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, **drawn) -> dict[str, Tensor]:
        """See `Autoencoder.training_losses`."""
        return self.model.training_losses(images, **drawn)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (B, ...) of all processes, in the order of their ranks; alone, as given.

    Every process works out the same loss of all rows, so each has the whole gradient of its own; it is multiplied by
    the number of processes, by which their mean will divide it.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    fixed, processes = rows.detach().contiguous(), dist.get_world_size()
    gathered = [torch.empty_like(fixed) for _ in range(processes)]
    dist.all_gather(gathered, fixed)
    gathered[dist.get_rank()] = fixed + processes * (rows - fixed)
    return torch.cat(gathered)
