"""One pretraining step of tinymae beside other libraries' MAE, at one architecture, interleaved in one process.

    pip install transformers lightly
    python benchmarks/peers.py                     # two minutes on 2 CPU cores

Hugging Face's ViTMAEForPreTraining and lightly's MaskedVisionTransformerTIMM with MAEDecoderTIMM, put together as their
documentations say, each in fp32 and under bf16 autocast with torch's default AdamW; and tinymae as its scripts run it.
All have a ViT-Tiny encoder, the same decoder and mask ratio, and see the same float images; a step is forward,
backward and update. Images/s is the median over `--rounds`, the spread its extremes.
"""

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import lightly
import timm
import torch
import transformers
from lightly.models import utils
from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
from throughput import add_sizes, build_mae
from timing import rates_in_turns, write_result
from torch import Tensor, nn

from tinymae.models.vit import set_fused_attention
from tinymae.training.device import fused_is_faster
from tinymae.training.loop import parameter_groups
from tinymae.training.memory import keep_freed_memory


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--output", default="runs/peers.json")
    return parser


def hugging_face_mae(args: argparse.Namespace) -> nn.Module:
    config = transformers.ViTMAEConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, num_channels=3,
        image_size=args.image_size, patch_size=args.patch_size, mask_ratio=args.mask_ratio, norm_pix_loss=True,
        decoder_hidden_size=args.decoder_dim, decoder_num_hidden_layers=args.decoder_depth,
        decoder_num_attention_heads=args.decoder_heads, decoder_intermediate_size=4 * args.decoder_dim,
    )  # fmt: skip
    model: Any = transformers.ViTMAEForPreTraining(config)
    model.compute_loss = lambda images: model(pixel_values=images).loss
    return model


class LightlyMAE(nn.Module):
    """lightly's parts in the order of its MAE example: it predicts the hidden patches alone."""

    def __init__(self, args: argparse.Namespace):
        super().__init__()
        self.mask_ratio, self.patch_size = args.mask_ratio, args.patch_size
        vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=args.image_size, patch_size=args.patch_size, num_classes=0
        )
        self.encoder = MaskedVisionTransformerTIMM(vit=vit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.decoder = MAEDecoderTIMM(
                num_patches=vit.patch_embed.num_patches, patch_size=args.patch_size, embed_dim=vit.embed_dim,
                decoder_embed_dim=args.decoder_dim, decoder_depth=args.decoder_depth,
                decoder_num_heads=args.decoder_heads,
            )  # fmt: skip

    def compute_loss(self, images: Tensor) -> Tensor:
        size = (len(images), self.encoder.sequence_length)
        kept, hidden = utils.random_token_mask(size=size, mask_ratio=self.mask_ratio, device=images.device)
        encoded = self.decoder.embed(self.encoder.encode(images, idx_keep=kept))
        tokens = utils.repeat_token(self.decoder.mask_token, size)
        tokens = utils.set_at_index(tokens, kept, encoded.type_as(tokens))
        prediction = self.decoder.predict(utils.get_at_index(self.decoder.decode(tokens), hidden))
        patches = utils.patchify(images, self.patch_size)
        return nn.functional.mse_loss(prediction, utils.get_at_index(patches, hidden - 1))  # token 0 is the cls token


def our_mae(args: argparse.Namespace) -> nn.Module:
    model: Any = build_mae(args)
    model.compute_loss = lambda images: model.training_losses(images)["loss"]
    return model


def create_step(args: argparse.Namespace, build: Callable[..., nn.Module], *, bf16: bool) -> Callable[[], None]:
    """One training step; what each library leaves to the user is torch's default."""
    torch.manual_seed(0)
    model = build(args).to(args.device).train()
    ours = build is our_mae
    if ours:
        set_fused_attention(model, fused_is_faster(torch.device(args.device), "bf16" if bf16 else "no"))
    parameters = parameter_groups(model, weight_decay=0.05) if ours else model.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True if ours else None)
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=args.device)

    def step() -> None:
        keep_freed_memory(ours)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=bf16):
            loss = model.compute_loss(images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main(args: argparse.Namespace) -> dict:
    hugging_face, its_lightly = f"transformers {transformers.__version__}", f"lightly {lightly.__version__}"
    steps = {
        f"{hugging_face}, fp32": create_step(args, hugging_face_mae, bf16=False),
        f"{hugging_face}, bf16": create_step(args, hugging_face_mae, bf16=True),
        f"{its_lightly}, fp32": create_step(args, LightlyMAE, bf16=False),
        f"{its_lightly}, bf16": create_step(args, LightlyMAE, bf16=True),
        "tinymae, fp32": create_step(args, our_mae, bf16=False),
        "tinymae, bf16": create_step(args, our_mae, bf16=True),
    }
    rows = rates_in_turns(steps, args.device, rounds=args.rounds, repeats=args.steps, images=args.batch_size)
    best = rows["tinymae, bf16"]["images_per_second"]
    print(f"\n{'':32}{'images/s':>10}{'spread':>14}{'tinymae bf16 is':>18}")
    for name, row in rows.items():
        spread = f"{row['lowest']:.0f}-{row['highest']:.0f}"
        times = f"{best / row['images_per_second']:.2f} x"
        print(f"{name:32}{row['images_per_second']:>10.0f}{spread:>14}{times:>18}")
    return write_result(args.output, args, args.device, rows=rows)


if __name__ == "__main__":
    main(parse().parse_args())
