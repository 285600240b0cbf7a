"""Several processes of one run: what they agree on, share and leave is what one would."""

import itertools
import re
import signal
import time
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SCRIPTS
from PIL import Image
from running import (
    DIGITS,
    ENCODER,
    FEW,
    QUICK,
    TINY,
    TWO_PHASES,
    assert_close_weights,
    flags,
    group_of_two,
    launch,
    metrics,
    run_in,
    same_files,
    start,
    start_calls,
    tiny_mae,
    without_seconds,
)
from safetensors.torch import load_file

import tinymae
from tinymae import load_dataset
from tinymae.commands.features import map_together, whole_batches
from tinymae.models.classifier import build_classifier
from tinymae.training import run as runs
from tinymae.training.device import create_accelerator

pytestmark = pytest.mark.usefixtures("quick_stages")


def join(log: Path, *processes: BaseProcess) -> tuple[list[int | None], str]:
    """Wait for all: (their exit codes, their output)."""
    for process in processes:
        process.join(timeout=300)
    return [process.exitcode for process in processes], log.read_text()


def run_two(log: Path, command: list[str], **options) -> tuple[list[int | None], str]:
    """The same command as two processes of one run."""
    return join(log, *(start(log, command, **options, **environment) for environment in group_of_two()))


# ---- what they agree on, as each of them sees it


@pytest.mark.parametrize("seconds", [0.004, 0.3, 1.7, 40.0])
def test_processes_agree_on_stopping_within_two_seconds_or_a_step(seconds, tmp_path, monkeypatch):
    """A launcher that sends SIGTERM kills 30 s later, however slow the steps are."""
    now, agreed = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(runs, "gather_object", lambda value: agreed.append(now[0]) or value)
    run = run_in(tmp_path)
    run.next_agreement, run.last_agreement = 1, (0, 0.0)
    for step in range(1, 1001):
        now[0] += seconds
        run.agree_at_times(step, None, False)
    gaps = [later - earlier for earlier, later in itertools.pairwise(agreed)]
    assert max(gaps) <= max(2.0, seconds + 1e-6) and len(agreed) > 1
    assert min(gaps) > 0.5  # each costs a message


def test_what_one_process_is_told_to_do_all_do_and_the_main_one_says_when_to_save(tmp_path, monkeypatch):
    """A machine that is taken away warns its own processes alone."""
    others = [(128 + signal.SIGTERM, False, 7), (None, False, 9)]
    monkeypatch.setattr(runs, "gather_object", lambda own: own + others)
    run = run_in(tmp_path)
    run.next_agreement, run.last_agreement = 1, (0, 0.0)
    assert run.agree_at_times(1, None, True) == (128 + signal.SIGTERM, True)


@pytest.mark.parametrize("main_has", [None, {"step": 3, "minutes": 0.5}])
def test_all_processes_go_on_from_what_the_main_one_has(main_has, tmp_path, monkeypatch):
    """Their disks may hold other files: whoever looked at its own would wait for the others for ever."""
    own = run_in(tmp_path)
    own.checkpoints.save({"model": torch.nn.Linear(2, 2).state_dict(), "step": 9, "minutes": 1.0}, step=9)
    told = []
    monkeypatch.setattr(runs, "agree", lambda value: told.append(value) or main_has)
    other = run_in(tmp_path)
    other.is_main = False
    assert other.load_checkpoint() == main_has and told == [None]
    monkeypatch.setattr(runs, "agree", lambda value: value)
    assert own.load_checkpoint()["step"] == 9


# ---- training


def test_two_processes_make_the_run_of_one_even_when_killed(tmp_path):
    """Both die amid the second phase, which contrasts the images of both; torchrun resumes, as in the README."""
    settings = DIGITS | TINY | {"flip": False, "log_every": 1} | TWO_PHASES
    settings |= {"batch_size": 600, "contrast_batch_size": 600, "views": 2, "epochs": 2, "contrast_epochs": 1}
    words = flags(**settings, checkpoint_minutes=0, output_dir=tmp_path / "two")
    codes, output = run_two(tmp_path / "log", ["pretrain", *words], killed=(signal.SIGKILL, 4))
    assert codes == [-signal.SIGKILL] * 2 and "2 processes on cpu" in output, output
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, SCRIPTS / "pretrain.py"]
    resumed = launch(*torchrun, *words, ACCELERATE_USE_CPU="1")
    output = resumed.communicate()[0]
    assert resumed.returncode == 0 and "2 processes on cpu" in output, output
    assert re.search("resuming from .*step-000000003-", output), output  # the first of the second phase
    tinymae.pretrain(**settings, output_dir=tmp_path / "one")
    assert_close_weights(tmp_path / "one", tmp_path / "two")
    for name in ("loss", "contrastive_loss"):
        one, two = ([row[name] for row in metrics(tmp_path / each) if name in row] for each in ("one", "two"))
        assert two == pytest.approx(one, rel=1e-4)


