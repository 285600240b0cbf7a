import os
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))


@pytest.fixture
def data_dir() -> str:
    """Where the real CIFAR-10 and MNIST are."""
    folder = os.environ.get("TINYMAE_DATA")
    if not folder:
        pytest.skip("TINYMAE_DATA is not set to a folder with CIFAR-10 and MNIST")
    return folder


@pytest.fixture(autouse=True)
def fresh_state():
    """Each test starts as a new process would: seeded, with no Accelerate state left over."""
    torch.manual_seed(0)
    yield
    AcceleratorState._reset_state()
    GradientState._reset_state()
    PartialState._reset_state()
