"""Every command and family on a pretend GPU: no operand on another device, no step that waits for the device."""

import signal
from functools import partial

import pytest
import torch
from pretend_gpu import PretendGPU
from running import ENCODER, FEW, QUICK, TWO_PHASES, before_reports, metrics, signal_in, tiny_mae

import tinymae
from tinymae import InputError, MaskedAutoencoder, load_dataset
from tinymae.commands import finetune, learning, linear_probe, phases, pretrain
from tinymae.errors import Diverged, Stopped
from tinymae.evaluation import probes
from tinymae.evaluation.metrics import accuracy
from tinymae.evaluation.neighbours import knn_predict
from tinymae.interop.graphs import EncoderGraph, trace
from tinymae.models import mae, masked
from tinymae.models.base import LOOKS
from tinymae.models.classifier import build_classifier
from tinymae.models.pca import PrincipalComponents
from tinymae.training.cuda_graph import WARM_UP, GraphedStep
from tinymae.training.numbers import StepNumbers

STEPS = {"batch_size": 16, "epochs": 2, "log_every": 2, "flip": True, "log_with": ()}
RGB = FEW | {"data": FEW["data"].repeat(1, 3, 1, 1)}
MLP = {"num_classes": 10, "weight_decay": 0.1, "seed": 0, "epochs": 1}
SMALL_VIT = {"from_scratch": True} | ENCODER
EVERYTHING = {"mixup": 0.5, "cutmix": 0.5, "trivial_augment": True, "random_erasing": 0.5, "drop_path": 0.5}

PRETRAININGS = {
    "mae": QUICK | STEPS | {"gradient_accumulation_steps": 2, "clip_grad": 1.0},
    "mae in bf16": QUICK | STEPS | {"gradient_checkpointing": True, "mixed_precision": "bf16"},
    "contrast": QUICK | RGB | STEPS | TWO_PHASES | {"contrast_crop": "resized"},
    "conv_ae": RGB | STEPS | {"model": "conv_ae", "width": 8, "loss": "log_cosh+l1"},
    "vae": RGB | STEPS | {"model": "vae", "width": 8, "latent_dim": 8, "kl_warmup_steps": 3},
    "vqvae": RGB | STEPS | {"model": "vqvae", "width": 8, "latent_dim": 8, "codebook_size": 16},
    "resnet_unet": RGB | STEPS | {"model": "resnet_unet", "encoder": "test_resnet"},
    "masked_conv": RGB | STEPS | {"model": "masked_conv", "encoder": "test_convnext2", "patch_size": 2,
                    "decoder_dim": 8},
}  # fmt: skip
GRAPHS = {
    name: PRETRAININGS[name] | {"gradient_accumulation_steps": 1, "gradient_checkpointing": False}
    for name in ("mae", "mae in bf16", "conv_ae", "vae", "vqvae")
}
GRAPHS |= {
    "adamw": GRAPHS["mae"] | {"optimizer": "adamw"},
    "contrast": PRETRAININGS["contrast"] | {"epochs": 10, "contrast_epochs": 8, "final_mask_ratio": 0.25},
}
FINETUNINGS = {
    "finetune": FEW | SMALL_VIT | STEPS | {"optimizer": "muon", "no_test": True},
    "finetune with everything": RGB | SMALL_VIT | STEPS | EVERYTHING | {"epochs": 4, "final_epochs": 2},
    "finetune in bf16": FEW | SMALL_VIT | STEPS | {"mixed_precision": "bf16", "ema_decay": 0, "patch_drop": 0},
}


@pytest.fixture
def gpu(monkeypatch, quick_figures):
    """A pretend GPU that Accelerate takes. Its log's phase is "step" from the second step to the end of the last."""
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda")
    with PretendGPU(root="/src/tinymae/") as gpu:
        for command in (pretrain, finetune):

            def phased(*args, steps=command.train_steps, **kwargs):
                for number, state in enumerate(steps(*args, **kwargs)):
                    yield state
                    gpu.log.phase = "step" if number else ""
                gpu.log.phase = ""

            monkeypatch.setattr(command, "train_steps", phased)
        yield gpu


def waits_of_steps(gpu: PretendGPU) -> dict[tuple[str, str], int]:
    return {(what, where): count for (phase, what, where), count in gpu.log.waits.items() if phase == "step"}


