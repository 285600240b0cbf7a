"""The training loop: its steps, schedule, groups of parameters, drops, and what is compiled."""

import itertools
import math
from functools import partialmethod

import pytest
import timm
import torch
from accelerate import Accelerator
from running import QUICK, metrics
from timm.optim import param_groups_weight_decay
from torch._dynamo.utils import counters

import tinymae
from tinymae import MaskedAutoencoder, load_dataset, random_mask
from tinymae.data.batches import split_batch, step_batches
from tinymae.models.classifier import build_classifier
from tinymae.models.contrast import ContrastiveLearner, ReconstructionLearner
from tinymae.models.drops import draw_drops, find_drops, set_drops, use_sample_drop_path, use_sample_patch_drop
from tinymae.models.families import FAMILIES
from tinymae.randomness import Draws, derive_seed
from tinymae.training.clock import Stopwatch
from tinymae.training.device import can_compile, choose_attention, create_accelerator
from tinymae.training.loop import create_optimizer, parameter_groups, train_steps
from tinymae.training.schedule import Schedule, Stretch

SIZES = {"image_size": 8, "patch_size": 2, "in_channels": 1, "embed_dim": 24, "depth": 2, "num_heads": 2,
         "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "mean": (0.3,), "std": (0.38,)}  # fmt: skip


def run_steps(count: int, *, overflow_at: int) -> tuple[dict, list[int]]:
    """Train a small MAE on digits under the loss scaling that fp16 has: (its weights, the steps that were skipped).

    The gradient of step `overflow_at`, counted from zero, overflows.
    """
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # Accelerate makes one on GPUs alone
    torch.manual_seed(0)
    model = MaskedAutoencoder(**SIZES)
    optimizer = create_optimizer("adamw", parameter_groups(model, weight_decay=0.05), betas=(0.9, 0.95))
    model, optimizer = accelerator.prepare(model, optimizer)
    batches = step_batches(load_dataset("digits"), batch_size=64, parts=split_batch(64, 1), seed=1, device="cpu")
    steps = itertools.count()

    def draw_inputs(batch, draws, _):
        return {"images": batch.images, "mask": random_mask(64, 16, 0.75, draws.generator)}

    def compute_losses(images, mask):
        loss = model(images, mask).loss
        return {"loss": loss * 1e38 if next(steps) == overflow_at else loss}

    loop = train_steps(
        model, optimizer, draw_inputs, compute_losses, batches, accelerator=accelerator,
        schedule=Schedule(peak=1e-3, last_step=40, warmup=0.1), batch_size=64, seed=1,
    )  # fmt: skip
    states = itertools.islice(loop, count)
    skipped = [state.step for state in states if not math.isfinite(state.grad_norm)]
    return model.state_dict(), skipped


def test_a_gradient_that_overflows_in_fp16_skips_the_step_and_is_counted():
    (before, none), (after, one), (later, still_one) = (run_steps(count, overflow_at=4) for count in (4, 5, 6))
    assert (none, one, still_one) == ([], [5], [5])
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert any(not torch.equal(tensor, later[name]) for name, tensor in before.items())


def test_muon_takes_the_same_matrices_without_weight_decay():
    def count(weight_decay):
        groups = parameter_groups(MaskedAutoencoder(**SIZES), weight_decay=weight_decay)
        optimizer = create_optimizer("muon", groups, betas=(0.9, 0.95))
        return [(group["orthogonal"], len(group["params"])) for group in optimizer.param_groups]

    assert count(0.0) == count(0.05) and {orthogonal for orthogonal, _ in count(0.0)} == {True, False}


def test_learning_rate_warms_up_then_falls_as_a_cosine():
    schedule = Schedule(peak=2.0, last_step=100, warmup=0.1)
    rates = [schedule.learning_rate(schedule.progress(step)) for step in range(101)]
    assert rates[0] == 0 and rates[5] == pytest.approx(1.0) and rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0) and rates[100] == pytest.approx(0)
    assert max(rates) == 2.0 and rates[10:] == sorted(rates[10:], reverse=True)
    later = Schedule(peak=2.0, first_step=40, last_step=140, warmup=0.1)  # the same, in a later phase of a run
    assert [later.learning_rate(later.progress(step)) for step in range(40, 141)] == rates


@pytest.mark.parametrize("first_epoch", [0, 1, 4])
def test_every_third_epoch_of_a_run_ends_in_any_of_its_phases(first_epoch):
    stretch = Stretch(Schedule(peak=1.0, first_step=40, last_step=60, warmup=0.1), 2, 8, first_epoch)
    ends = [first_epoch + (step - 40) / 2 for step in range(41, 61) if stretch.ends_epoch(step, 3)]
    assert ends == [epoch for epoch in range(first_epoch + 1, first_epoch + 11) if epoch % 3 == 0]


def test_a_time_limit_drives_the_schedule():
    schedule = Schedule(peak=1.0, last_step=10**9, warmup=0.1, minutes=(10, 20))
    assert [schedule.progress(5, minutes) for minutes in (15, 20, 25)] == pytest.approx([0.5, 1.0, 1.5])
    assert schedule.learning_rate(1.0) == pytest.approx(0)
    assert schedule.progress(5 * 10**8, 11) == 0.5  # whichever is further: here the steps
    assert schedule.progress(0, 9) == 0  # the phase before ended early


