"""What the benchmarks share: a device's clock, and the rate that its matrix products reach."""

import time

import torch


def synchronise(device: torch.device | str) -> None:
    """Wait for what a GPU still has to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def product_seconds(device: torch.device | str, dtype: torch.dtype, size: int, times: int) -> list[float]:
    """Seconds of each of some products of two square matrices."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(times):
        synchronise(device)
        began = time.perf_counter()
        a @ b
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return seconds
