"""All that only a GPU can show, in one command: right numbers, no waits, speed. Prints a table and saves it as JSON.

    python benchmarks/gpu.py --minutes 8
    python benchmarks/gpu.py --device cpu --minutes 3    # small sizes, to see that it works

In this order, and as far as the minutes go:

- agreement: loss and gradients of each family in float32 on the CPU and on the GPU, from the same weights;
- waits: where steps of pretraining and fine-tuning make the host wait, by CUDA's own debug mode (none should);
- launches: losses of compiled steps and of CUDA graphs against eager ones;
- resume: a run that was stopped and went on, with --deterministic, against one that was not: the same bits?
- speed: images/s of pretraining end to end, and of its step alone; milliseconds of the host; peak memory; the ratio of
  the measured rate of bf16 matrix products. By batch size, with Muon and AdamW, compiled and as CUDA graphs;
- use: fine-tuning, features and k-NN.
"""

import argparse
import contextlib
import hashlib
import io
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch
from steps import pretraining_steps, step_alone
from timing import matmul_rate, synchronise
from torch import Tensor, nn

import tinymae
from tinymae.commands import finetune, objective, pretrain
from tinymae.data.load import load_dataset
from tinymae.errors import Stopped, first_line
from tinymae.evaluation.metrics import map_dataset
from tinymae.evaluation.neighbours import knn_predict
from tinymae.files import write_json
from tinymae.models.families import FAMILIES
from tinymae.models.flops import reconstruction_flops
from tinymae.randomness import Draws
from tinymae.training.loop import create_optimizer, parameter_groups, train_steps
from tinymae.training.numbers import StepNumbers
from tinymae.training.run import Run
from tinymae.training.schedule import Schedule

LARGE: dict = {"images": 50_000, "batch_sizes": (512, 2048), "steps": 40, "model": {}}
SMALL: dict = {"images": 400, "batch_sizes": (32,), "steps": 3,
         "model": {"embed_dim": 24, "depth": 2, "num_heads": 2, "decoder_dim": 16, "decoder_depth": 1}}  # fmt: skip
LAUNCHES: dict[str, dict] = {
    "eager": {}, "compiled": {"compile": True}, "graph": {"cuda_graph": True},
    "compiled, graph": {"compile": True, "cuda_graph": True},
}  # fmt: skip
STOP_AT = 5  # steps: a CUDA graph has been recorded then
OWN: dict[str, dict] = {
    "conv_ae": {"width": 16}, "vae": {"width": 16}, "vqvae": {"width": 16}, "resnet_unet": {"encoder": "resnet10t"},
}  # fmt: skip


class Report:
    """Rows of (section, what, value), printed and saved as they come."""

    def __init__(self, path: Path):
        self.path, self.rows = path, []

    def add(self, section: str, what: str, **values: float | str | bool) -> None:
        self.rows.append({"section": section, "what": what, **values})
        shown = ", ".join(f"{name} {v:.4g}" if isinstance(v, float) else f"{name} {v}" for name, v in values.items())
        print(f"{section:10} {what:34} {shown}", flush=True)
        write_json(self.path, self.rows)


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto", help="auto: as Accelerate finds it")
    parser.add_argument("--small", action="store_true", help="small sizes (always on a CPU)")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=SECTIONS, help="these sections")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu.json"))
    return parser


def launches(device: torch.device) -> dict[str, dict]:
    """The ways to launch a step here, and the settings that choose them."""
    return LAUNCHES if device.type == "cuda" else {"eager": LAUNCHES["eager"]}


# ---- right numbers


