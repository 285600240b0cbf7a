"""Pretrain a masked autoencoder. The defaults are the CIFAR-10 recipe.

    accelerate launch scripts/pretrain.py --data cifar10 --output-dir runs/mae
    python scripts/pretrain.py --data path/to/images --image-size 64 --patch-size 8 --max-minutes 60
    python scripts/pretrain.py --data path/to/images --weights mae_pretrain_vit_base.pth --image-size 96
    python scripts/pretrain.py --data cifar10 --weights runs/mae --epochs 25 --output-dir runs/mae-contrast \\
        --contrast-weight 0.5 --views 4 --decoded-views 1 --batch-size 256 --crop resized --color-jitter 0.5

--weights goes on from a pretraining run, an official MAE checkpoint or a transformers ViTMAE folder, in its sizes; the
image size, patch size or channels that are given adapt it. Mean and std become those of the new data.

Repeating a command resumes it. The output folder gets model.safetensors and config.json, which
`tinymae.MaskedAutoencoder.from_pretrained`, linear_probe.py and finetune.py read. Several processes on CPUs:

    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 scripts/pretrain.py ...
"""

import argparse
from functools import partial

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from tinymae import InputError, MaskedAutoencoder, adapt, evaluate, figures
from tinymae.architecture import describe
from tinymae.augment import color_jitter, padded_crop, random_flip, random_resized_crop
from tinymae.autoencoders.base import Autoencoder
from tinymae.autoencoders.pca import PrincipalComponents
from tinymae.contrast import ContrastiveLearner
from tinymae.convert import read_autoencoder
from tinymae.data import Batch, Dataset, chunks, pick
from tinymae.randomness import Draws, derive_seed, seeded
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
from tinymae.train import Schedule, choose_attention, create_optimizer, parameter_groups, train_steps
from tinymae.weights import FAMILIES, save_autoencoder