def require_no_waits(gpu: PretendGPU) -> None:
    assert any(phase == "step" for phase, _ in gpu.log.kernels)
    assert not waits_of_steps(gpu)


@pytest.mark.parametrize("name", ["mae", "mae in bf16", "resnet_unet", "masked_conv"])
def test_no_step_of_pretraining_waits_for_the_device(gpu, tmp_path, name):
    """The tests by CUDA graph ask the same of all others, with a graph and without."""
    run = tinymae.pretrain(**PRETRAININGS[name], output_dir=tmp_path)
    assert run.results["steps"] >= 8
    require_no_waits(gpu)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_pretraining_by_cuda_graph_is_the_same(gpu, tmp_path, name):
    kinds = 3 if name == "contrast" else 1  # reconstruction; masks of two ratios
    require_same_by_graph(gpu, tinymae.pretrain, GRAPHS[name], tmp_path, kinds)


@pytest.mark.parametrize("name", [*FINETUNINGS, "unlabelled"])
def test_a_finetuning_by_cuda_graph_is_the_same(gpu, tmp_path, name):
    teacher = {"unlabelled": 1, "epochs": 4, "ema_decay": 0.9, "unlabelled_threshold": 0.1, "recipe": "light"}
    unlabelled = FINETUNINGS["finetune"] | teacher
    settings = unlabelled if name == "unlabelled" else FINETUNINGS[name]
    in_two_parts = "unlabelled" in settings or "final_epochs" in settings
    require_same_by_graph(gpu, tinymae.finetune, settings, tmp_path, kinds=1 + in_two_parts)


