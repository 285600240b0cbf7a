"""A training step as one CUDA graph: the host launches it whole, instead of a thousand kernels one by one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

WARM_UP = 3  # steps before the recording: kernels are chosen, and the optimiser makes its state, in the first ones


class GraphedStep:
    """A function of tensors that is recorded at its fourth call and from then on replayed.

    What the function does must be a matter of the device alone: nothing in it may wait, draw random numbers or depend
    on a number that the host changes. Its arguments are copied to memory that stays, from which the graph reads; other
    shapes, or other values among them that are no tensors, get a recording of their own.

    Args:
        function: takes tensors and plain values, nested in lists and dictionaries; gives tensors.
        device: the GPU.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device):
        self.function, self.device = function, device
        self.stream = torch.cuda.Stream(device)
        self.recordings: dict[tuple, Recording] = {}

    def __call__(self, *arguments: Any) -> Any:
        """What the function would give, in memory of its own."""
        leaves, structure = tree_flatten(arguments)
        kind = tuple(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        if kind not in self.recordings:
            held = [hold(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            self.recordings[kind] = Recording(partial(self.function, *tree_unflatten(held, structure)), held)
        recording = self.recordings[kind]
        recording.copy_in(leaves)
        recording.calls += 1
        if recording.calls <= WARM_UP:
            here = torch.cuda.current_stream(self.device)
            self.stream.wait_stream(here)
            with torch.cuda.stream(self.stream):
                results = recording.call()
            here.wait_stream(self.stream)
            return copies(results)
        if recording.calls == WARM_UP + 1:
            # Other threads, such as those that read images, may use the device meanwhile.
            with torch.cuda.graph(recording.graph, stream=self.stream, capture_error_mode="thread_local"):
                recording.results = recording.call()
        recording.graph.replay()
        return copies(recording.results)


class Recording:
    """A function bound to its arguments, which stay where they are."""

    def __init__(self, call: Callable[[], Any], held: list[Any]):
        self.call, self.calls = call, 0
        self.held = [leaf for leaf in held if isinstance(leaf, Tensor)]
        self.graph, self.results = torch.cuda.CUDAGraph(), None

    def copy_in(self, leaves: list[Any]) -> None:
        """Put new arguments where the graph reads them."""
        torch._foreach_copy_(self.held, [leaf for leaf in leaves if isinstance(leaf, Tensor)])


def hold(tensor: Tensor) -> Tensor:
    """Memory for another one like it, of which is noted what is noted of this one: that a model normalised it."""
    held = torch.empty_like(tensor)
    vars(held).update(vars(tensor))
    return held


def copies(tensors: Any) -> Any:
    """Nested tensors, copied: the next replay writes over the first ones."""
    leaves, structure = tree_flatten(tensors)
    return tree_unflatten([leaf.clone() for leaf in leaves], structure)