ARCHITECTURE = ("encoder", "embed_dim", "depth", "num_heads", "decoder_dim", "decoder_depth", "decoder_heads")
# What each family's constructor takes from the command line, and the recipe's value for it. Flags have no defaults of
# their own, so that one which a family does not know is refused; with --weights, those of the weights hold.
PICTURES = {"image_size": None, "in_channels": 3}
MODELS = {
    "mae": {
        "encoder": "vit_tiny_patch16_224", "patch_size": 4, "embed_dim": None, "depth": None, "num_heads": None,
        "decoder_dim": 128, "decoder_depth": 2, "decoder_heads": 4, "mask_ratio": 0.75, "norm_pix_loss": True,
    },
    "conv_ae": {"depth": None, "width": 64, "latent_dim": None, "loss": "mse"},
    "vae": {"depth": None, "width": 64, "latent_dim": 128, "beta": 1.0, "kl_warmup_steps": 0, "loss": "mse"},
    "vqvae": {"depth": 2, "width": 64, "latent_dim": 32, "codebook_size": 512, "loss": "mse"},
    "resnet_unet": {"encoder": "resnet18", "skips": True, "loss": "mse"},
    "masked_conv": {
        "encoder": "convnext_atto", "patch_size": 4, "stem_size": 1, "decoder_dim": 64, "mask_ratio": 0.6,
        "norm_pix_loss": True, "loss": "mse",
    },
    "pca": {"latent_dim": 128},
}  # fmt: skip


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="cifar10, cifar100, mnist, digits or a folder of images")
    parser.add_argument("--model", choices=MODELS, default="mae", help="family of autoencoder (default: %(default)s)")
    add_run_arguments(parser, output_dir="runs/pretrain")
    add_training_arguments(parser, epochs=400, batch_size=512, base_lr=1e-3, weight_decay=0.05)

    model = add_model_arguments(parser)
    model.add_argument("--weights", help="go on from this model; what it has replaces the defaults (mae)")
    model.add_argument("--decoder-dim", type=int, help="channels of the decoder (mae: 128, masked_conv: 64)")
    model.add_argument("--decoder-depth", type=int, help="its blocks (mae: 2)")
    model.add_argument("--decoder-heads", type=int, help="heads of its attention (mae: 4)")
    model.add_argument("--mask-ratio", type=float, help="share of patches hidden (mae: 0.75, masked_conv: 0.6)")
    flag = argparse.BooleanOptionalAction
    model.add_argument(
        "--norm-pix-loss", action=flag, help="normalise each patch to be predicted (mae, masked_conv: yes)"
    )
    model.add_argument("--latent-dim", type=int, help="of the latent (conv_ae: none; vae, pca: 128) or a code (32)")
    model.add_argument("--width", type=int, help="channels after the first halving (conv_ae, vae, vqvae: 64)")
    model.add_argument("--beta", type=float, help="weight of the KL divergence (vae: 1)")
    model.add_argument("--kl-warmup-steps", type=int, help="steps over which beta rises from 0 (vae: 0)")
    model.add_argument("--codebook-size", type=int, help="how many codes there are (vqvae: 512)")
    model.add_argument("--stem-size", type=int, help="stride of the first layer, 1, 2 or 4 (masked_conv: 1)")
    model.add_argument("--skips", action=flag, help="connections past the bottleneck (resnet_unet: yes)")
    model.add_argument("--loss", help="mse, l1, log_cosh, ssim, or a sum like 0.8*ssim+0.2*l1 (all but mae, pca: mse)")
    parser.set_defaults(**dict.fromkeys(name for recipe in (PICTURES, *MODELS.values()) for name in recipe))

    contrast = parser.add_argument_group("contrast of several views (mae)")
    contrast.add_argument(
        "--contrast-weight", type=float, default=0.0, help="of its loss beside the reconstruction's (default: 0)"
    )
    contrast.add_argument("--temperature", type=float, default=0.2, help="of its softmax (default: %(default)s)")
    contrast.add_argument("--views", type=int, default=2, help="of each image (default: %(default)s)")
    contrast.add_argument("--decoded-views", type=int, help="how many of them are reconstructed (default: all)")

    augmentation = parser.add_argument_group("augmentation")
    augmentation.add_argument(
        "--crop", choices=["none", "pad", "resized"], default="pad", help="(default: %(default)s)"
    )
    augmentation.add_argument("--crop-padding", type=int, default=4, help="pixels, with --crop pad (default: 4)")
    augmentation.add_argument("--min-scale", type=float, default=0.2, help="least area, with --crop resized")
    augmentation.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="left-right; give --no-flip for digits or text",
    )
    augmentation.add_argument(
        "--color-jitter", type=float, default=0.0, help="strength of SimCLR's colour distortion (default: 0)"
    )

    watching = parser.add_argument_group("watching")
    watching.add_argument("--probe-every", type=int, default=20, help="epochs between k-NN accuracies and pictures")
    watching.add_argument("--probe-images", type=int, default=10_000, help="training images that k-NN compares with")
    watching.add_argument("--keep-every", type=int, help="epochs between weights kept in epochs/ (default: none)")
    return parser


