"""A training step as one CUDA graph: the host launches it whole, instead of a thousand kernels one by one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

WARM_UP = 3  # steps before the recording: kernels are chosen, and the optimiser makes its state, in the first ones


class GraphedStep:
    """A function of tensors that is recorded at its fourth call and from then on replayed.

    What the function does must be a matter of the device alone: nothing in it may wait, draw random numbers or depend
    on a number that the host changes. Its arguments are copied to memory that stays, from which the graph reads.

    Args:
        function: takes tensors, and other values that never change, nested in lists and dictionaries; gives tensors.
        device: the GPU.

    Raises RuntimeError if another value changes, or the shape of a tensor.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device):
        self.function, self.device = function, device
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        self.calls = 0
        self.held: list[Any] = []  # the arguments' leaves
        self.results: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """What the function would give, in memory of its own."""
        leaves, structure = tree_flatten(arguments)
        if not self.held:
            self.held = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.copy_in(leaves)
        self.calls += 1
        if self.calls <= WARM_UP:
            here = torch.cuda.current_stream(self.device)
            self.stream.wait_stream(here)
            with torch.cuda.stream(self.stream):
                results = self.function(*tree_unflatten(self.held, structure))
            here.wait_stream(self.stream)
            return copies(results)
        if self.calls == WARM_UP + 1:
            # Other threads, such as those that read images, may use the device meanwhile.
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
                self.results = self.function(*tree_unflatten(self.held, structure))
        self.graph.replay()
        return copies(self.results)

    def copy_in(self, leaves: list[Any]) -> None:
        """Put new arguments where the graph reads them."""
        if len(leaves) != len(self.held):
            raise RuntimeError(f"a step with {len(self.held)} inputs got {len(leaves)}")
        pairs = list(zip(self.held, leaves, strict=True))
        for held, leaf in pairs:
            if isinstance(held, Tensor):
                if held.shape != leaf.shape:
                    raise RuntimeError(f"a step's input changed its shape: {tuple(held.shape)} to {tuple(leaf.shape)}")
            elif held != leaf:
                raise RuntimeError(f"a step's input changed from {held} to {leaf}: a CUDA graph keeps the first")
        into, what = zip(*(pair for pair in pairs if isinstance(pair[0], Tensor)), strict=True)
        torch._foreach_copy_(list(into), list(what))


def copies(tensors: Any) -> Any:
    """Nested tensors, copied: the next replay writes over the first ones."""
    leaves, structure = tree_flatten(tensors)
    return tree_unflatten([leaf.clone() for leaf in leaves], structure)
