"""Fine-tune a pretrained encoder, or train the same classifier from scratch, with labels.

    accelerate launch scripts/finetune.py --weights runs/mae --data cifar10 --output-dir runs/finetune
    python scripts/finetune.py --from-scratch --data cifar10 --output-dir runs/scratch
    python scripts/finetune.py --weights runs/mae --from-scratch ...       # the same architecture, random weights
    python scripts/finetune.py --weights runs/mae --label-fraction 0.1 ...

Repeating a command resumes it. The result is a stock timm VisionTransformer. Watch the validation accuracy while it
trains; test is scored once, on the final weights (their moving average with --ema-decay), or with --no-test not even
loaded, for whoever chooses between runs.
"""

import argparse

import torch
from sklearn.metrics import confusion_matrix
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from tinymae import InputError, MaskedAutoencoder, evaluate, figures
from tinymae.augment import padded_crop, random_erasing, random_flip, trivial_augment
from tinymae.data import Batch, Dataset, few_labels, require_labels
from tinymae.randomness import Draws, derive_seed, use_sample_drop_path, use_sample_patch_drop
from tinymae.runs import (
    Run,
    add_model_arguments,
    add_run_arguments,
    add_training_arguments,
    create_schedule,
    create_training_accelerator,
    dataset_loader,
    plan_batches,
    run_script,
)
from tinymae.train import choose_attention, create_optimizer, parameter_groups, train_steps
from tinymae.weights import Classifier, build_classifier, load_autoencoder, require_channels


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="folder of a pretraining run; it fixes the architecture")
    parser.add_argument("--from-scratch", action="store_true", help="start from random weights")
    parser.add_argument("--data", default="cifar10", help="cifar10, cifar100, mnist, digits or a folder with classes")
    parser.add_argument("--label-fraction", type=float, default=1.0, help="share of each class's labels used")
    parser.add_argument("--eval-every", type=int, default=5, help="epochs between validations (default: %(default)s)")
    parser.add_argument("--no-test", action="store_true", help="leave the test split out: for choosing on validation")
    add_run_arguments(parser, output_dir="runs/finetune")
    add_training_arguments(parser, epochs=100, batch_size=512, base_lr=1e-3, weight_decay=0.05)
    add_model_arguments(parser)

    regularisation = parser.add_argument_group("regularisation")
    regularisation.add_argument("--pool", choices=["avg", "cls"], default="avg", help="(default: %(default)s)")
    regularisation.add_argument(
        "--layer-decay", type=float, default=0.75, help="of a ViT; 1 from scratch (default: %(default)s)"
    )
    regularisation.add_argument("--drop-path", type=float, default=0.1, help="of a ViT (default: %(default)s)")
    regularisation.add_argument(
        "--patch-drop", type=float, default=0.0, help="share of patches a ViT does not see in training (default: 0)"
    )
    regularisation.add_argument("--label-smoothing", type=float, default=0.1, help="(default: %(default)s)")
    regularisation.add_argument("--mixup", type=float, default=0.8, help="alpha; 0 is off (default: %(default)s)")
    regularisation.add_argument("--cutmix", type=float, default=1.0, help="alpha; 0 is off (default: %(default)s)")
    regularisation.add_argument("--ema-decay", type=float, default=0.999, help="0 is off (default: %(default)s)")

    augmentation = parser.add_argument_group("augmentation")
    augmentation.add_argument("--crop-padding", type=int, default=4, help="pixels (default: %(default)s)")
    augmentation.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="left-right; give --no-flip for digits or text",
    )
    augmentation.add_argument("--trivial-augment", action=argparse.BooleanOptionalAction, default=True)
    augmentation.add_argument("--random-erasing", type=float, default=0.25, help="probability (default: %(default)s)")
    return parser