def main(args: argparse.Namespace) -> dict:
    check_contrast(args)
    accelerator = create_training_accelerator(args)
    torch.manual_seed(derive_seed(args.seed, "weights"))
    start = read_start(args) if args.weights else None
    complete_arguments(args)
    size = args.image_size or (start.image_size if start else None)
    channels = args.in_channels or start.in_channels
    load = dataset_loader(args, image_size=size, channels=channels)
    train_set, val_set = load("train").to(accelerator.device), load("val").to(accelerator.device)
    if start and train_set.image_shape[0] != channels:
        raise InputError(
            f"data set {args.data} has {train_set.image_shape[0]} channels, not {channels}: "
            f"give --in-channels {train_set.image_shape[0]}, which adapts the weights"
        )
    model = create_model(args, train_set, start)
    if args.model == "pca":
        return fit_components(args, model, train_set, val_set, accelerator)
    choose_attention(model, accelerator.device)
    if args.gradient_checkpointing:
        model.save_memory()
    if args.compile:
        model.compile_core()
    learner = model
    if args.contrast_weight:
        learner = ContrastiveLearner(
            model, weight=args.contrast_weight, temperature=args.temperature, num_views=args.views,
            decoded_views=args.decoded_views,
        )  # fmt: skip
    steps_per_epoch, batches = plan_batches(args, accelerator, train_set)

    run = Run(args, accelerator)
    run.list_skipped(train_set, val_set)
    if run.is_main:
        run.print_summary(model, depth=2)
        model.eval()  # a codebook learns from what it sees in training
        with FlopCounterMode(display=False) as counter:
            if args.contrast_weight:  # the projector left out
                model(torch.zeros(args.views, *train_set.image_shape), decoded=args.decoded_views).loss.backward()
            else:
                model(torch.zeros(1, *train_set.image_shape)).loss.backward()
        model.zero_grad()
        run.print(f"{counter.get_total_flops() / 1e9:.3f} GFLOP an image, forward and backward")
        run.print(f"{len(train_set):,} images to learn from, {steps_per_epoch} steps an epoch, {run.processes}")

    groups = parameter_groups(learner, weight_decay=args.weight_decay)
    optimizer = create_optimizer(args.optimizer, groups, betas=(0.9, 0.95))
    learner, optimizer = accelerator.prepare(learner, optimizer)
    start_step, minutes = run.resume(model=accelerator.unwrap_model(learner), optimizer=optimizer)
    schedule = create_schedule(args, steps_per_epoch=steps_per_epoch, minutes_before=minutes)

    def augment(images: torch.Tensor, draws: Draws) -> torch.Tensor:
        if args.crop == "pad":
            images = padded_crop(images, draws, args.crop_padding)
        elif args.crop == "resized":
            images = random_resized_crop(images, draws, scale=(args.min_scale, 1.0))
        if args.flip:
            images = random_flip(images, draws)
        if args.color_jitter:
            images = color_jitter(images, draws, strength=args.color_jitter)
        return images

    def compute_losses(batch: Batch, draws: Draws) -> dict[str, torch.Tensor]:
        if args.contrast_weight:  # each view has its own augmentation and its own mask
            views, masks = zip(
                *((augment(batch.images, draws), model.draw(draws)["mask"]) for _ in range(args.views)), strict=True
            )
            output = learner(torch.cat(views), torch.cat(masks))
        else:
            output = learner(augment(batch.images, draws), **model.draw(draws))
        return {"loss": output.loss, **output.terms}

    look = partial(look_at, model, run, pick(train_set, args.probe_images), val_set)
    run.start(schedule, step=start_step, steps_per_epoch=steps_per_epoch, batch_size=args.batch_size)
    if start_step == 0:
        look(0)
    step = start_step
    for state in train_steps(
        learner, optimizer, compute_losses, batches(start_step=start_step), accelerator=accelerator, schedule=schedule,
        batch_size=args.batch_size, seed=args.seed, start_step=start_step, clip_grad=args.clip_grad,
    ):  # fmt: skip
        step = state.step
        model.after_step(accelerator, seeded(args.seed, "after step", step))
        run.report(state)
        if step % (args.probe_every * steps_per_epoch) == 0 and step < schedule.total_steps:
            look(step)
        if args.keep_every and step % (args.keep_every * steps_per_epoch) == 0 and run.is_main:
            save_autoencoder(model, run.folder / "epochs" / f"{step // steps_per_epoch:04d}")

    run.complete()
    results = {"epochs": step / steps_per_epoch, "steps": step, "minutes": schedule.minutes} | look(step)
    accelerator.wait_for_everyone()
    if run.is_main:
        save_autoencoder(model, run.folder)
        panels = {"loss": ["loss"], "k-NN accuracy, %": ["knn_val"], "learning rate": ["learning_rate"]}
        figures.training_curves(run.metrics, panels, run.folder / "curves.png", f"pretraining on {args.data}")
    names = ["model.safetensors", "config.json", "metrics.jsonl", "curves.png", "reconstructions.png"]
    run.finish(results, [run.folder / name for name in names])
    return results


def read_start(args: argparse.Namespace) -> MaskedAutoencoder:
    """The model that --weights names. Raises InputError for a flag that contradicts it."""
    if args.model != "mae":
        raise InputError(f"weights go with --model mae, not {args.model}")
    start = read_autoencoder(
        args.weights, num_heads=args.num_heads, decoder_dim=args.decoder_dim, decoder_depth=args.decoder_depth,
        decoder_heads=args.decoder_heads,
    )  # fmt: skip
    has = describe(start.encoder) | {name: value for name, value in start.config.items() if value is not None}
    for name in ARCHITECTURE:
        if getattr(args, name) not in (None, has[name]):
            raise InputError(
                f"{name} {getattr(args, name)} contradicts weights {args.weights}, which have {has[name]}: leave it out"
            )
    return start


def complete_arguments(args: argparse.Namespace) -> None:
    """Fill in the recipe of the family, unless weights say it. Raises InputError for a flag of another family."""
    known = PICTURES | MODELS[args.model]
    for name in {name for recipe in MODELS.values() for name in recipe} - known.keys():
        if getattr(args, name) is not None:
            families = ", ".join(model for model, recipe in MODELS.items() if name in recipe)
            raise InputError(f"{name} is not a setting of model {args.model}, but of {families}: leave it out")
    if not args.weights:
        vars(args).update({name: value for name, value in known.items() if getattr(args, name) is None})


