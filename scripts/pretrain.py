"""Pretrain a masked autoencoder. The defaults are the CIFAR-10 recipe.

    accelerate launch scripts/pretrain.py --data cifar10 --output-dir runs/mae
    python scripts/pretrain.py --data path/to/images --image-size 64 --patch-size 8 --max-minutes 60
    python scripts/pretrain.py --data path/to/images --weights mae_pretrain_vit_base.pth --image-size 96

--weights goes on from a pretraining run, an official MAE checkpoint or a transformers ViTMAE folder, in its sizes; the
image size, patch size or channels that are given adapt it. Mean and std become those of the new data.

Repeating a command resumes it. The output folder gets model.safetensors and config.json, which `tinymae.load`,
linear_probe.py and finetune.py read. Several processes on CPUs:

    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 scripts/pretrain.py ...
"""

from tinymae.commands.cli import run_script

if __name__ == "__main__":
    run_script("pretrain", __doc__)
