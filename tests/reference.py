"""A masked autoencoder written plainly from the paper (arXiv 2111.06377), to hold the fast one against.

One image at a time, float32, no timm, no einops, no fused kernel: shuffle the tokens, keep the first ones, append mask
tokens, put everything back in the grid, predict every patch, and average the error over the hidden ones.
"""

import math

import torch


def cut(image, height, width):
    """(C, H, W) -> list of N vectors, each ordered by row, column, channel."""
    patches = []
    for top in range(0, image.shape[1], height):
        for left in range(0, image.shape[2], width):
            patches.append(image[:, top : top + height, left : left + width].permute(1, 2, 0).reshape(-1))
    return torch.stack(patches)


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def attention(x, weights, name, heads):
    width = x.shape[1] // heads
    q, k, v = (x @ weights[f"{name}.qkv.weight"].T + weights[f"{name}.qkv.bias"]).chunk(3, dim=1)
    results = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width)
        results.append(scores.exp() / scores.exp().sum(1, keepdim=True) @ v[:, part])
    return torch.cat(results, dim=1) @ weights[f"{name}.proj.weight"].T + weights[f"{name}.proj.bias"]


def block(x, weights, name, heads):
    normed = layer_norm(x, weights[f"{name}.norm1.weight"], weights[f"{name}.norm1.bias"])
    x = x + attention(normed, weights, f"{name}.attn", heads)
    normed = layer_norm(x, weights[f"{name}.norm2.weight"], weights[f"{name}.norm2.bias"])
    inner = normed @ weights[f"{name}.mlp.fc1.weight"].T + weights[f"{name}.mlp.fc1.bias"]
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    return x + inner @ weights[f"{name}.mlp.fc2.weight"].T + weights[f"{name}.mlp.fc2.bias"]


def reference_loss(weights, config, images, mask):
    """Loss and predictions (B, N, P*P*C) of normalised images (B, C, H, W) under a mask (B, N), True = hidden."""
    losses, predictions = [], []
    height, width = config["patch_size"]
    for image, hidden in zip(images, mask, strict=True):
        patches = cut(image, height, width)
        count = len(patches)
        kernel = weights["encoder.patch_embed.proj.weight"]
        tokens = patches @ kernel.permute(0, 2, 3, 1).reshape(len(kernel), -1).T
        tokens = tokens + weights["encoder.patch_embed.proj.bias"]
        positions = weights["encoder.pos_embed"][0]
        tokens = tokens + positions[1:]
        shuffle = torch.tensor(sorted(range(count), key=lambda n: bool(hidden[n])))  # visible ones first
        keep = int((~hidden).sum())
        tokens = torch.cat([weights["encoder.cls_token"][0] + positions[:1], tokens[shuffle[:keep]]])
        for layer in range(config["depth"]):
            tokens = block(tokens, weights, f"encoder.blocks.{layer}", config["num_heads"])
        tokens = layer_norm(tokens, weights["encoder.norm.weight"], weights["encoder.norm.bias"])

        tokens = tokens @ weights["decoder_embed.weight"].T + weights["decoder_embed.bias"]
        grid = torch.cat([tokens[1:], weights["mask_token"][0].expand(count - keep, -1)])[shuffle.argsort()]
        tokens = torch.cat([tokens[:1], grid]) + weights["decoder_pos_embed"][0]
        for layer in range(config["decoder_depth"]):
            tokens = block(tokens, weights, f"decoder_blocks.{layer}", config["decoder_heads"])
        tokens = layer_norm(tokens, weights["decoder_norm.weight"], weights["decoder_norm.bias"])
        prediction = (tokens @ weights["decoder_pred.weight"].T + weights["decoder_pred.bias"])[1:]

        target = patches
        if config["norm_pix_loss"]:
            target = (target - target.mean(1, keepdim=True)) / (target.var(1, keepdim=True) + 1e-6).sqrt()
        error = (prediction - target).pow(2).mean(1)
        losses.append((error * hidden).sum() / hidden.sum())
        predictions.append(prediction)
    return torch.stack(losses).mean(), torch.stack(predictions)