def compare_with_cpu(report: Report, device: torch.device, sizes: dict, _data: dict) -> None:
    """Loss and gradients of each family from the same weights, images and draws."""
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name, family in FAMILIES.items():
        if family.fitted:
            continue
        torch.manual_seed(0)
        models = [family(**(sizes["model"] if name == "mae" else OWN.get(name, {})))]
        models.append(family(**models[0].config).to(device))
        models[1].load_state_dict(models[0].state_dict())
        drawn = models[0].draw(Draws(0, 1, 16, torch.arange(16), "cpu"))
        losses = []
        for model in models:
            where = model.mean.device
            here = {key: value.to(where) if isinstance(value, Tensor) else value for key, value in drawn.items()}
            loss = model.training_losses(images.to(where), **here)["loss"]
            loss.backward()
            losses.append(loss.item())
        ours, theirs = (gradients(model) for model in models)
        report.add(
            "agreement", f"{name}, float32 on {device.type} and CPU",
            loss_error=abs(losses[1] - losses[0]) / abs(losses[0]),
            gradient_error=float((theirs - ours).norm() / ours.norm()),
        )  # fmt: skip


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])


def count_waits(report: Report, device: torch.device, sizes: dict, data: dict) -> None:
    """What CUDA's debug mode says of some steps, after the first ones."""
    contrast = {"contrast_epochs": 1, "contrast_batch_size": 32, "optimizer": "adamw"}
    runs = {"mae": sizes["model"] | {"contrast_epochs": 0}, "contrast": sizes["model"] | contrast}
    for name in ("conv_ae", "vae", "vqvae", "resnet_unet", "masked_conv"):
        runs[name] = {"model": name, **OWN.get(name, {})}
    for name, own in runs.items():
        states = pretraining(device, **data, epochs=1, batch_size=32, **own)
        report.add("waits", name, **waits_of(states, device))
    everything = {"mixup": 0.5, "cutmix": 0.5, "trivial_augment": True, "random_erasing": 0.5}
    report.add("waits", "finetune", **waits_of(finetuning(device, sizes, data, batch_size=32, **everything), device))


def waits_of(states: Iterator, device: torch.device) -> dict:
    """How many there were in four steps, and where the first was."""
    for _ in range(3):
        next(states)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        for _ in range(4):
            next(states)
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    first = f"{Path(found[0].filename).name}:{found[0].lineno}" if found else "-"
    return {"a_step": len(found) / 4, "first_at": first}


def compare_launches(report: Report, device: torch.device, sizes: dict, data: dict) -> None:
    """Losses of some steps from the same start, launched in each way, against the eager ones."""
    for phase, own in (("reconstruction", {"contrast_epochs": 0}), ("contrast", {"contrast_epochs": 1})):
        losses = {}
        torch._dynamo.reset()
        for launch, how in launches(device).items():
            torch.manual_seed(0)
            settings = data | sizes["model"] | own | {"epochs": 1, "batch_size": 64, "contrast_batch_size": 64}
            states = pretraining(device, **settings, **how)
            losses[launch] = torch.tensor([float(next(states).loss) for _ in range(12)])
        for launch, found in losses.items():
            if launch != "eager":
                error = float(((found - losses["eager"]) / losses["eager"]).abs().max())
                report.add("launches", f"{phase}, {launch}, 12 steps", largest_error=error)


def compare_resumed(report: Report, device: torch.device, sizes: dict, data: dict) -> None:
    """A run of a few steps with --deterministic, and the same one stopped in between, launched in each way."""
    for launch, how in launches(device).items():
        same = ends_in_same_bits(sizes, {"cuda_graph": False} | how, data)
        report.add("resume", f"{launch}, stopped after step {STOP_AT}", same_bits=same)


def ends_in_same_bits(sizes: dict, how: dict, data: dict) -> bool:
    """Whether a run that was stopped, and went on, has the weights of one that was not."""
    settings = data | sizes["model"] | how | {
        "epochs": 1, "batch_size": 32, "contrast_epochs": 0, "deterministic": True, "log_with": (), "labels": None,
    }  # fmt: skip
    settings["data"], digests, report_step = data["data"][:400], [], Run.report

    def stopping(self: Run, state) -> None:
        self.signals.code = 128 + signal.SIGTERM if state.step == STOP_AT else None
        report_step(self, state)

    silent = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, silent[0], silent[1]:
        for name in ("whole", "stopped"):
            if name == "stopped":
                Run.report = stopping
                with contextlib.suppress(Stopped):
                    tinymae.pretrain(**settings, output_dir=f"{folder}/{name}")
                Run.report = report_step
            done = tinymae.pretrain(**settings, output_dir=f"{folder}/{name}")
            digests.append(hashlib.sha256((done.folder / "model.safetensors").read_bytes()).hexdigest()[:16])
    return digests[0] == digests[1]