def test_a_stopwatch_goes_on_from_the_minutes_before():
    seconds = iter([1000.0, 1030.0, 1060.0, 1120.0])
    clock = Stopwatch(7.0, now=lambda: next(seconds))
    assert (clock.session_minutes, clock.minutes) == (0.5, 8.0)
    assert clock.agreed_minutes(Accelerator(cpu=True)) == 9.0


def test_training_ends_when_its_minutes_are_over():
    """By a clock that each step moves on by a minute."""
    minutes = itertools.count()
    accelerator, parameter = Accelerator(cpu=True), torch.nn.Linear(64, 1)
    groups = parameter_groups(parameter, weight_decay=0.0)
    model, optimizer = accelerator.prepare(parameter, create_optimizer("adamw", groups, betas=(0.9, 0.95)))
    batches = step_batches(load_dataset("digits"), batch_size=8, parts=split_batch(8, 1), seed=1, device="cpu")
    steps = train_steps(
        model, optimizer, lambda batch, *_: {"images": batch.images.flatten(1) / 255},
        lambda images: {"loss": model(images).square().mean()}, batches, accelerator=accelerator,
        schedule=Schedule(peak=1.0, last_step=10**6, warmup=0.5, minutes=(0.0, 10.0)),
        clock=Stopwatch(now=lambda: 60.0 * next(minutes)), batch_size=8, seed=1,
    )  # fmt: skip
    rates = [state.learning_rate for state in steps]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.905, 0.655, 0.345, 0.095], abs=1e-3)


def test_tokens_norms_biases_and_positions_are_not_decayed():
    for encoder in ("vit_tiny_patch16_224", "vit_betwixt_patch16_reg4_gap_256"):  # the second has registers
        model = MaskedAutoencoder(encoder, **SIZES)
        decayed = {id(p) for g in parameter_groups(model, weight_decay=0.1) if g["weight_decay"] for p in g["params"]}
        for name, parameter in model.named_parameters():
            expected = name.endswith(".weight") and "norm" not in name
            assert (id(parameter) in decayed) == expected, name


NAMES_BEFORE = {"pos_embed", "decoder_pos_embed", "cls_token", "reg_token", "mask_token", "tokens"}


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_decays_of_the_families_is_what_did_when_tokens_were_known_by_their_names(name, in_channels):
    model = FAMILIES[name](image_size=32, in_channels=in_channels)  # type: ignore[call-arg]
    learners = [model, ReconstructionLearner(model), build_classifier(model, classes=["a", "b"])]
    if name == "mae":
        learners.append(ContrastiveLearner(model, weight=1.0, temperature=0.1, num_views=2, decoded_views=1))
    for learner in learners:
        groups = parameter_groups(learner, weight_decay=0.1)
        found = {group["decays"]: [id(parameter) for parameter in group["params"]] for group in groups}
        tokens = [own for own, _ in learner.named_parameters() if NAMES_BEFORE & {*own.split(".")}]
        before = param_groups_weight_decay(learner, 0.1, no_weight_decay_list=tokens)
        for group in before:
            assert found.get(group["weight_decay"] > 0, []) == [id(parameter) for parameter in group["params"]]


def test_positions_of_a_family_of_ones_own_are_neither_decayed_nor_orthogonalised():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.positions = torch.nn.Parameter(torch.randn(1, 16, 8))
            self.hidden = torch.nn.Parameter(torch.randn(1, 8, 1, 1))
            self.attention = torch.nn.MultiheadAttention(8, 2)

    model = Own()
    optimizer = create_optimizer("muon", parameter_groups(model, weight_decay=0.1), betas=(0.9, 0.95))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    sides = {True: set(), False: set()}
    for group in optimizer.param_groups:
        assert group["orthogonal"] == (group["weight_decay"] > 0)
        sides[group["orthogonal"]] |= {names[id(parameter)] for parameter in group["params"]}
    assert sides[True] == {"attention.in_proj_weight", "attention.out_proj.weight"}
    assert {"positions", "hidden"} < sides[False]


def test_layer_decay_scales_each_layer():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10, depth=3)
    groups = parameter_groups(vit, weight_decay=0.05, layer_decay=0.5)
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert len(scale) == len(list(vit.parameters()))
    assert scale[id(vit.head.weight)] == 1
    blocks = [scale[id(block.mlp.fc1.weight)] for block in vit.blocks]
    assert [b / a for a, b in itertools.pairwise(blocks)] == [2, 2]
    assert scale[id(vit.patch_embed.proj.weight)] == blocks[0] / 2


def decide_drops(vit, draws: Draws) -> None:
    layers = find_drops(vit)
    set_drops(layers, draw_drops(layers, draws))