def test_two_processes_label_what_one_labels(tmp_path):
    """And so do micro-batches: all see the same images, augmented alike, with the same patches left out."""
    settings = DIGITS | ENCODER
    settings |= {"from_scratch": True, "label_fraction": 0.2, "batch_size": 60, "epochs": 2, "eval_every": 2,
                 "unlabelled": 3, "unlabelled_warmup": 0.25, "unlabelled_threshold": 0.1, "flip": False,
                 "trivial_augment": True, "random_erasing": 0.25, "log_every": 1}  # fmt: skip
    codes, output = run_two(tmp_path / "log", ["finetune", *flags(**settings, output_dir=tmp_path / "two")])
    assert codes == [0, 0] and "2 processes on cpu" in output, output
    tinymae.finetune(**settings, output_dir=tmp_path / "one")
    tinymae.finetune(**settings, gradient_accumulation_steps=2, output_dir=tmp_path / "parts")
    for other in ("two", "parts"):
        assert_close_weights(tmp_path / "one", tmp_path / other)
        for name in ("loss", "unlabelled_loss", "unlabelled_kept", "unlabelled_right"):
            one, two = ([row[name] for row in metrics(tmp_path / each) if name in row] for each in ("one", other))
            assert one and two == pytest.approx(one, rel=1e-4), (name, other)


def test_two_processes_find_each_other_when_the_precision_is_chosen_for_them(tmp_path):
    """The processor is asked what it supports before Accelerate starts the processes' group."""
    settings = {"data": "digits", "contrast_epochs": 0, "batch_size": 1000, "epochs": 1, "output_dir": tmp_path / "run"}
    codes, output = run_two(tmp_path / "log", ["pretrain", *flags(**TINY, **settings)])
    assert codes == [0, 0] and "2 processes on cpu" in output, output


def test_two_processes_train_one_thing_after_the_other(tmp_path):
    """A script of several calls, as in the README: the end of a training is not that of the processes' group."""
    calls = [
        ("pretrain", QUICK | {"epochs": 1, "output_dir": tmp_path / "pretrain"}),
        ("finetune", FEW | {"weights": tmp_path / "pretrain", "epochs": 1, "output_dir": tmp_path / "finetune"}),
        ("evaluate", FEW | {"weights": tmp_path / "finetune", "output_dir": tmp_path / "evaluate"}),
    ]
    codes, printed = join(tmp_path / "log", *(start_calls(tmp_path / "log", calls, **one) for one in group_of_two()))
    assert codes == [0, 0], printed
    assert (tmp_path / "evaluate" / "results.json").exists()


NODES = {
    "data": "digits", "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "decoder_dim": 16,
    "decoder_depth": 1, "decoder_heads": 2, "epochs": 4, "contrast_epochs": 0, "batch_size": 256, "flip": False,
    "mixed_precision": "no", "probe_every": 100, "log_every": 1, "log_with": ("tensorboard",),
}  # fmt: skip


def run_nodes(folder: Path, *, killed: tuple[int, int] | None = None, **settings) -> list[int | None]:
    """The exit code on each "machine", whose output folder is on a disk of its own; the second one may be killed."""
    nodes = []
    for node, environment in enumerate(group_of_two(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")):  # as torchrun --nnodes 2
        (folder / f"node{node}").mkdir(parents=True, exist_ok=True)
        command = ["pretrain", *flags(**NODES, **settings, output_dir="run")]
        own = {"folder": folder / f"node{node}", "killed": killed if node else None}
        nodes.append(start(folder / f"node{node}.log", command, **own, **environment))
    return join(folder / "node0.log", *nodes)[0]


def test_two_machines_without_a_shared_disk_go_on_after_one_has_died(tmp_path):
    first, second = run_nodes(tmp_path, killed=(signal.SIGKILL, 6), checkpoint_minutes=0.0)
    output = (tmp_path / "node0.log").read_text()
    assert second == -signal.SIGKILL and first not in (0, None), output  # it does not wait for the dead for ever
    assert any((tmp_path / "node0" / "run" / "checkpoints").iterdir())
    assert not (tmp_path / "node0" / "run" / "results.json").exists()

    assert run_nodes(tmp_path) == [0, 0], (tmp_path / "node0.log").read_text()[-3000:]
    assert "resuming" in (tmp_path / "node0.log").read_text()
    steps = [row["step"] for row in metrics(tmp_path / "node0" / "run") if "loss" in row]
    assert steps == [*range(1, 21)]
    assert not (tmp_path / "node1" / "run" / "model.safetensors").exists()  # the first machine has the results
    alone = tinymae.pretrain(**NODES, output_dir=tmp_path / "alone")
    together, single = (load_file(path / "model.safetensors") for path in (tmp_path / "node0" / "run", alone.folder))
    for name, tensor in single.items():
        assert (together[name] - tensor).abs().max() < 1e-3, name


# ---- features


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 5, 60, 64, 137])
def test_processes_share_the_batches_of_one(count, processes):
    parts = whole_batches(torch.arange(count), 10, processes)
    assert len(parts) == processes and torch.equal(torch.cat(parts), torch.arange(count))
    shared = [batch.tolist() for part in parts for batch in part.split(10) if len(batch)]
    assert shared == [batch.tolist() for batch in torch.arange(count).split(10)]
    sizes = [len(part.split(10)) if len(part) else 0 for part in parts]
    assert max(sizes) - min(sizes) <= 1


