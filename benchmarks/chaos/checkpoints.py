"""Checkpoints that are damaged."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import tinymae
from tinymae.files import digest
from tinymae.training.checkpoints import Checkpoints

from .cases import SIZES, Case, flip_bits


def prepare(place: Path, seed: int) -> Callable[[int], Case]:
    """Of damaged checkpoints none is used: the one before it is, or none."""
    torch.manual_seed(0)
    model = tinymae.MaskedAutoencoder(**SIZES)
    optimizer, said = torch.optim.AdamW(model.parameters()), []
    kept, states = Checkpoints(place / "kept", said.append), {}
    for step in (1, 2):
        model(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)).loss.backward()
        optimizer.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "minutes": 0.5}
        kept.save(state, step=step)
        states[step] = flatten(kept.load())

    def check(number: int) -> Case:
        generator, folder = np.random.default_rng([seed, 5, number]), place / "mutant"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept.folder, folder)
        damaged = Checkpoints(folder, said.append)
        files, ways = damaged.files, []
        spoilt = files[1:] if generator.integers(3) else files
        for path in spoilt:
            whole, way = path.read_bytes(), str(generator.choice(["flipped", "truncated", "zeroed", "longer", "other"]))
            ways.append(way)
            at = int(generator.integers(len(whole)))
            path.write_bytes({
                "flipped": flip_bits(whole, generator), "truncated": whole[:at], "longer": whole + generator.bytes(9),
                "zeroed": whole[:at] + bytes(min(600, len(whole) - at)) + whole[at + 600 :],
                "other": (kept.files[0] if path == files[1] else kept.files[1]).read_bytes(),
            }[way])  # fmt: skip
        untouched = [p.read_bytes() == (kept.folder / p.name).read_bytes() for p in files]  # zeros over zeros
        wanted = 2 if untouched[1] else 1 if untouched[0] else None
        found = damaged.load()
        said.clear()
        lost = None if (found and flatten(found)) == (wanted and states[wanted]) else f"gave {found and found['step']}"
        return {"what": f"{len(spoilt)} checkpoints {' and '.join(ways)}, {wanted} is whole", "lost": lost}

    return check


def flatten(state: object) -> object:
    """Nested tensors as something that == compares bit by bit."""
    if isinstance(state, torch.Tensor):
        return digest({"": state})
    if isinstance(state, dict):
        return {key: flatten(value) for key, value in state.items()}
    return [flatten(value) for value in state] if isinstance(state, list | tuple) else state