def test_drop_path_is_drawn_for_the_global_batch():
    vit = use_sample_drop_path(timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, drop_path_rate=0.5))
    vit.train()
    images = torch.randn(16, 3, 8, 8)
    decide_drops(vit, Draws(0, 3, 16, torch.arange(16), "cpu"))
    whole = vit(images)
    part = torch.tensor([1, 14, 7])
    decide_drops(vit, Draws(0, 3, 16, part, "cpu"))
    torch.testing.assert_close(vit(images[part]), whole[part], atol=1e-5, rtol=0)
    assert not torch.allclose(whole, vit.eval()(images), atol=1e-3)


def test_a_loop_that_is_left_early_gives_its_drops_back():
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 10, "depth": 2, "drop_path_rate": 0.5}
    vit = use_sample_drop_path(timm.create_model("vit_tiny_patch16_224", **sizes))
    accelerator = Accelerator(cpu=True)
    optimizer = create_optimizer("adamw", parameter_groups(vit, weight_decay=0.0), betas=(0.9, 0.95))
    model, optimizer = accelerator.prepare(vit, optimizer)
    batches = step_batches(load_dataset("digits"), batch_size=8, parts=split_batch(8, 1), seed=1, device="cpu")
    steps = train_steps(
        model, optimizer, lambda batch, *_: {"images": batch.images / 255},
        lambda images: {"loss": model(images).square().mean()}, batches, accelerator=accelerator,
        schedule=Schedule(peak=1e-3, last_step=9, warmup=0.1), batch_size=8, seed=1,
    )  # fmt: skip
    next(steps)
    steps.close()  # type: ignore[attr-defined]  # a generator
    assert vit.train()(torch.randn(3, 1, 8, 8)).shape == (3, 10)


def test_dropped_patches_are_not_seen_and_are_drawn_for_the_global_batch():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, depth=2)
    use_sample_patch_drop(vit, 0.75).train()
    images, seen = torch.randn(16, 3, 16, 16), {}
    decide_drops(vit, Draws(0, 3, 16, torch.arange(16), "cpu"))
    whole = vit.forward_features(images)
    assert whole.shape == (16, 1 + 4, 192)
    for image in range(16):  # what each image's output depends on: its own four patches
        leaf = images[image : image + 1].clone().requires_grad_()
        decide_drops(vit, Draws(0, 3, 16, torch.tensor([image]), "cpu"))
        part = vit.forward_features(leaf)
        torch.testing.assert_close(part[0], whole[image], atol=1e-5, rtol=0)
        part.square().sum().backward()
        grid = leaf.grad.abs().sum(1).unfold(1, 4, 4).unfold(2, 4, 4).sum((0, 3, 4))
        assert int((grid > 0).sum()) == 4
        seen[tuple((grid > 0).flatten().tolist())] = True
    assert len(seen) > 8
    assert vit.eval().forward_features(images).shape == (16, 1 + 16, 192)


def test_drop_path_keeps_the_mean():
    vit = use_sample_drop_path(timm.create_model("vit_tiny_patch16_224", depth=3, drop_path_rate=0.4))
    count = 20_000
    decide_drops(vit, Draws(0, 0, count, torch.arange(count), "cpu"))
    for block in list(vit.blocks)[1:]:
        keep, probability = block.drop_path1.drawn, 1 - block.drop_path1.drop_prob
        assert keep.unique().tolist() == [0, pytest.approx(1 / probability)]
        std = math.sqrt((1 - probability) / probability / count)
        assert abs(keep.mean() - 1) < 5 * std


def test_seeds_of_neighbouring_steps_share_nothing():
    seeds = {derive_seed(seed, "masks", step) for seed in range(20) for step in range(200)}
    assert len(seeds) == 4000
    assert derive_seed(1, "a") == derive_seed(1, "a") != derive_seed(1, "b")


def test_equal_blocks_are_compiled_once_in_a_run_and_not_for_evaluations(tmp_path, monkeypatch, quick_figures):
    eager = partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", eager)
    settings = QUICK | {"depth": 3, "decoder_depth": 2, "probe_every": 1}
    runs, compiled = [], []
    for chosen in (False, True):
        torch._dynamo.reset()
        counters.clear()
        runs.append(tinymae.pretrain(**settings, compile=chosen, output_dir=tmp_path / str(chosen)))
        compiled.append(counters["stats"]["unique_graphs"])
    assert compiled == [0, 2]  # an encoder's block and a decoder's
    losses = [[row["loss"] for row in metrics(run.folder) if "loss" in row] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("precision,kernels", [("no", True), ("bf16", False)])
def test_attention_is_a_kernel_but_in_bf16_on_a_cpu(precision, kernels):
    model = MaskedAutoencoder(**SIZES)
    choose_attention(model, create_accelerator(precision))
    counted = []
    attend = torch.nn.functional.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: counted.append(1) or attend(*a, **k)
        )
        model(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert len(counted) == (3 if kernels else 0)  # two blocks of the encoder, one of the decoder


def test_what_does_not_compile_here_is_no_reason_to_fail(monkeypatch):
    def no_compiler(_):
        raise RuntimeError("Failed to find C compiler")

    for compiler, works in ((no_compiler, False), (lambda function: function, True)):
        monkeypatch.setattr(torch, "compile", compiler)
        assert can_compile.__wrapped__(torch.device("cpu")) == works