# ---- speed


def pretraining(device: torch.device, **settings) -> Iterator:
    """The steps of the pretraining command, without its folder."""
    asked = pretrain.PretrainSettings(**settings, describe=False).resolve()
    accelerator = asked.create_accelerator()
    train_set = asked.load_splits(["train"], image_size=None, channels=3)["train"]
    model = pretrain.create_model(asked, train_set, None)
    for state in pretraining_steps(asked, accelerator, model, train_set.to(device), last_step=10**6):
        model.after_step(accelerator, torch.Generator().manual_seed(state.step))
        yield state


def finetuning(device: torch.device, sizes: dict, data: dict, **settings) -> Iterator:
    """The steps of the fine-tuning command, from scratch, without its folder."""
    encoder = {name: value for name, value in sizes["model"].items() if not name.startswith("decoder")}
    own = encoder | settings | {"recipe": "light", "from_scratch": True, "describe": False}
    asked = finetune.FinetuneSettings(**data, **own).resolve()
    accelerator = asked.create_accelerator()
    train_set = asked.load_splits(["train"], image_size=None, channels=3)["train"]
    asked = asked.settle_for(train_set)
    model = finetune.create_model(asked, train_set, None)
    _, batches = asked.plan_batches(accelerator, train_set.to(device), batch_size=asked.batch_size)
    optimizer = create_optimizer("adamw", parameter_groups(model.vit, weight_decay=0.05), betas=(0.9, 0.999))
    prepared, optimizer = accelerator.prepare(model, optimizer)
    if asked.compile:
        model.encoder.compile_core()
    mix = objective.create_mixing(asked, model)
    yield from train_steps(
        prepared, optimizer, partial(objective.prepare_inputs, asked, model, mix),
        objective.create_losses(asked, prepared, model, accelerator, soft=mix is not None, priors=0.0),
        batches(start_step=0), accelerator=accelerator, schedule=Schedule(peak=1e-3, last_step=10**6, warmup=0.05),
        batch_size=asked.batch_size, seed=0, cuda_graph=bool(asked.cuda_graph),
    )  # fmt: skip