def require_same_by_graph(gpu: PretendGPU, command, settings: dict, folder, kinds: int) -> None:
    plain, graph = (command(**settings, cuda_graph=chosen, output_dir=folder / str(chosen)) for chosen in (False, True))
    assert gpu.replays == graph.results["steps"] - kinds * WARM_UP > kinds
    require_no_waits(gpu)
    losses = [[row["loss"] for row in metrics(run.folder) if "loss" in row] for run in (plain, graph)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and len(set(losses[0])) >= 4
    weights = plain.model.state_dict()
    for key, tensor in graph.model.state_dict().items():
        torch.testing.assert_close(tensor.cpu(), weights[key].cpu(), atol=1e-4, rtol=0)


# Muon leaves a part of the parameters to AdamW, so the first has both with a graph.
@pytest.mark.parametrize(("optimizer", "cuda_graph"), [("muon", True), ("adamw", False)])
def test_a_run_goes_on_from_a_checkpoint(gpu, tmp_path, monkeypatch, optimizer, cuda_graph):
    settings = GRAPHS["mae"] | {"optimizer": optimizer, "cuda_graph": cuda_graph}
    whole = tinymae.pretrain(**settings, output_dir=tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        before_reports(patch, signal_in({5: signal.SIGTERM}))
        tinymae.pretrain(**settings, output_dir=tmp_path / "stopped")
    resumed = tinymae.pretrain(**settings, output_dir=tmp_path / "stopped")
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[key]), key


def test_each_shape_and_each_plain_value_has_a_cuda_graph_of_its_own(gpu):
    step = GraphedStep(lambda inputs: {"loss": inputs["images"].sum() * inputs["count"]}, torch.device("cuda"))
    for size, count in ((2, 2), (2, 3), (4, 3), (2, 2)):
        images = torch.ones(size, 3, device="cuda")
        found = [float(step({"images": images * k, "count": count})["loss"]) for k in range(6)]
        assert found == [3 * size * count * k for k in range(6)]
    assert len(step.recordings) == 3 and gpu.replays == 3 * 3 + 6


@pytest.mark.parametrize(
    "own, missing", [({}, "a GPU"), ({"gradient_accumulation_steps": 2}, "a GPU and gradient_accumulation_steps 1")]
)
def test_what_a_cuda_graph_needs(tmp_path, own, missing):
    with pytest.raises(InputError, match=f"cuda_graph needs {missing}.*leave cuda_graph out"):
        tinymae.pretrain(**QUICK | own, cuda_graph=True, output_dir=tmp_path)


def test_a_finetuning_of_a_vit_is_by_cuda_graph_unless_told_otherwise(gpu, tmp_path):
    run = tinymae.finetune(**FINETUNINGS["finetune"], output_dir=tmp_path)
    assert gpu.replays == run.results["steps"] - WARM_UP > 0
    require_no_waits(gpu)


@pytest.mark.parametrize(
    ("own", "works", "compiled"),
    [
        ({}, True, True),
        ({}, False, False),  # no C compiler
        ({"compile": True}, False, True),
        ({"compile": False}, True, False),
        ({"epochs": 1}, True, False),  # too short
        ({"max_minutes": 1}, True, False),
        ({"max_minutes": 5}, True, True),
        ({"cuda_graph": False}, True, False),  # no gain without
        ({"model": "conv_ae"}, True, False),
    ],
)
def test_long_runs_by_cuda_graph_are_compiled_where_that_works(gpu, monkeypatch, own, works, compiled):
    chosen = pretrain.PretrainSettings(**FEW | {"batch_size": 16, "epochs": 2000, "contrast_epochs": 0} | own).resolve()
    accelerator, dataset = chosen.create_accelerator(), load_dataset(FEW["data"], "train")
    model, cores = pretrain.create_model(chosen, dataset, None), []
    monkeypatch.setattr(learning, "can_compile", lambda _: works)
    monkeypatch.setattr(model, "compile_core", lambda: cores.append(model))
    phases.plan_parts(chosen, accelerator, model, dataset)
    assert bool(cores) == compiled


@pytest.mark.parametrize("ema_decay", [0.0, 0.99])
def test_in_fp16_a_step_waits_only_to_know_whether_the_average_of_the_weights_moves(gpu, tmp_path, ema_decay):
    settings = FEW | SMALL_VIT | STEPS | {"mixed_precision": "fp16", "ema_decay": ema_decay, "no_test": True}
    tinymae.finetune(**settings, output_dir=tmp_path)
    places = {where for _, where in waits_of_steps(gpu)}
    assert all("isfinite(grad_norm)" in where for where in places) and bool(places) == bool(ema_decay)


def test_pca_is_fitted_and_looked_at(gpu, tmp_path):
    run = tinymae.pretrain(**FEW, model="pca", latent_dim=8, output_dir=tmp_path)
    train, val = (load_dataset(FEW["data"], split, labels=FEW["labels"]) for split in ("train", "val"))
    known, asked = (run.model.cpu().encode(split.images) for split in (train, val))
    classes = knn_predict(known, train.labels, asked, num_classes=10)
    assert run.results["knn_val"] == pytest.approx(accuracy(classes, val.labels)) and run.results["knn_val"] > 10


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_probes_and_evaluations_run(gpu, tmp_path, monkeypatch, head):
    monkeypatch.setattr(linear_probe, "linear_fits", partial(probes.linear_fits, grid=[1.0]))
    monkeypatch.setattr(linear_probe, "mlp_fits", lambda *data, seed, **_: [(0.1, probes.fit_mlp(*data, **MLP))])
    model = tiny_mae()
    probe = tinymae.linear_probe(**FEW, weights=model, head=head, output_dir=tmp_path / "probe")
    assert probe.results["encoder_unchanged"]
    if head == "linear":
        tinymae.evaluate(**FEW, weights=probe.model, output_dir=tmp_path / "classifier")
        assert "masked" in tinymae.evaluate(**FEW, weights=model, output_dir=tmp_path / "autoencoder").results


def test_numbers_are_read_when_they_have_arrived(gpu):
    scalars = {"loss": torch.tensor(0.5).to("cuda"), "grad_norm": torch.tensor(2.0).to("cuda")}
    numbers = StepNumbers(most=3, together=False)
    numbers.send(None, scalars, logged=False)
    assert list(numbers.receive()) == []  # one look at it, after which it has arrived
    assert list(numbers.receive()) == [(None, {"loss": 0.5, "grad_norm": 2.0}, False)]
    numbers.send(None, {"loss": torch.tensor(0.25, device="cuda")}, logged=True)
    gpu.log.waits.clear()
    assert list(numbers.receive(everything=True)) == [(None, {"loss": 0.25}, True)]
    assert [what for _, what, _ in gpu.log.waits] == ["Event.synchronize"]


@pytest.mark.parametrize("together", [False, True])
def test_a_steps_numbers_are_read_at_most_so_many_steps_later(gpu, together):
    """Of several processes, each reads them at the same step."""
    numbers, later = StepNumbers(most=3, together=together), []
    for step in range(12):
        numbers.send(step, {"loss": torch.tensor(float(step)).to("cuda")}, logged=False)
        later += [(step - read, values == {"loss": read}) for read, values, _ in numbers.receive()]
    assert all(right for _, right in later)
    assert {late for late, _ in later} == ({3} if together else {1})


def test_pixels_and_labels_may_lie_on_the_gpu(gpu):
    dataset = load_dataset(FEW["data"].to("cuda"), "all", labels=FEW["labels"].to("cuda"))
    assert torch.equal(dataset.images, FEW["data"]) and torch.equal(dataset.labels, FEW["labels"])


def test_a_model_on_the_gpu_takes_images_of_the_cpu_and_is_exported(gpu):
    """What a notebook does with the model of a run."""
    model = tiny_mae()
    images = load_dataset("digits", "test").images[:4]
    with torch.no_grad():
        expected = model.encode(images)
        found, program = model.to("cuda").encode(images), trace(EncoderGraph(model, normalised=True))
        torch.testing.assert_close(found.cpu(), expected)
        assert tinymae.anomaly_map(model, images, passes=2).shape == (4, 8, 8)
        torch.testing.assert_close(program.module()(images=model.normalise(images).cpu()), expected)


def test_autocast_is_switched_off_on_the_models_device_whatever_the_images_are_on(monkeypatch):
    classifier = build_classifier(MaskedAutoencoder(image_size=8, depth=1), classes=["a", "b"])
    components, autocast, devices = PrincipalComponents(image_size=8, latent_dim=4), torch.autocast, []
    monkeypatch.setattr(torch, "autocast", lambda device, **given: devices.append(device) or autocast("cpu", **given))
    for function in (classifier.to("meta"), components.to("meta").encode):
        function(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert devices == ["meta"] * 2


def test_nothing_is_saved_of_a_run_that_diverges(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(MaskedAutoencoder, "forward_loss", lambda *args: forward_loss(*args) * torch.inf)
    with pytest.raises(Diverged, match=r"loss is inf at step 1 .* last good checkpoint: none yet"):
        tinymae.pretrain(**QUICK | STEPS | {"log_every": 100, "keep_every": 1, "labels": None}, output_dir=tmp_path)
    assert not list(tmp_path.glob("checkpoints/*")) and not list(tmp_path.glob("epochs/*"))


# ---- the tests above can fail

forward_loss, take = MaskedAutoencoder.forward_loss, mae.take


def reads_a_value(model, prediction, patches):
    loss = forward_loss(model, prediction, patches)
    assert loss < 1e9
    return loss


def makes_a_tensor_from_a_list(model, prediction, patches):
    return forward_loss(model, prediction, patches) * prediction.new_tensor([1.0])[0]


def copies_from_pageable_memory(tensor, device):
    return tensor.to(device, non_blocking=True)


def looks_up_by_an_index_on_the_cpu(tokens, index):
    return take(tokens, index.cpu())


DEFECTS = {
    "a value is read": (MaskedAutoencoder, "forward_loss", reads_a_value, "wait"),
    "a list is copied": (MaskedAutoencoder, "forward_loss", makes_a_tensor_from_a_list, "wait"),
    "memory is not pinned": (masked, "to_device", copies_from_pageable_memory, "wait"),
    "an operand is on the CPU": (mae, "take", looks_up_by_an_index_on_the_cpu, "mismatch"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found(gpu, tmp_path, monkeypatch, name):
    where, what, defect, kind = DEFECTS[name]
    monkeypatch.setattr(where, what, defect)
    short = QUICK | STEPS | {"labels": None, "epochs": 1}
    if kind == "mismatch":
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            tinymae.pretrain(**short, output_dir=tmp_path)
        return
    tinymae.pretrain(**short, cuda_graph=False, output_dir=tmp_path)
    assert waits_of_steps(gpu)
    if where is MaskedAutoencoder:  # what a recording contains
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            tinymae.pretrain(**short, output_dir=tmp_path / "graph")


def test_floats_of_the_cpu_are_looked_at_once_in_a_call(gpu):
    """What it made of them on the device it knows as its own."""
    model = tinymae.MaskedAutoencoder(image_size=8, patch_size=2, embed_dim=24, depth=1, num_heads=2).eval().to("cuda")
    model.reconstruct(torch.randn(2, 3, 8, 8))
    assert model.looks[False] == LOOKS - 1
