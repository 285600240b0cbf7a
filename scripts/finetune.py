"""Fine-tune a pretrained encoder, or train the same classifier from scratch, with labels.

The defaults are for a CPU: on CIFAR-10 15 epochs with half of the patches left out, 42 to 55 minutes of one core with
bf16, and 89.8 +- 0.2 on test (three seeds) from the vit-t-mae of 0.2. The released classifier has 94.8 +- 0.1, by 80
epochs with stronger augmentation, in minutes of an H100: docs/results.md has its command.

    accelerate launch scripts/finetune.py --weights runs/mae --data cifar10 --output-dir runs/finetune
    python scripts/finetune.py --from-scratch --data cifar10 --output-dir runs/scratch
    python scripts/finetune.py --weights runs/mae --from-scratch ...       # the same architecture, random weights
    python scripts/finetune.py --weights runs/mae --label-fraction 0.1 ...
    python scripts/finetune.py --weights runs/mae --label-fraction 0.01 --trivial-augment --random-erasing 0.25 \\
        --unlabelled 3 ...                                     # and three images without labels for each with one

Repeating a command resumes it. The result is a stock timm VisionTransformer. Watch the validation accuracy while it
trains; test is scored once, on the final weights (their moving average with --ema-decay), or with --no-test not even
loaded, for whoever chooses between runs.
"""

from tinymae.commands.cli import run_script

if __name__ == "__main__":
    run_script("finetune", __doc__)
