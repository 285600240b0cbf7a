"""Losses and gradient norms on their way from the device to the host, which does not wait for them."""

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from .loop import TrainStep


class StepNumbers:
    """The steps whose numbers are being copied to the host, into pinned memory, and have not been read yet, in order.

    Args:
        most: how many they may be; reading then waits for the oldest.
        together: several processes, which must read a step's numbers at the same step: none of them asks whether they
            have arrived, all wait for the step `most` before.
    """

    def __init__(self, *, most: int, together: bool):
        self.most, self.together = most, together
        self.sent: deque[tuple[TrainStep, list[str], Tensor, torch.cuda.Event | None, bool]] = deque()

    def send(self, state: TrainStep, scalars: dict[str, Tensor], *, logged: bool) -> None:
        """Begin to copy a step's numbers; `logged` are the means over all processes, to be shown."""
        values, arrival = torch.stack([value.float() for value in scalars.values()]), None
        on_host = values.to("cpu", non_blocking=values.is_cuda)
        if values.is_cuda:
            arrival = torch.cuda.Event()
            arrival.record()
        self.sent.append((state, list(scalars), on_host, arrival, logged))

    def receive(self, *, everything: bool = False) -> Iterator[tuple[TrainStep, dict[str, float], bool]]:
        """(step, its numbers, whether they are to be logged) of those that arrived; or of all, waiting for them."""
        while self.sent:
            state, names, values, arrival, logged = self.sent[0]
            if arrival is not None:
                late = everything or len(self.sent) > self.most
                if not late and (self.together or not arrival.query()):
                    return
                arrival.synchronize()
            self.sent.popleft()
            yield state, dict(zip(names, values.tolist(), strict=True)), logged
