"""Memory that runs out: told from other errors, and one line with a remedy."""

import errno

import pytest
import torch
from pictures import pixels
from running import QUICK, TWO_PHASES, one_line, refused, run_in, save_images, tiny_mae

import tinymae
from tinymae import InputError, files, load, load_dataset
from tinymae.commands import pretrain
from tinymae.data import images
from tinymae.errors import ran_out_of_memory


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:125] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("could not create a primitive"), True),  # oneDNN, of memory for what it compiles
        (RuntimeError("could not create a primitive descriptor for a matmul primitive"), False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (MemoryError(), True),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(error, wanted):
    assert ran_out_of_memory(error) is wanted


def test_the_remedies_for_memory_are_those_that_a_command_has(tmp_path):
    told = {}
    for saving in (None, False, True):
        with (
            pytest.raises(InputError, match="memory ran out with batch_size 16: ") as stop,
            run_in(tmp_path, arguments={"batch_size": 16}, gradient_checkpointing=saving),
        ):
            raise MemoryError
        told[saving] = str(stop.value)
    assert "--gradient-checkpointing" in told[False] and all("--batch-size" in text for text in told.values())
    assert told[None] == told[True] and "--gradient-checkpointing" not in told[True]


def test_memory_that_runs_out_before_there_is_a_run_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrain, "create_model", lambda *_: torch.empty(1 << 60))
    line = refused(capsys, "pretrain", data="digits", batch_size=64, output_dir=tmp_path / "run")
    assert "memory ran out with batch_size 64: repeat the command with --gradient-checkpointing" in line


def test_memory_that_runs_out_is_one_line_with_a_remedy_and_the_remedy_resumes(tmp_path, monkeypatch, quick_figures):
    draw_inputs = pretrain.draw_inputs

    def fail(settings, phase, model, batch, draws, progress):
        if draws.step == 3 and not settings.gradient_checkpointing:
            torch.empty(1 << 60)  # what a CPU without the memory says
        return draw_inputs(settings, phase, model, batch, draws, progress)

    monkeypatch.setattr(pretrain, "draw_inputs", fail)
    with one_line("memory ran out with batch_size 16: repeat .* --gradient-checkpointing"):
        tinymae.pretrain(**QUICK, output_dir=tmp_path, checkpoint_minutes=0)
    assert tinymae.pretrain(**QUICK, output_dir=tmp_path, gradient_checkpointing=True).results["steps"] == 8


def test_the_batch_size_to_make_smaller_is_that_of_the_phase(tmp_path, monkeypatch, quick_figures):
    draw_inputs = pretrain.draw_inputs

    def fail(settings, phase, *others):
        if phase.views > 1:
            torch.empty(1 << 60)
        return draw_inputs(settings, phase, *others)

    monkeypatch.setattr(pretrain, "draw_inputs", fail)
    settings = QUICK | TWO_PHASES | {"batch_size": None, "contrast_batch_size": None}
    with pytest.raises(InputError, match=r"with contrast_batch_size 64: .* a smaller --contrast-batch-size in"):
        tinymae.pretrain(**settings, output_dir=tmp_path)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_memory_that_runs_out_leaves_no_image_and_no_weights_out(error, tmp_path, monkeypatch):
    """--skip-unreadable is for images that are damaged, and another copy of sound weights would not help."""

    def fail(*_, **__):
        raise error

    save_images(tmp_path, pixels(20, 8, 8, 3))
    tiny_mae().save_pretrained(tmp_path / "mae")
    monkeypatch.setattr(images, "decode", fail)
    with pytest.raises(type(error)):
        load_dataset(tmp_path, "all", image_size=8, skip_unreadable=True)
    monkeypatch.setattr(files, "safe_open", fail)
    with pytest.raises(type(error)):
        load(tmp_path / "mae")
