"""How fast is one pretraining step, and what does each measure bring? Prints a table and saves it as JSON.

    python benchmarks/throughput.py                              # two minutes on 2 CPU cores
    python benchmarks/throughput.py --decoder-dim 128 --decoder-depth 2 --decoder-heads 4      # the released decoder
    python benchmarks/throughput.py --batch-size 2048 --compile  # on a GPU

The first line is the model's step in float32 with timm's fused attention and torch's default AdamW (peers.py has other
implementations beside it). Each line below changes one thing and keeps the changes above it. Every variant runs in its
own process to start with (for its peak memory), then all run in one process, a few steps each in turn, for `--rounds`
rounds: images/s is the median over rounds, the spread its extremes.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from timing import in_new_processes, matmul_rate, memory_of_process, rates_in_turns, write_result
from torch import nn

from tinymae import MaskedAutoencoder
from tinymae.models.flops import reconstruction_flops
from tinymae.models.vit import set_fused_attention
from tinymae.training.device import fused_is_faster
from tinymae.training.loop import parameter_groups
from tinymae.training.memory import keep_freed_memory

STATISTICS = {"mean": (0.4912, 0.4820, 0.4464), "std": (0.2470, 0.2435, 0.2617)}  # CIFAR-10, train


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Arguments of the model, of its batches, and of how long they are timed."""
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--patch-size", type=int, default=4)
    parser.add_argument("--decoder-dim", type=int, default=192)
    parser.add_argument("--decoder-depth", type=int, default=4)
    parser.add_argument("--decoder-heads", type=int, default=3)
    parser.add_argument("--mask-ratio", type=float, default=0.75)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps of each line in a round")


def build_mae(args: argparse.Namespace, **own: Any) -> MaskedAutoencoder:
    """The model of these arguments, and of others by name."""
    return MaskedAutoencoder(
        image_size=args.image_size, patch_size=args.patch_size, mask_ratio=args.mask_ratio,
        decoder_dim=args.decoder_dim, decoder_depth=args.decoder_depth, decoder_heads=args.decoder_heads, **own,
    )  # fmt: skip


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--compile", action="store_true", help="add torch.compile as a last line")
    parser.add_argument("--output", default="runs/throughput.json")
    return parser


# Each variant: what it adds, and the settings it has.
BASE = {
    "precision": "fp32", "attention": "fused", "fused_adamw": False, "keep_memory": False, "compile": False,
    "checkpointing": False,
}  # fmt: skip
CHANGES = {
    "float32": {},
    "fused AdamW": {"fused_adamw": True},
    "bf16 autocast": {"precision": "bf16"},
    "attention by device and precision": {"attention": "by device and precision"},
    "freed memory kept": {"keep_memory": True},
}


def variants(args: argparse.Namespace) -> dict[str, dict]:
    settings, table, changes = dict(BASE), {}, dict(CHANGES)
    if args.compile:
        changes["torch.compile"] = {"compile": True}
    changes["gradient checkpointing"] = {"checkpointing": True}  # the one line that is there for memory, not for speed
    for name, change in changes.items():
        settings = settings | change
        table[name] = settings
    return table


def create_step(args: argparse.Namespace, settings: dict) -> tuple[Callable[[], None], nn.Module]:
    """One full training step on random images, forward, backward, AdamW; and its model."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    model = build_mae(args, **STATISTICS).to(device)
    faster = fused_is_faster(device, settings["precision"])
    set_fused_attention(model, settings["attention"] == "fused" or faster)
    groups = parameter_groups(model, weight_decay=0.05)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=settings["fused_adamw"])
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    model.encoder.set_grad_checkpointing(settings["checkpointing"])
    if settings["compile"]:
        model.compile_core()

    def step() -> None:
        keep_freed_memory(settings["keep_memory"])
        with torch.autocast(device.type, torch.bfloat16, enabled=settings["precision"] == "bf16"):
            loss = model.training_losses(images)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, model


def peak_memory(args: argparse.Namespace, settings: dict) -> int:
    """Bytes at the peak of two steps, for a process of its own: on a CPU, its resident memory."""
    step, _ = create_step(args, settings)
    for _ in range(2):
        step()
    # Not getrusage: its maximum is inherited from the process that started this one.
    return memory_of_process("VmHWM") if args.device == "cpu" else torch.cuda.max_memory_allocated()


def main(args: argparse.Namespace) -> dict:
    table = variants(args)
    steps = {name: create_step(args, settings)[0] for name, settings in table.items()}
    rates = rates_in_turns(steps, args.device, rounds=args.rounds, repeats=args.steps, images=args.batch_size)
    size = 8192 if args.device.startswith("cuda") else 2048
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    ceilings = {name: matmul_rate(args.device, dtype, size) for name, dtype in dtypes.items()}

    rows, first = [], rates["float32"]["images_per_second"]
    for name, settings in table.items():
        rate = rates[name]["images_per_second"]
        flops = reconstruction_flops(create_step(args, settings | {"compile": False})[1])
        (peak,) = in_new_processes(peak_memory, args, settings)
        rows.append({
            "variant": name, **rates[name], "ratio": rate / first, "peak_memory_bytes": peak, "flops_per_image": flops,
            "flop_utilisation": rate * flops / ceilings[settings["precision"]],
        })  # fmt: skip
    heads = (("images/s", 10), ("spread", 16), ("ratio", 8), ("peak MB", 9), ("MFLOP/img", 11), ("of matmul", 11))
    print(f"\n{'each line adds':24}" + "".join(f"{head:>{width}}" for head, width in heads))
    for row in rows:
        spread = f"{row['lowest']:.0f}-{row['highest']:.0f}"
        print(
            f"{row['variant']:24}{row['images_per_second']:>10.0f}{spread:>16}{row['ratio']:>8.2f}"
            f"{row['peak_memory_bytes'] / 1e6:>9.0f}{row['flops_per_image'] / 1e6:>11.0f}"
            f"{row['flop_utilisation']:>11.0%}"
        )
    print(f"\nmatrix products here: {ceilings['fp32'] / 1e9:.0f} GFLOP/s fp32, {ceilings['bf16'] / 1e9:.0f} bf16")
    return write_result(args.output, args, args.device, matmul_flops_per_second=ceilings, rows=rows)


if __name__ == "__main__":
    main(parse().parse_args())