def rate_of(step: Callable[[], object], device: torch.device, *, steps: int, images: int) -> dict[str, float]:
    """Images/s, the host's milliseconds of a step, seconds of the first six, and the peak of the device's memory."""
    real = device.type == "cuda"
    began = time.perf_counter()
    for _ in range(6):  # a CUDA graph is recorded in the fourth
        step()
    synchronise(device)
    first = time.perf_counter() - began
    if real:
        torch.cuda.reset_peak_memory_stats()
    began, host = time.perf_counter(), time.thread_time()
    for _ in range(steps):
        step()
    host = time.thread_time() - host
    synchronise(device)
    seconds = time.perf_counter() - began
    rate = {"images_per_second": steps * images / seconds, "host_ms": 1000 * host / steps, "first_steps_s": first}
    if real:
        rate["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return rate


def end_to_end(states: Iterator) -> Callable[[], None]:
    """A step whose numbers are read as a run reads them."""
    numbers = StepNumbers(most=20, together=False)

    def step() -> None:
        state = next(states)
        numbers.send(state, {**state.losses, "grad_norm": state.grad_norm}, logged=False)
        for _ in numbers.receive():
            pass

    return step


def measure_speed(report: Report, device: torch.device, sizes: dict, data: dict) -> None:
    """Pretraining, by batch size, optimiser and compilation."""
    large = device.type == "cuda"
    rates = {dtype: matmul_rate(device, dtype, 8192 if large else 256) for dtype in (torch.float32, torch.bfloat16)}
    for dtype, flops in rates.items():
        report.add("speed", f"matrix products in {dtype}", tflops=flops / 1e12)
    precision = torch.bfloat16 if large else torch.float32
    alone = FAMILIES["mae"](**sizes["model"])
    flops, alone = reconstruction_flops(alone), alone.to(device)
    own = data | sizes["model"] | {"epochs": 1}
    for batch_size in sizes["batch_sizes"]:
        step = step_alone(alone, device, batch_size, precision)
        rate = rate_of(step, device, steps=sizes["steps"], images=batch_size)
        report.add("speed", f"step alone, batch {batch_size}", **rate)
    for batch_size, (launch, how) in product(sizes["batch_sizes"], launches(device).items()):
        if launch == "eager":
            torch._dynamo.reset()  # sizes of their own, not any sizes
        for optimizer in ("adamw", "muon")[: 2 if batch_size == sizes["batch_sizes"][0] else 1]:
            states = pretraining(device, **own, contrast_epochs=0, batch_size=batch_size, optimizer=optimizer, **how)
            rate = rate_of(end_to_end(states), device, steps=sizes["steps"], images=batch_size)
            ratio = rate["images_per_second"] * flops / rates[precision]
            report.add("speed", f"batch {batch_size}, {optimizer}, {launch}", **rate, ratio_of_matmul=ratio)
    for launch, how in launches(device).items():
        size = sizes["batch_sizes"][0]
        states = pretraining(device, **own, contrast_epochs=1, contrast_batch_size=size, optimizer="muon", **how)
        rate = rate_of(end_to_end(states), device, steps=sizes["steps"], images=4 * size)
        report.add("speed", f"contrast of 4 x {size} views, muon, {launch}", **rate)


def measure_use(report: Report, device: torch.device, sizes: dict, data: dict) -> None:
    """Fine-tuning, features, k-NN."""
    size = sizes["batch_sizes"][0]
    for launch, how in launches(device).items():
        states = finetuning(device, sizes, data, batch_size=size, trivial_augment=True, **how)
        rate = rate_of(end_to_end(states), device, steps=sizes["steps"], images=size)
        report.add("use", f"fine-tuning, batch {size}, {launch}", **rate)
    model = FAMILIES["mae"](**sizes["model"]).to(device).eval()
    dataset = load_dataset(data["data"], labels=data["labels"]).to(device)
    began = time.perf_counter()
    features = map_dataset(model.encode, dataset, device=device, batch_size=size).to(device)
    synchronise(device)
    report.add("use", "features in float32", images_per_second=len(dataset) / (time.perf_counter() - began))
    began = time.perf_counter()
    knn_predict(features, dataset.labels, features, num_classes=10)
    synchronise(device)
    report.add("use", f"k-NN among {len(features)}", images_per_second=len(features) / (time.perf_counter() - began))


SECTIONS: dict[str, Callable[[Report, torch.device, dict, dict], None]] = {
    "agreement": compare_with_cpu, "waits": count_waits, "launches": compare_launches, "resume": compare_resumed,
    "speed": measure_speed, "use": measure_use,
}  # fmt: skip


def main(args: argparse.Namespace) -> None:
    """All sections, until the time is up."""
    if args.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    device = pretrain.PretrainSettings().resolve().create_accelerator().device
    sizes = SMALL if args.small or device.type == "cpu" else LARGE
    drawn = torch.Generator().manual_seed(0)
    data = {
        "data": torch.randint(0, 256, (sizes["images"], 3, 32, 32), dtype=torch.uint8, generator=drawn),
        "labels": torch.arange(sizes["images"]) % 10,
    }
    report, torch.backends.cudnn.allow_tf32 = Report(args.output), False  # float32 is to mean float32
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    report.add("machine", name, torch=torch.__version__, minutes=args.minutes)

    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"the minutes are over; what was found is in {args.output}"))
    signal.setitimer(signal.ITIMER_REAL, 60 * args.minutes)
    for section in [name for name in SECTIONS if name in args.only]:
        try:
            SECTIONS[section](report, device, sizes, data)
        except Exception as error:  # whatever a GPU may bring: the other sections are worth having
            report.add("failed", section, error=f"{type(error).__name__}: {first_line(error)}")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main(parse().parse_args())
