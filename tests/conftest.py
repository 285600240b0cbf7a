import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from running import PRETRAIN

import tinymae
from tinymae.evaluation import figures
from tinymae.files import write_atomically

torch.set_num_threads(1)  # tiny models compute faster alone than in threads that wait for each other
SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))


def pytest_collection_finish():
    """Every run collects garbage, which need not look at the thousands of objects of the imports each time."""
    gc.collect()
    gc.freeze()


def find_data(name: str, member: str) -> str:
    """The folder of TINYMAE_DATA, if it holds this data set."""
    folder = os.environ.get("TINYMAE_DATA")
    if not folder or not (Path(folder) / member).exists():
        pytest.skip(f"TINYMAE_DATA is no folder with {name}")
    return folder


@pytest.fixture
def cifar10_dir() -> str:
    """Where the real CIFAR-10 is."""
    return find_data("CIFAR-10", "cifar-10-batches-py")


@pytest.fixture
def mnist_dir() -> str:
    """Where the real MNIST is."""
    return find_data("MNIST", "MNIST")


@pytest.fixture(autouse=True)
def fresh_state():
    """Each test starts as a new process would: seeded, with no Accelerate state left over."""
    torch.manual_seed(0)
    yield
    AcceleratorState._reset_state()
    GradientState._reset_state()
    PartialState._reset_state()


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory) -> Path:
    """The folder of a small pretraining on digits."""
    return tinymae.pretrain(**PRETRAIN, output_dir=tmp_path_factory.mktemp("runs") / "pretrain").folder


@pytest.fixture
def quick_figures(monkeypatch):
    """Bare tiles in place of matplotlib's figures, whose drawing takes longer than training a tiny model."""

    def write(pixels, path) -> Path:
        image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
        write_atomically(path, lambda beside: image.save(beside, format="png"))
        return Path(path)

    def sheet(columns, path, title="", groups=2):
        return write(255 * figures.tile(torch.cat(list(columns.values())), 16), path)

    monkeypatch.setattr(figures, "reconstruction_sheet", sheet)
    monkeypatch.setattr(figures, "grid", lambda images, path, *_: write(255 * figures.tile(images, 16), path))
    monkeypatch.setattr(figures, "training_curves", lambda rows, panels, path, *_: write(np.eye(9), path))
    monkeypatch.setattr(figures, "confusion_matrix", lambda matrix, classes, path, *_: write(matrix, path))


SKIPS = ("grey has none",)  # what may be left out where TINYMAE_NO_SKIPS is set, as in CI


def pytest_sessionfinish(session):
    """Where everything is said to be installed, a test that skips itself for want of something is a failure."""
    if not os.environ.get("TINYMAE_NO_SKIPS"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    for report in reporter.stats.get("skipped", []):
        if not any(reason in str(report.longrepr) for reason in SKIPS):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            print(f"\nskipped: {report.nodeid}: {report.longrepr}")
