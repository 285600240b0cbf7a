"""Compare families of autoencoders under one protocol: the same data, the same minutes, the same probes.

    python scripts/compare.py --data cifar10 --minutes 5 --output-dir runs/compare
    python scripts/compare.py --data cifar10 mnist --models mae vae pca --latent-dims 32 128 --seeds 0 1 2 --epochs 20
    python scripts/compare.py --data cifar10 --minutes 5 --label-fractions 1 0.1 0.01
    python scripts/compare.py --data cifar10 --minutes 5 --search optuna --trials 20

Each cell of the grid (data, model, latent size, loss, seed) is pretrained, probed with a linear layer and with an MLP,
fine-tuned and evaluated, each in its own folder. Repeating a command resumes: finished runs are read, interrupted
ones continue from their checkpoint, and a larger grid adds its cells. Raw pixels and untrained
encoders are scored as controls. The result is comparison.csv, comparison.md and report.html.

--search first looks for each family's best settings by the linear probe on validation, in short pretrainings; test is
not loaded there. --extra passes flags on to one family's pretraining, to all, or to fine-tuning:

    --extra "vae: --beta 0.1 --width 32" --extra "pretrain: --no-flip --crop none" --extra "finetune: --no-flip"
"""

from tinymae.commands.cli import run_command

if __name__ == "__main__":
    run_command("compare", description=__doc__)
