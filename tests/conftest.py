import functools
import gc
import os
import sys
from pathlib import Path

import pytest

# What takes seconds to import is imported where it is used: the process that hands the tests out needs none of it.
gc.set_threshold(20_000, 20, 20)  # a drawn graph is many more objects than the default expects
SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS.parent / "notebooks")]


@pytest.fixture(autouse=True, scope="module")
def little_to_collect():
    """Every run collects garbage, which need not look each time at what earlier modules have imported and kept."""
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


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny models compute faster alone than in threads that wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_state():
    """Each test starts as a new process would: seeded, with no Accelerate state left over."""
    import torch
    from accelerate.state import AcceleratorState, GradientState, PartialState

    torch.manual_seed(0)
    yield
    AcceleratorState._reset_state()
    GradientState._reset_state()
    PartialState._reset_state()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, for the modules that import `browsing`, which skips them where there is none."""
    from browsing import launched

    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def one_registry():
    """The ONNX exporter parses the sources of its 500 operators once, not for every graph."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture
def classes_folder(tmp_path) -> Path:
    """Fifteen images of cats and as many of dogs, in folders of these names."""
    from pictures import picture

    for number in range(30):
        picture(tmp_path / "pets" / ("cat" if number % 2 else "dog") / f"{number:02}.png", seed=number)
    return tmp_path / "pets"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The package datasets of Hugging Face, which asks no network here."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return datasets


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory) -> Path:
    """The folder of a small pretraining on digits."""
    from running import PRETRAIN

    import tinymae

    return tinymae.pretrain(**PRETRAIN, output_dir=tmp_path_factory.mktemp("runs") / "pretrain").folder


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """The folder of the shortest pretraining, which nothing interrupts."""
    from running import QUICK

    import tinymae

    with pytest.MonkeyPatch.context() as patch:
        draw_tiles(patch)
        return tinymae.pretrain(**QUICK, output_dir=tmp_path_factory.mktemp("runs") / "whole").folder


@pytest.fixture
def quick_figures(monkeypatch):
    """Bare tiles in place of matplotlib's figures."""
    draw_tiles(monkeypatch)


@pytest.fixture
def quick_probes(monkeypatch):
    """Short searches for probes."""
    search_shortly(monkeypatch)


@pytest.fixture(scope="module")
def quick_stages():
    """Bare tiles in place of figures, and short searches for probes, in all tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        draw_tiles(patch)
        search_shortly(patch)
        yield


def search_shortly(patch: pytest.MonkeyPatch) -> None:
    """Let probes choose between two settings."""
    from tinymae.evaluation import probes, segmentation

    patch.setitem(probes.linear_fits.__kwdefaults__, "grid", [0.1, 0.01])
    patch.setitem(probes.fit_mlp.__kwdefaults__, "epochs", 2)
    patch.setitem(segmentation.fit_segmentation.__kwdefaults__, "steps", 100)


def draw_tiles(patch: pytest.MonkeyPatch) -> None:
    """Let figures be bare tiles: to draw them by matplotlib takes longer than training a tiny model."""
    import numpy as np
    import torch
    from PIL import Image

    from tinymae.evaluation import figures
    from tinymae.files import write_atomically

    def write(pixels, path) -> Path:
        image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
        write_atomically(path, lambda beside: image.save(beside, format="png"))
        return Path(path)

    def sheet(columns, path, title, *, channels=None, limits=figures.FULL, groups=4):
        shown = [figures.viewable(column, channels, limits) for column in columns.values()]
        return write(figures.tile(torch.cat(shown), 16), path)

    patch.setattr(figures, "reconstruction_sheet", sheet)
    patch.setattr(figures, "training_curves", lambda rows, panels, path, *_: write(np.eye(9), path))
    patch.setattr(figures, "reliability", lambda bins, path, *_: write(np.eye(9), path))
    patch.setattr(figures, "confusion_matrix", lambda matrix, classes, path, *_: write(matrix, path))


# ---- what may be left out

SKIPS = ("grey has none",)  # where TINYMAE_NO_SKIPS is set, as in CI


def refuse_skip(report):
    """Where everything is said to be installed, a test that skips itself for want of something is a failure."""
    named = any(reason in str(report.longrepr) for reason in SKIPS)
    if os.environ.get("TINYMAE_NO_SKIPS") and report.skipped and not named:
        report.outcome, report.longrepr = "failed", f"left out: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return refuse_skip((yield))
