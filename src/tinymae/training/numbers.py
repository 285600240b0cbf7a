"""Losses and gradient norms on their way from the device to the host, which does not wait for them."""

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from .loop import TrainStep


class SentStep:
    """A step whose numbers are copied to the host, into pinned memory, while both go on.

    Args:
        state: the step.
        scalars: its numbers.
        logged: whether they are the means over all processes, to be shown.
    """

    def __init__(self, state: TrainStep, scalars: dict[str, Tensor], *, logged: bool):
        self.state, self.logged = state, logged
        values = torch.stack([value.float() for value in scalars.values()])
        self.names, self.event = list(scalars), None
        self.values = values.to("cpu", non_blocking=values.is_cuda)
        if values.is_cuda:
            self.event = torch.cuda.Event()
            self.event.record()

    @property
    def arrived(self) -> bool:
        """Whether `read` would not wait."""
        return self.event is None or self.event.query()

    def read(self) -> dict[str, float]:
        """The values; waits for them."""
        if self.event is not None:
            self.event.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))


class StepNumbers:
    """The steps whose numbers have not been read yet, in order.

    Args:
        most: how many they may be; reading then waits for the oldest.
        together: several processes, which must read a step's numbers at the same step: none of them asks whether they
            have arrived, all wait for the step `most` before.
    """

    def __init__(self, *, most: int, together: bool):
        self.most, self.together = most, together
        self.sent: deque[SentStep] = deque()

    def send(self, state: TrainStep, scalars: dict[str, Tensor], *, logged: bool) -> None:
        """Begin to copy a step's numbers."""
        self.sent.append(SentStep(state, scalars, logged=logged))

    def receive(self, *, everything: bool = False) -> Iterator[tuple[TrainStep, dict[str, float], bool]]:
        """(step, its numbers, whether they are to be logged) of those that arrived; or of all, waiting for them."""
        while self.sent:
            oldest = self.sent[0]
            late = everything or len(self.sent) > self.most or oldest.event is None
            if not late and (self.together or not oldest.arrived):
                return
            self.sent.popleft()
            yield oldest.state, oldest.read(), oldest.logged