class Gathered(Exception):
    """What a process gives to the others."""


class OneOf:
    """An Accelerator as one of several processes sees it, which the others have told `parts`."""

    device = torch.device("cpu")

    def __init__(self, index: int, count: int, parts=None):
        self.process_index, self.num_processes, self.parts = index, count, parts
        self.is_main_process, self.autocast = index == 0, partial(torch.autocast, "cpu", enabled=False)

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        if self.parts is None:
            raise Gathered(part)
        return torch.cat(self.parts)


@pytest.mark.parametrize("size", [30, 100])  # 5 batches, and 2 of which one of three processes has none
def test_each_process_computes_its_part_and_all_have_the_bits_of_one(size):
    model, dataset, seen = tiny_mae(), load_dataset("digits", "val"), []

    def function(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return model.encode_dense(images)

    compute = partial(map_together, function, dataset, batch_size=size)
    with torch.no_grad():
        alone = compute(create_accelerator("no"))
        assert alone.shape == (137, 16, 2, 2) and sum(seen) == 137
        seen.clear()
        parts = []
        for index in range(3):
            with pytest.raises(Gathered) as given:
                compute(OneOf(index, 3))
            parts.append(given.value.args[0])
        assert sum(seen) <= 138  # a process without images looks at one, for the width
        for index in range(3):
            assert torch.equal(compute(OneOf(index, 3, parts)), alone)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_features_are_computed_in_the_precision_that_was_asked_for(precision):
    seen = []
    map_together(
        lambda images: images.flatten(1) + bool(seen.append(torch.is_autocast_enabled("cpu"))),
        load_dataset("digits", "val"), create_accelerator(precision),
    )  # fmt: skip
    assert seen == [precision == "bf16"]


CASES: dict[str, tuple[str, dict, set[str]]] = {
    "linear_probe": ("mae", {}, {"model.safetensors"}),
    "evaluate": ("classifier", {}, {"per_class.csv", "errors.png"}),
    "evaluate an autoencoder": ("mae", {}, {"reconstructions.png"}),
    "embed": ("mae", {"formats": ("npz",)}, {"embeddings.npz"}),
    "predict": ("classifier", {}, {"predictions.csv"}),
    "neighbours": ("mae", {"query": "query.png"}, {"neighbours.csv", "neighbours.png"}),
    "inspect": ("mae", {"k": 5}, {"duplicates.csv", "outliers.csv", "doubtful_labels.csv", "index.html"}),
}


def settings_of(case: str, folder: Path) -> dict:
    """What a command is given, of the files in a folder."""
    kind, further, _ = CASES[case]
    further = {name: folder / value if name == "query" else value for name, value in further.items()}
    return DIGITS | {"data": folder / "few.npz", "weights": folder / kind, "batch_size": 8} | further


@pytest.fixture(scope="module")
def left_by_two(tmp_path_factory):
    """A folder in which two processes have run every command, one after the other; the second has its own output."""
    folder = tmp_path_factory.mktemp("two")
    few, model = load_dataset("digits"), tiny_mae()
    np.savez(folder / "few.npz", images=few.images[:200, 0].numpy(), labels=few.labels[:200].numpy())
    Image.fromarray(few.images[7, 0].numpy()).save(folder / "query.png")
    build_classifier(model, classes=[*"0123456789"]).eval().write_weights(folder / "classifier")
    model.save_pretrained(folder / "mae")
    processes = []
    for output, one in zip(("two", "unused"), group_of_two(), strict=True):
        calls = [
            (case.split()[0], settings_of(case, folder) | {"output_dir": folder / output / case}) for case in CASES
        ]
        processes.append(start_calls(folder / "log", calls, **one))
    codes, printed = join(folder / "log", *processes)
    assert codes == [0, 0] and not (folder / "unused").exists(), printed
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_leave_what_one_leaves(case, left_by_two, tmp_path):
    """Real ones; each computes a half of the features, and only the first writes."""
    one, two = tmp_path / "one", left_by_two / "two" / case
    getattr(tinymae, case.split()[0])(**settings_of(case, left_by_two), output_dir=one)
    assert without_seconds(two) == without_seconds(one)
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    assert same_files(one, two, *CASES[case][2])
    if case == "embed":
        assert pq.read_table(two / "embeddings.parquet").equals(pq.read_table(one / "embeddings.parquet"))
