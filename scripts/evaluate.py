"""Look closely at finished weights: a classifier's errors, or an autoencoder's reconstructions.

    python scripts/evaluate.py --weights runs/finetune --data cifar10
    python scripts/evaluate.py --weights runs/mae --data cifar10

A classifier gives its accuracy, scikit-learn's report, a confusion matrix and a table by class; an autoencoder its
MSE, PSNR and SSIM with patches hidden and with none hidden, and a sheet of reconstructions.
"""

from tinymae.commands.cli import run_command

if __name__ == "__main__":
    run_command("evaluate", description=__doc__)