def check_contrast(args: argparse.Namespace) -> None:
    """Raises InputError for flags that do not go with a contrastive loss."""
    for name in ("contrast_weight", "color_jitter"):
        if getattr(args, name) < 0:
            raise InputError(f"{name} {getattr(args, name)} is negative: give 0 for none, or a positive number")
    if args.contrast_weight and args.model != "mae":
        raise InputError(f"contrast_weight goes with --model mae, not {args.model}: leave it out")
    if args.contrast_weight and args.gradient_accumulation_steps > 1:
        raise InputError(
            f"gradient_accumulation_steps {args.gradient_accumulation_steps} would split the batch whose images "
            "contrast_weight compares: use a smaller batch_size, more processes or --gradient-checkpointing"
        )


def create_model(args: argparse.Namespace, dataset: Dataset, start: MaskedAutoencoder | None) -> Autoencoder:
    """The family's model for images like the data set's; or the one of --weights, adapted to them."""
    mean, std = dataset.statistics
    data = {"image_size": dataset.image_shape[1:], "in_channels": dataset.image_shape[0], "mean": mean, "std": std}
    if start:
        task = {name: getattr(args, name) for name in ("patch_size", "mask_ratio", "norm_pix_loss")}
        return adapt(start, **data, **task).train()
    return FAMILIES[args.model](**{name: getattr(args, name) for name in MODELS[args.model]}, **data)


def fit_components(
    args: argparse.Namespace, model: PrincipalComponents, train_set: Dataset, val_set: Dataset, accelerator: Accelerator
) -> dict:
    """PCA has no gradient and no steps: it is fitted at once."""
    run = Run(args, accelerator)
    run.list_skipped(train_set, val_set)
    schedule = Schedule(peak=0.0, total_steps=1, warmup=0.0)
    run.start(schedule, step=0, steps_per_epoch=1, batch_size=len(train_set))
    model.fit(torch.cat([images.cpu() for images, _ in chunks(train_set, 1000)]))
    results = {"epochs": 1, "steps": 1, "minutes": schedule.minutes}
    if run.is_main:
        save_autoencoder(model, run.folder)
    results |= look_at(model.to(accelerator.device), run, pick(train_set, args.probe_images), val_set, 1)
    run.finish(results, [run.folder / name for name in ("model.safetensors", "config.json", "reconstructions.png")])
    return results


@torch.no_grad()
def look_at(
    model: Autoencoder, run: Run, train_set: Dataset, val_set: Dataset, step: int, *, pictures: int = 16
) -> dict:
    """k-NN accuracy on validation, and a sheet of reconstructions of fixed validation images under fixed masks."""
    results, accelerator = {}, run.accelerator
    with run.pause():
        if run.is_main:
            model.eval()
            with accelerator.autocast():
                if train_set.labels is not None and val_set.labels is not None:
                    encode = partial(evaluate.map_dataset, model.encode, device=accelerator.device)
                    classes = evaluate.knn_predict(
                        encode(train_set), train_set.labels.cpu(), encode(val_set), num_classes=len(train_set.classes)
                    )
                    results["knn_val"] = evaluate.accuracy(classes, val_set.labels)
                images, _ = pick(val_set, pictures)[torch.arange(min(pictures, len(val_set)))]
                images = images.to(accelerator.device)
                shown = model.reconstruct(images, generator=torch.Generator().manual_seed(0))
            results["reconstruction_mse"] = float((shown.images - shown.original).square().mean())
            if hasattr(model, "sample"):
                drawn = model.sample(64, generator=torch.Generator().manual_seed(0))
                run.log_picture("samples", figures.grid(drawn, run.folder / "samples.png"), step)
            note = {"none": "", "visible": " (brightness and contrast of hidden patches guessed from visible ones)"}
            sheet = figures.reconstruction_sheet(
                shown.columns, run.folder / "reconstructions.png", f"step {step}{note[shown.statistics]}", groups=4
            )
            run.log_picture("reconstructions", sheet, step)
        run.log(step, results)
        accelerator.wait_for_everyone()
    return results


if __name__ == "__main__":
    run_script(main, parse())
