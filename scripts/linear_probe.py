"""Score frozen features: k-NN and a classifier trained on them, on the encoder of a pretraining run.

    python scripts/linear_probe.py --weights runs/mae --data cifar10
    python scripts/linear_probe.py --weights runs/mae --data cifar10 --label-fraction 0.01 --head mlp --controls

Features are extracted once, by the unmasked encoder. The head's regularisation is chosen on validation, and test is
scored once. Choose between runs with --no-test, which does not load it. With a linear head, the output folder is a
stock timm classifier that `tinymae.load` and evaluate.py read.
"""

from tinymae.commands.cli import run_command

if __name__ == "__main__":
    run_command("linear-probe", description=__doc__)
