"""What a case is, and what several kinds of it share."""

import numpy as np

Case = dict  # case: its number; what: was tried; lost: why, or None
SIZES = {"image_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "decoder_dim": 16,
         "decoder_depth": 1, "decoder_heads": 2}  # fmt: skip


def flip_bits(content: bytes, generator: np.random.Generator, *, most: int = 8, within: int | None = None) -> bytes:
    changed = bytearray(content)
    for place in generator.integers(min(within or len(content), len(content)), size=generator.integers(1, most + 1)):
        changed[place] ^= 1 << int(generator.integers(8))
    return bytes(changed)
