"""What the server of processes does once, so that those forked from it begin with the command itself."""

import gc
import importlib
import io

from matplotlib.figure import Figure

from . import parts  # noqa: F401  (what a child would import to find its function)

for name in (
    "commands.pretrain", "commands.finetune", "commands.linear_probe", "commands.evaluate", "commands.embed",
    "study.compare",
):  # fmt: skip
    importlib.import_module(f"tinymae.{name}")
for name in (
    "matplotlib.backends.backend_agg", "safetensors.torch", "sklearn.datasets", "sklearn.manifold", "tensorboard",
    "torch._dynamo", "torch.utils.tensorboard", "torchinfo", "torchmetrics.functional.classification",
):  # fmt: skip
    importlib.import_module(name)
figure = Figure()
figure.text(0, 0, "finds the fonts")
figure.savefig(io.BytesIO(), format="png")
gc.collect()
gc.freeze()  # else each run, which collects garbage at its end, goes through all of these modules
