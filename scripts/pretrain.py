"""Pretrain a masked autoencoder. The defaults are the CIFAR-10 recipe.

Papers: MAE, arXiv 2111.06377; contrasted masked views, CAN, arXiv 2210.16870. 42 epochs of reconstruction by Muon at
batch 512, then 84 that contrast four views of each image, one of them reconstructed.
Cost: 12.5 PFLOP (0.7 GFLOP an image, then 2.4, at last 4.5), 5 minutes of an H200. Expect k-NN 84.3 and linear probe
88.3 on test. The released weights had a time limit: docs/results.md.

    accelerate launch scripts/pretrain.py --data cifar10 --output-dir runs/mae
    python scripts/pretrain.py --data path/to/images --image-size 64 --patch-size 8 --max-minutes 60
    python scripts/pretrain.py --data path/to/images --weights mae_pretrain_vit_base.pth --image-size 96

--weights continues from a pretraining run, an official MAE checkpoint or a transformers ViTMAE folder, in its sizes.
The image size, patch size or channels that you give adapt it. Mean and std become those of the new data.

Repeating a command resumes it. The output folder gets model.safetensors and config.json, which `tinymae.load`,
linear_probe.py and finetune.py read. Several processes on CPUs:

    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 scripts/pretrain.py ...
"""

from tinymae.commands.cli import run_command

if __name__ == "__main__":
    run_command("pretrain", description=__doc__)
