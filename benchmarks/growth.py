"""What a data set costs as it grows: seconds to the first step, memory of a process, images/s. A table, and JSON.

    python benchmarks/growth.py                                      # 10k to 10M rows of Parquet, and a folder
    python benchmarks/growth.py --rows 10000 100000 --files 20000

Rows are PNG files of 8 x 8 pixels in a Parquet column; beyond a million, the file of a million listed several times.
Each line is a process of its own (or two, each with batches of half the size) that opens the data as `tinymae pretrain`
does and trains a small MAE on them, with two workers. "start" is from the process's start to the end of its first step,
once Hugging Face `datasets` has its copy of the table; memory is the process's own (anonymous) memory, without the
pages of the table that it shares with others.
"""

import argparse
import io
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import parquet
from steps import pretraining_steps
from timing import in_new_processes, memory_of_process, write_result

from tinymae.commands.pretrain import PretrainSettings, create_model
from tinymae.data.load import load_splits

MILLION = 1_000_000
BATCH_SIZE = 512
DISTINCT = 10_000  # images; the rows repeat them
MODEL: dict = {"patch_size": 2, "embed_dim": 64, "depth": 2, "num_heads": 2, "decoder_dim": 32, "decoder_depth": 1}


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, MILLION, 10 * MILLION])
    parser.add_argument("--files", type=int, default=200_000, help="image files in a folder; 0 leaves it out")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=30, help="steps that images/s are the mean of")
    parser.add_argument("--folder", help="where the data go, and stay (default: a temporary folder)")
    parser.add_argument("--output", default="runs/growth.json")
    return parser


def encode(generator: np.random.Generator, side: int = 8) -> bytes:
    """A random PNG file."""
    memory = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(memory, "PNG")
    return memory.getvalue()


def write_rows(path: Path, count: int) -> None:
    """A Parquet file of encoded images with labels, as the Hub has them."""
    generator = np.random.default_rng(0)
    pool = [{"bytes": encode(generator), "path": None} for _ in range(min(count, DISTINCT))]
    schema = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()})
    features = {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    described = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with parquet.ParquetWriter(path, described) as writer:
        for start in range(0, count, DISTINCT):
            size = min(DISTINCT, count - start)
            columns = {"image": pool[:size], "label": [number % 10 for number in range(size)]}
            writer.write_table(pa.table(columns, schema=described))


def write_files(folder: Path, count: int, *, side: int = 8) -> None:
    """A folder of PNG files, a thousand in each of its folders."""
    generator = np.random.default_rng(0)
    pool = [encode(generator, side) for _ in range(min(count, DISTINCT))]
    for number in range(count):
        place = folder / "one" / f"{number // 1000:04}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:07}.png").write_bytes(pool[number % len(pool)])


def train(data: list[str], size: int, steps: int) -> dict[str, float]:
    """What it takes this process to open the data and to train on them, in batches of this size."""
    torch.set_num_threads(1)
    asked = PretrainSettings(
        **MODEL, batch_size=size, epochs=1, contrast_epochs=0, optimizer="adamw", crop_padding=1, mixed_precision="no",
    ).resolve()  # fmt: skip
    accelerator = asked.create_accelerator()
    train_set = load_splits(data, ["train"], image_size=8, memory_limit_gb=0)["train"]
    model = create_model(asked, train_set, None)
    loop = pretraining_steps(asked, accelerator, model, train_set, last_step=10**9)
    next(loop)
    start = time.time() - Path(f"/proc/{os.getpid()}").stat().st_ctime
    for _ in range(5):  # the workers are ahead by some batches
        next(loop)
    began = time.perf_counter()
    for _ in range(steps):
        next(loop)
    rate = steps * size / (time.perf_counter() - began)
    return {"start_s": start, "memory_gb": memory_of_process("RssAnon") / 1e9, "images_per_second": rate}


def measure(data: list[str], processes: int, steps: int) -> dict[str, float]:
    """What that many processes at a time take: the slowest start, the most memory, images/s of all."""
    found = in_new_processes(train, data, BATCH_SIZE // processes, steps, count=processes)
    return {
        "start_s": max(each["start_s"] for each in found),
        "memory_gb": max(each["memory_gb"] for each in found),
        "images_per_second": sum(each["images_per_second"] for each in found),
    }


def main(args: argparse.Namespace) -> None:
    results: dict[str, dict[str, float]] = {}

    def note(name: str, data: list[str], processes: int) -> None:
        line = results[f"{name}, {processes} process{'es'[: 2 * (processes > 1)]}"] = measure(
            data, processes, args.steps
        )
        print(f"{list(results)[-1]:44}", *(f"{key} {value:,.2f}" for key, value in line.items()), sep="  ", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for count in args.rows:
            path = folder / f"{min(count, MILLION)}.parquet"
            if not path.exists():
                write_rows(path, min(count, MILLION))
            data = [str(path)] * max(1, count // MILLION)
            before = time.monotonic()
            measure(data, 1, steps=1)  # makes the library's copy
            print(f"{count:,} rows: first opened in {time.monotonic() - before:.0f} s", flush=True)
            for processes in args.processes:
                note(f"{count:,} rows", data, processes)
        if args.files:
            files = folder / f"files-{args.files}"
            if not files.exists():
                write_files(files, args.files)
            for processes in args.processes:
                note(f"{args.files:,} files", [str(files)], processes)
    write_result(args.output, args, "cpu", results=results)


if __name__ == "__main__":
    main(parse().parse_args())