def main(args: argparse.Namespace) -> dict:
    if not args.weights and not args.from_scratch:
        raise InputError("give --weights DIR, the folder of a pretraining run, or --from-scratch")
    if not 0 <= args.patch_drop < 1:
        raise InputError(f"patch_drop {args.patch_drop} is outside [0, 1)")
    if args.batch_size % 2 and (args.mixup or args.cutmix):
        raise InputError(f"batch_size {args.batch_size} is odd, mixup and cutmix pair images: make it even, or both 0")
    accelerator = create_training_accelerator(args)
    device = accelerator.device
    torch.manual_seed(derive_seed(args.seed, "weights"))
    pretrained = load_autoencoder(args.weights) if args.weights else None
    size, channels = (
        (pretrained.image_size, pretrained.in_channels) if pretrained else (args.image_size, args.in_channels)
    )
    load = dataset_loader(args, image_size=size, channels=channels)
    judged_split = "val" if args.no_test else "test"
    splits = {split: load(split).to(device) for split in dict.fromkeys(("train", "val", judged_split))}
    require_labels(args.data, **splits)
    train_set, val_set, judged_set = splits["train"], splits["val"], splits[judged_split]
    train_set = train_set.subset(few_labels(train_set.labels, args.label_fraction, args.seed))
    classes = train_set.classes

    if pretrained is None:
        mean, std = train_set.statistics
        pretrained = MaskedAutoencoder(
            args.encoder, image_size=train_set.image_shape[1:], patch_size=args.patch_size,
            in_channels=train_set.image_shape[0], embed_dim=args.embed_dim, depth=args.depth, num_heads=args.num_heads,
            mean=mean, std=std,
        )  # fmt: skip
    elif args.from_scratch:
        pretrained = type(pretrained)(**pretrained.config)
    require_channels(train_set, pretrained.in_channels)
    model = build_classifier(pretrained, classes=classes, pool=args.pool, drop_path=args.drop_path)
    trained = model.vit if isinstance(model, Classifier) else model
    if isinstance(model, Classifier):
        use_sample_drop_path(trained)
        use_sample_patch_drop(trained, args.patch_drop)
        choose_attention(trained, device)
        trained.set_grad_checkpointing(args.gradient_checkpointing)
    elif args.gradient_checkpointing:
        pretrained.save_memory()

    steps_per_epoch, batches = plan_batches(args, accelerator, train_set)
    run = Run(args, accelerator)
    run.list_skipped(train_set, val_set, judged_set)
    run.print_summary(trained, depth=1)
    run.print(f"{len(train_set):,} labelled images, {steps_per_epoch} steps an epoch, {run.processes}")

    layer_decay = args.layer_decay if isinstance(model, Classifier) and not args.from_scratch else 1.0
    groups = parameter_groups(trained, weight_decay=args.weight_decay, layer_decay=layer_decay)
    optimizer = create_optimizer(args.optimizer, groups, betas=(0.9, 0.999))
    model, optimizer = accelerator.prepare(model, optimizer)
    bare_model = accelerator.unwrap_model(model)
    ema = ModelEmaV3(bare_model, decay=args.ema_decay, use_warmup=True) if args.ema_decay else None
    if args.compile:  # a copy made after this would run the original's weights
        bare_model.compile_core()
    start_step, minutes = run.resume(model=bare_model, optimizer=optimizer, ema=ema)
    schedule = create_schedule(args, steps_per_epoch=steps_per_epoch, minutes_before=minutes)
    run.start(schedule, step=start_step, steps_per_epoch=steps_per_epoch, batch_size=args.batch_size)
    compute_losses = create_losses(args, model, bare_model, len(classes))
    judged = ema.module if ema else bare_model
    step = start_step
    for state in train_steps(
        model, optimizer, compute_losses, batches(start_step=start_step), accelerator=accelerator, schedule=schedule,
        batch_size=args.batch_size, seed=args.seed, start_step=start_step, clip_grad=args.clip_grad, ema=ema,
    ):  # fmt: skip
        step = state.step
        run.report(state)
        if step % (args.eval_every * steps_per_epoch) == 0 and step < schedule.total_steps:
            with run.pause():
                run.log(step, {"accuracy_val": evaluate.accuracy(predict(judged, val_set, run), val_set.labels)})

    run.complete()
    val_accuracy = evaluate.accuracy(predict(judged, val_set, run), val_set.labels)
    run.log(step, {"accuracy_val": val_accuracy})
    predictions = predict(judged, judged_set, run)
    accuracy = evaluate.accuracy(predictions, judged_set.labels)
    matrix = confusion_matrix(judged_set.labels.cpu(), predictions, labels=range(len(classes)))
    results = {
        "accuracy_val": val_accuracy, f"accuracy_{judged_split}": accuracy, "epochs": step / steps_per_epoch,
        "steps": step, "minutes": schedule.minutes, "num_labels": len(train_set), "confusion_matrix": matrix.tolist(),
    }  # fmt: skip
    if run.is_main:
        judged.save(run.folder)
        panels = {"loss": ["loss"], "validation accuracy, %": ["accuracy_val"], "learning rate": ["learning_rate"]}
        start = "from scratch" if args.from_scratch else "fine-tuning"
        figures.training_curves(run.metrics, panels, run.folder / "curves.png", f"{start} on {args.data}")
        title = f"{start} on {args.data}, {judged_split}, {accuracy:.1f} %"
        figures.confusion_matrix(matrix, classes, run.folder / "confusion_matrix.png", title)
    run.print(f"{accuracy:.2f} % of the {judged_split} images, {val_accuracy:.2f} % of validation")
    names = ["model.safetensors", "config.json", "metrics.jsonl", "curves.png", "confusion_matrix.png"]
    run.finish(results, [run.folder / name for name in names])
    return results


def create_losses(args: argparse.Namespace, model: nn.Module, bare_model: Classifier, num_classes: int):
    """What one micro-batch costs: augmentation, mixing, cross-entropy."""
    mix = None
    if args.mixup or args.cutmix:
        mix = Mixup(args.mixup, args.cutmix, label_smoothing=args.label_smoothing, num_classes=num_classes)
    criterion = SoftTargetCrossEntropy() if mix else nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)

    def compute_losses(batch: Batch, draws: Draws) -> dict[str, Tensor]:
        images, targets = batch.images, batch.labels
        images = padded_crop(images, draws, args.crop_padding)
        if args.flip:
            images = random_flip(images, draws)
        if args.trivial_augment:
            images = trivial_augment(images, draws)
        if args.random_erasing:
            images = random_erasing(images, draws, probability=args.random_erasing)
        images = bare_model.normalise(images)
        if mix:
            images, targets = mix(images, targets)  # by numpy's state, which the step has seeded
        return {"loss": criterion(model(images).float(), targets)}

    return compute_losses


@torch.no_grad()
def predict(model: Classifier, dataset: Dataset, run: Run) -> Tensor:
    """Predicted classes (N,), on the CPU."""
    model.eval()
    with run.accelerator.autocast():
        return evaluate.map_dataset(model, dataset, device=run.accelerator.device).argmax(dim=1)


if __name__ == "__main__":
    run_script(main, parse())
