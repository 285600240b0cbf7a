"""Fine-tune a pretrained encoder, or train the same classifier from scratch, with labels.

The defaults are the CIFAR-10 recipe: 80 epochs with strong augmentation, 6.7 PFLOP, 4 minutes of an H100. Expect
94.8 +- 0.1 on test (three seeds) from the released vit-t-mae. Without a GPU and with many labels give --recipe light
and a time limit: docs/own_images.md.

    accelerate launch scripts/finetune.py --weights runs/mae --data cifar10 --output-dir runs/finetune
    python scripts/finetune.py --from-scratch --data cifar10 --output-dir runs/scratch
    python scripts/finetune.py --weights runs/mae --from-scratch ...       # the same architecture, random weights
    python scripts/finetune.py --weights runs/mae --recipe light --max-minutes 60 ...
    python scripts/finetune.py --weights runs/mae --label-fraction 0.1 ...
    python scripts/finetune.py --weights runs/mae --label-fraction 0.01 --unlabelled 3 ...  # and unlabelled images

Repeating a command resumes it. The result is a stock timm VisionTransformer. Watch the validation accuracy while it
trains. Test is scored once, on the final weights (their moving average with --ema-decay). Choose between runs with
--no-test, which does not load it.
"""

from tinymae.commands.cli import run_command

if __name__ == "__main__":
    run_command("finetune", description=__doc__)
