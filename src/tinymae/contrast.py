"""A contrastive loss beside the reconstruction: two masked views of one image should have like features.

The contrastive masked autoencoder of Mishra et al., arXiv 2210.16870 (CAN), without its third part, the noise.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .files import InputError
from .mae import MAEOutput, MaskedAutoencoder


def nt_xent(first: Tensor, second: Tensor, *, temperature: float) -> Tensor:
    """The normalised, temperature-scaled cross-entropy of SimCLR (Chen et al., arXiv 2002.05709, equation 1).

    Row k of `first` and of `second`, both (B, F), belong together; each is to be told from the other 2 B - 2 rows by
    its cosine. Gives a scalar, float32.

    >>> nt_xent(torch.eye(2), torch.eye(2), temperature=0.1) < nt_xent(torch.eye(2), torch.ones(2, 2), temperature=0.1)
    tensor(True)
    """
    with torch.autocast(first.device.type, enabled=False):
        rows = nn.functional.normalize(torch.cat([first, second]).float(), dim=1)
        similarity = rows @ rows.T / temperature
        similarity.fill_diagonal_(-torch.inf)
        partners = torch.arange(len(rows), device=rows.device).roll(len(first))
        return nn.functional.cross_entropy(similarity, partners)


class ContrastiveLearner(nn.Module):
    """A masked autoencoder in training on pairs of views. Only `model` is worth keeping afterwards.

    Each view is masked and reconstructed by itself. The mean of its visible patches' tokens goes through a projector of
    three layers with batch normalisation, and `nt_xent` compares the projections of the whole global batch: processes
    share their features, so that many make the same run as one.

    Args:
        model: what is trained.
        weight: of the contrastive loss; that of the reconstruction is 1.
        temperature: of the softmax over cosines.
        hidden_dim, projection_dim: the projector's widths.

    Raises InputError for a temperature that is not positive.
    """

    def __init__(
        self, model: MaskedAutoencoder, *, weight: float, temperature: float = 0.2, hidden_dim: int = 1024,
        projection_dim: int = 128,
    ):  # fmt: skip
        super().__init__()
        if temperature <= 0:
            raise InputError(f"temperature {temperature} is not positive")
        self.model, self.weight, self.temperature = model, weight, temperature

        def layer(before: int) -> list[nn.Module]:
            linear = nn.Linear(before, hidden_dim, bias=False)
            return [linear, nn.BatchNorm1d(hidden_dim, track_running_stats=False), nn.GELU()]

        self.projector = nn.Sequential(
            *layer(model.num_features), *layer(hidden_dim), nn.Linear(hidden_dim, projection_dim)
        )

    def forward(self, images: Tensor, mask: Tensor | None = None) -> MAEOutput:
        """Images (2 B, C, H, W), masks (2 B, N): the first views, then the second views in the same order."""
        output = self.model(images, mask)
        first, second = (gather_rows(view) for view in output.features.float().chunk(2))
        first, second = self.projector(torch.cat([first, second])).chunk(2)
        contrast = nt_xent(first, second, temperature=self.temperature)
        terms = {"reconstruction_loss": output.loss, "contrastive_loss": contrast}
        return replace(output, loss=output.loss + self.weight * contrast, terms=terms)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes (their B together, F); alone, as given.

    Every process works out the same loss of all rows, so each has the whole gradient of its own; it is multiplied by
    the number of processes, by which their mean will divide it.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    fixed, processes = rows.detach(), dist.get_world_size()
    gathered = [torch.empty_like(fixed) for _ in range(processes)]
    dist.all_gather(gathered, fixed)
    gathered[dist.get_rank()] = fixed + processes * (rows - fixed)
    return torch.cat(gathered)
