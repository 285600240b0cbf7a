"""What the server of processes does once, so that those forked from it begin with the command itself."""

import gc
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # which pytest has, and the server has not
importlib.import_module("running")  # where a child finds what it is to do
for name in ("pretrain", "finetune", "linear_probe", "evaluate", "embed", "predict", "neighbours", "inspect"):
    importlib.import_module(f"tinymae.commands.{name}")
for name in (
    "matplotlib.backends.backend_agg", "matplotlib.figure", "safetensors.torch", "sklearn.datasets", "torch._dynamo",
    "torch.utils.tensorboard", "torchinfo", "torchmetrics.functional.classification",
):  # fmt: skip
    importlib.import_module(name)
gc.collect()
gc.freeze()  # else each run, which collects garbage at its end, goes through all of these modules
