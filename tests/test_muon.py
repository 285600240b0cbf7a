"""Muon against timm's, against the singular value decomposition, and against torch's AdamW."""

import timm.optim.muon
import torch
from running import tiny_mae
from torch import nn

from tinymae.training.loop import create_optimizer, parameter_groups
from tinymae.training.muon import Muon, orthogonalise


def small_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 24, 4), nn.Flatten(), nn.Linear(24, 24), nn.LayerNorm(24), nn.Linear(24, 24), nn.Linear(24, 96),
        nn.Linear(96, 24), nn.Linear(24, 96),
    )  # fmt: skip


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> list[torch.Tensor]:
    torch.manual_seed(2)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (step + 1) * group.get("lr_scale", 1.0)
        model(torch.randn(16, 3, 4, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


def test_matrices_move_as_under_timms_muon(monkeypatch):
    """timm works matrix by matrix, always in bfloat16; its Newton-Schulz function is told to use float32 here."""
    newton_schulz = timm.optim.muon.zeropower_via_newtonschulz
    in_float32 = lambda *args, **options: newton_schulz(*args, **options, dtype=torch.float32)  # noqa: E731
    monkeypatch.setattr(timm.optim.muon, "zeropower_via_newtonschulz", in_float32)
    models = small_model(), small_model()
    for model in models:
        for parameter in model.parameters():  # what is no matrix moves by NAdamW there, so it stays put
            parameter.requires_grad_(parameter.ndim > 1)
    groups = [parameter_groups(model, weight_decay=0.1) for model in models]
    for group in (*groups[0], *groups[1]):
        group["lr_scale"] = 0.5
    ours = train(models[0], Muon([group | {"orthogonal": group["decays"]} for group in groups[0]], dtype=torch.float32))
    theirs = train(models[1], timm.optim.Muon(groups[1], betas=(0.9, 0.95), nesterov=True))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


def test_what_is_no_matrix_moves_as_under_torchs_adamw():
    models = small_model(), small_model()
    for model in models:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.ndim == 1)
    ours = train(models[0], Muon([{"params": list(models[0].parameters()), "orthogonal": False}]))
    theirs = train(
        models[1], torch.optim.AdamW(models[1].parameters(), weight_decay=0.0, betas=(0.9, 0.95), fused=True)
    )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_orthogonalised_matrices_keep_their_singular_vectors():
    matrices = torch.randn(3, 8, 20)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    for given, wanted in ((matrices, left @ right), (matrices.mT, (left @ right).mT)):
        values = torch.linalg.svdvals(orthogonalise(given, dtype=torch.float32))
        assert values.min() > 0.6 and values.max() < 1.3
        cosine = nn.functional.cosine_similarity(orthogonalise(given).float().flatten(1), wanted.flatten(1))
        assert cosine.min() > 0.97


def test_of_an_mae_the_first_and_the_last_layer_are_adamws():
    model = tiny_mae()
    groups = parameter_groups(model, weight_decay=0.1)
    optimizer = create_optimizer("muon", groups, betas=(0.9, 0.95), ends=model.end_weights)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    sides = {True: set(), False: set()}
    for group in optimizer.param_groups:
        sides[group["orthogonal"]] |= {names[id(parameter)] for parameter in group["params"]}
        assert {bool(group["weight_decay"])} == {group["decays"]}
    assert sides[True] | sides[False] == {name for name, p in model.named_parameters() if p.requires_grad}
    matrices = {name for name in sides[True] | sides[False] if model.get_parameter(name).ndim > 1}
    matrices -= {name for name in matrices if name.endswith(("token", "embed"))}
    assert matrices - sides[True] == {"encoder.patch_embed.proj.weight", "decoder_pred.weight"}
    assert all(model.get_parameter(name).ndim == 2 for name in sides[True])
