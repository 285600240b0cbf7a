"""Kills, damage, full disks, hostile images: nothing saved is lost, nothing broken is used."""

import errno
import io
import itertools
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from running import refused
from safetensors import safe_open
from safetensors.torch import load_file

from tinymae import InputError, MaskedAutoencoder, files, load, load_dataset, patchify, random_mask, unpatchify
from tinymae.commands import pretrain
from tinymae.data import fit, images
from tinymae.data.batches import split_batch, step_indices
from tinymae.data.images import look_at_header, read_image
from tinymae.errors import Diverged, ran_out_of_memory
from tinymae.files import lock_folder, read_tensors, write_atomically, write_tensors
from tinymae.training.checkpoints import Checkpoints
from tinymae.training.run import Run


def in_child(work) -> int:
    """Run `work` in a forked process; returns its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr)
            os._exit(1)
    return pid


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def checkpoints_in(folder) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", print)


def state_of(step: int) -> dict:
    return {"model": torch.nn.Linear(64, 64).state_dict(), "step": step}


def test_a_kill_at_any_moment_of_a_save_leaves_a_loadable_state(tmp_path):
    """40 kills at random calls within saves; after each, the next process goes on from the last whole state."""
    state, calls = state_of(0), []
    sys.setprofile(lambda *_: calls.append(0))
    checkpoints_in(tmp_path / "counted").save(state, step=0)
    sys.setprofile(None)
    progress = 0
    for fatal in np.random.default_rng(0).integers(1, 3 * len(calls), 40).tolist():

        def work(fatal=fatal):
            checkpoints, count = checkpoints_in(tmp_path), itertools.count(1)
            saved = checkpoints.load()
            step = saved["step"] if saved else 0
            sys.setprofile(lambda *_: next(count) == fatal and os.kill(os.getpid(), signal.SIGKILL))
            while True:
                step += 1
                checkpoints.save(state | {"step": step}, step=step)

        assert wait(in_child(work)) == -signal.SIGKILL
        saved = checkpoints_in(tmp_path).load()
        if saved is not None:
            assert saved["step"] >= progress and torch.equal(saved["model"]["weight"], state["model"]["weight"])
            progress = saved["step"]
    assert progress > 20  # a kill comes one and a half saves after the one before
    files_left = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert 1 <= len(files_left) <= 3  # two are kept; a kill before the tidying leaves one more


@pytest.mark.parametrize("stage", ["write", "fsync", "replace"])
def test_a_kill_at_each_stage_keeps_the_old_file(stage, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, lambda beside: beside.write_text("old"))

    def die(*_):
        os._exit(7)

    def work():
        if stage != "write":
            monkeypatch.setattr(files.os, stage, die)
        write_atomically(path, lambda beside: (beside.write_text("ne"), die() if stage == "write" else None))

    assert wait(in_child(work)) == 7
    assert path.read_text() == "old"


WRITE_NAMES = """
import sys
from pathlib import Path
from tinymae.files import read_json, read_metrics
from tinymae.training.inputs import changed_names, write_names

class Names(list):
    of_files, names = True, property(list)

write_names(Path(sys.argv[1]), {"train": Names(["\\u00e9.png"])})
print(ascii(changed_names(Path(sys.argv[1]), "train", Names(["\\u00e8.png"]))))
print(ascii([read_json(sys.argv[2]), *read_metrics(sys.argv[2])]))
"""


def test_names_and_json_are_written_and_read_as_utf_8_whatever_the_locale(tmp_path):
    ascii_alone = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    config = tmp_path / "config.json"
    config.write_text('{"label_names": ["café"]}\n', encoding="utf-8")
    command = [sys.executable, "-c", WRITE_NAMES, str(tmp_path), str(config)]
    shown = subprocess.run(command, env=ascii_alone, capture_output=True, text=True, check=True).stdout
    assert (tmp_path / "inputs" / "train.txt").read_bytes() == "é.png\n".encode()
    assert r"1 of train came: \xe8.png, 1 of train went: \xe9.png" in shown
    assert shown.count(r"caf\xe9") == 2


def test_a_full_disk_is_reported_and_the_last_checkpoint_survives(tmp_path):
    def work():
        checkpoints = checkpoints_in(tmp_path)
        checkpoints.save(state_of(1), step=1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # files end here, as on a full disk
        with pytest.raises(InputError, match=r"could not be written .*last good one is .*step-000000001.*Make room"):
            checkpoints.save(state_of(2), step=2)

    assert wait(in_child(work)) == 0
    assert checkpoints_in(tmp_path).load()["step"] == 1
    assert [path.name[:14] for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000001"]


def test_every_flipped_bit_in_weights_is_found(tmp_path):
    path = tmp_path / "model.safetensors"
    state = {"a": torch.randn(30), "b": torch.randn(4, 5).bfloat16(), "step": torch.tensor(3)}
    write_tensors(state, path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in read_tensors(path).items())
    whole = bytearray(path.read_bytes())
    write_tensors(dict(reversed(state.items())), path)
    assert path.read_bytes() == whole  # equal tensors make equal files
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in np.random.default_rng(0).integers(header, len(whole), 100):
        damaged = whole.copy()
        damaged[place] ^= 1 << int(place) % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="model.safetensors is damaged"):
            read_tensors(path)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys):
    checkpoints, state = checkpoints_in(tmp_path), state_of(2)
    checkpoints.save(state_of(1), step=1)
    checkpoints.save(state, step=2)
    newest = checkpoints.files[-1]
    whole = bytearray(newest.read_bytes())
    weights = whole.find(state["model"]["weight"].numpy().tobytes()[:64])
    assert weights > 0
    for damage in (whole[:-500], whole[: weights + 9] + bytes([whole[weights + 9] ^ 4]) + whole[weights + 10 :], b""):
        newest.write_bytes(damage)
        assert checkpoints.load()["step"] == 1
        assert f"{newest.name} is damaged" in capsys.readouterr().out


def test_two_checkpoints_are_kept(tmp_path):
    checkpoints = checkpoints_in(tmp_path)
    for step in range(1, 5):
        checkpoints.save(state_of(step), step=step)
    assert [path.name[:14] for path in checkpoints.files] == ["step-000000003", "step-000000004"]
    assert checkpoints.last == checkpoints.files[-1]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_state_that_is_not_finite_is_not_saved(value, tmp_path):
    checkpoints, state = checkpoints_in(tmp_path), state_of(2)
    optimizer = torch.optim.AdamW([torch.zeros(3, requires_grad=True)])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    checkpoints.save(state_of(1), step=1)
    state |= {"optimizer": optimizer.state_dict(), "ema": [torch.ones(3)]}
    state["optimizer"]["state"][0]["exp_avg"][1] = value
    with pytest.raises(Diverged, match=r"exp_avg is not finite at step 2; last good checkpoint: .*step-000000001-"):
        checkpoints.save(state, step=2)
    assert len(checkpoints.files) == 1 and checkpoints.load()["step"] == 1


def test_a_checkpoint_never_runs_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trapped"),))

    checkpoints = checkpoints_in(tmp_path)
    checkpoints.save(state_of(1), step=1)
    trap = tmp_path / "trap.pt"
    torch.save({"step": 2, "model": Trap()}, trap)
    trap.rename(tmp_path / "checkpoints" / f"step-000000002-{files.file_digest(trap)}.pt")
    with pytest.raises(pickle.UnpicklingError):
        checkpoints.load()
    assert not (tmp_path / "trapped").exists()


def test_a_folder_in_use_is_refused_until_its_process_ends(tmp_path):
    reading, writing = os.pipe()

    def work():
        held = lock_folder(tmp_path)
        os.write(writing, b"!" if held else b"")
        signal.pause()

    pid = in_child(work)
    os.read(reading, 1)
    with pytest.raises(InputError, match="is in use by another process"):
        lock_folder(tmp_path)
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    lock_folder(tmp_path).release()


def test_metrics_cut_short_by_a_kill_are_mended_on_resuming(tmp_path):
    rows = [{"step": step, "epoch": 0.1, "loss": 1.0} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    with Run(tmp_path, Accelerator(cpu=True), arguments={}) as run:
        run.track(None, model=torch.nn.Linear(64, 64))
        run.save_checkpoint(2)
        assert run.load_checkpoint()["step"] == 2 and run.progress.metrics == rows[:2]
    assert (tmp_path / "metrics.jsonl").read_text().endswith("}\n")


def test_metrics_of_an_attempt_without_a_checkpoint_are_not_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.1, "loss": 1.0}\n{"step": 2, "lo')
    with Run(tmp_path, Accelerator(cpu=True), arguments={}) as run:
        assert run.load_checkpoint() is None and run.progress.metrics == []


# ---- images


def save_pictures(folder):
    """One image of each awkward but honest kind."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    rgb = Image.fromarray(generator.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    rgb.save(folder / "jpeg.jpg", quality=90)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("P").save(folder / "palette.png")
    rgb.convert("1").save(folder / "bits.png")
    rgb.save(folder / "webp.webp")
    rgb.save(folder / "bmp.bmp")
    for suffix, kind in (("png", np.uint16), ("pgm", np.int32)):  # both are files of 16 bits
        Image.fromarray(np.full((20, 20), 40_000, dtype=kind)).save(folder / f"16bit_{suffix}.{suffix}")
    clear = Image.new("RGBA", (20, 20), (200, 0, 0, 0))
    clear.save(folder / "alpha.png")
    Image.new("RGB", (1, 1), (10, 20, 30)).save(folder / "tiny.png")
    Image.new("L", (20_000, 3), 77).save(folder / "wide.png")
    return sorted(folder.iterdir())


def test_awkward_pictures_are_converted(tmp_path):
    for path in save_pictures(tmp_path / "images"):
        for channels in (1, 3):
            assert read_image(path, (channels, 16, 12), depth="uint8").shape == (channels, 16, 12), path
    read = {path.stem: read_image(path, (3, 8, 8), depth="uint8") for path in (tmp_path / "images").iterdir()}
    for name in ("16bit_png", "16bit_pgm"):
        assert (read[name] == round(40_000 / 257)).all()  # scaled, not clipped
        path = next((tmp_path / "images").glob(f"{name}.*"))
        assert look_at_header(path, 1) == (1, 20, 20, "uint16")
    assert (read["alpha"] == 255).all()  # what is transparent is white
    assert read["tiny"][:, 4, 4].tolist() == [10, 20, 30] and (read["wide"] == 77).all()


def test_a_rotated_photo_stands_upright(tmp_path):
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white", (0, 0, 8, 4))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    image.save(tmp_path / "photo.png", exif=exif)
    assert read_image(tmp_path / "photo.png", (1, 8, 8), depth="uint8")[0, 0].max() == 0


def test_unreadable_pictures_are_refused_by_name_or_left_out(tmp_path):
    for number in range(30):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
    bad = {"05.png": b"", "11.png": b"no picture at all", "17.png": (tmp_path / "17.png").read_bytes()[:45]}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    left_out = load_dataset(tmp_path, "all", image_size=8, skip_unreadable=True)
    assert set(left_out.skipped) == set(bad) and len(left_out) == 27
    with pytest.raises(InputError, match=r"(05|11|17)\.png cannot be read"):
        load_dataset(tmp_path, "all", image_size=8)
    with Run(tmp_path / "run", Accelerator(cpu=True), arguments={}, datasets={"all": left_out}) as run:
        run.finish({}, [])
    assert (tmp_path / "run" / "skipped.txt").read_text().split() == sorted(bad)


def test_an_image_that_resizing_would_blow_up_is_refused(tmp_path, monkeypatch):
    Image.new("L", (1, 30_000)).save(tmp_path / "line.png")
    with pytest.raises(InputError, match=r"line\.png cannot be read \(1 x 30000 pixels are too narrow for 64 x 64\)"):
        read_image(tmp_path / "line.png", (3, 64, 64), depth="uint8")  # 64 x 1,920,000 pixels, from a file of 100 bytes
    monkeypatch.setattr(fit, "LARGEST", 8 * 800)
    for height, fits in ((100, True), (101, False)):
        Image.new("L", (1, height), 9).save(tmp_path / "line.png")
        if fits:
            assert (read_image(tmp_path / "line.png", (1, 8, 8), depth="uint8") == 9).all()
        else:
            with pytest.raises(InputError, match="1 x 101 pixels are too narrow"):
                read_image(tmp_path / "line.png", (1, 8, 8), depth="uint8")


def test_an_image_of_more_pixels_than_pillow_thinks_safe_is_refused(tmp_path, monkeypatch):
    """A file of 2 kB may say that it has 150 million pixels, and Pillow takes gigabytes for them."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("RGB", (40, 25), "red").save(tmp_path / "fits.png")
    assert read_image(tmp_path / "fits.png", (3, 8, 8), depth="uint8").shape == (3, 8, 8)
    Image.new("RGB", (40, 26)).save(tmp_path / "large.png")
    with pytest.raises(InputError, match=r"large\.png cannot be read \(40 x 26 pixels are more than"):
        read_image(tmp_path / "large.png", (3, 8, 8), depth="uint8")
    Image.new("RGB", (44, 44), "red").save(tmp_path / "photo.jpg")  # which JPEG decodes at half its size
    assert read_image(tmp_path / "photo.jpg", (3, 8, 8), depth="uint8").shape == (3, 8, 8)


def test_no_mutated_picture_crashes_or_hangs(tmp_path):
    """2,000 mutated images: each is read or refused as an InputError."""
    originals = [path.read_bytes() for path in save_pictures(tmp_path / "images") if path.stem != "wide"]
    suffixes = [path.suffix for path in sorted((tmp_path / "images").iterdir()) if path.stem != "wide"]
    generator, outcomes = np.random.default_rng(1), {"read": 0, "refused": 0}
    for number in range(2000):
        which = number % len(originals)
        content = bytearray(originals[which])
        for _ in range(generator.integers(1, 6)):
            content[generator.integers(len(content))] = generator.integers(256)
        if number % 3 == 0:
            del content[generator.integers(len(content)) :]
        path = tmp_path / f"mutant{suffixes[which]}"
        path.write_bytes(content)
        try:
            assert read_image(path, (3, 8, 8), depth="uint8").shape == (3, 8, 8)
            outcomes["read"] += 1
        except InputError as error:
            assert path.name in str(error) and "\n" not in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 200


# ---- properties over all shapes

sides = st.integers(1, 4)


@settings(max_examples=60, deadline=None)
@given(rows=sides, columns=sides, high=sides, wide=sides, channels=st.integers(1, 5), batch=st.integers(1, 4))
def test_patchify_is_undone_for_any_shape(rows, columns, high, wide, channels, batch):
    images = torch.randn(batch, channels, rows * high, columns * wide)
    patches = patchify(images, (high, wide))
    assert patches.shape == (batch, rows * columns, high * wide * channels)
    assert torch.equal(unpatchify(patches, (high, wide), (rows * high, columns * wide)), images)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 4), columns=st.integers(2, 4), patch=st.integers(1, 3), channels=st.integers(1, 4),
    batch=st.integers(1, 5), ratio=st.floats(0.05, 0.95), norm_pix_loss=st.booleans(),
)  # fmt: skip
def test_any_model_trains_encodes_and_reconstructs(rows, columns, patch, channels, batch, ratio, norm_pix_loss):
    arguments = {
        "image_size": (rows * patch, columns * patch), "patch_size": patch, "in_channels": channels,
        "mask_ratio": ratio, "embed_dim": 8, "depth": 1, "num_heads": 2, "decoder_dim": 8, "decoder_depth": 1,
        "decoder_heads": 2, "norm_pix_loss": norm_pix_loss,
    }  # fmt: skip
    count = rows * columns
    possible = 0 < round(ratio * count) < count and not (norm_pix_loss and patch == channels == 1)
    if not possible:
        with pytest.raises(InputError):
            MaskedAutoencoder(**arguments)
        return
    model = MaskedAutoencoder(**arguments)
    images = torch.randint(0, 256, (batch, channels, rows * patch, columns * patch), dtype=torch.uint8)
    output = model(images)
    output.loss.backward()
    assert torch.isfinite(output.loss) and output.reconstruction.shape == images.shape
    assert (output.mask.sum(1) == round(ratio * count)).all()
    assert model.encode(images).shape == (batch, 8)
    assert model.encode_tokens(images, output.mask).shape == (batch, 1 + count - round(ratio * count), 8)
    pictures = model.reconstruct(images).images
    assert pictures.shape == images.shape and 0 <= pictures.min() <= pictures.max() <= 1


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 200), batch=st.integers(1, 50), seed=st.integers(0, 9), start=st.integers(0, 30))
def test_any_data_set_is_seen_whole_and_resumed_anywhere(count, batch, seed, start):
    batch = min(batch, count)
    steps = step_indices(count, batch, seed)
    drawn = [next(steps) for _ in range(start + count // batch)]
    epoch = torch.cat(drawn[: count // batch])
    assert len(epoch.unique()) == len(epoch) == count // batch * batch
    assert torch.equal(next(step_indices(count, batch, seed, start)), drawn[start])


@settings(max_examples=60, deadline=None)
@given(half=st.integers(1, 40), parts=st.integers(1, 6))
def test_any_split_of_a_batch_is_a_partition(half, parts):
    pieces = split_batch(2 * half * parts, parts)
    assert sorted(torch.cat(pieces).tolist()) == list(range(2 * half * parts))
    assert len({len(piece) for piece in pieces}) == 1


@settings(max_examples=100, deadline=None)
@given(batch=st.integers(1, 9), patches=st.integers(2, 80), ratio=st.floats(0.001, 0.999))
def test_any_mask_hides_what_it_says(batch, patches, ratio):
    hidden = round(patches * ratio)
    if not 0 < hidden < patches:
        with pytest.raises(InputError, match="mask_ratio"):
            random_mask(batch, patches, ratio)
    else:
        assert (random_mask(batch, patches, ratio).sum(1) == hidden).all()


def test_released_weights_carry_their_checksum():
    for path in (Path(__file__).parent.parent / "weights").glob("*/model.safetensors"):
        with safe_open(path, "pt") as file:
            assert "sha256" in file.metadata()  # which reading compares
        assert read_tensors(path).keys() == load_file(path).keys()


# ---- memory


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
            Run(tmp_path, Accelerator(cpu=True), arguments={"batch_size": 16}, gradient_checkpointing=saving),
        ):
            raise MemoryError
        told[saving] = str(stop.value)
    assert "--gradient-checkpointing" in told[False] and all("--batch-size" in text for text in told.values())
    assert told[None] == told[True] and "--gradient-checkpointing" not in told[True]


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_memory_that_runs_out_leaves_no_image_and_no_weights_out(error, tmp_path, monkeypatch):
    """--skip-unreadable is for images that are damaged, and another copy of sound weights would not help."""

    def fail(*_, **__):
        raise error

    for number in range(20):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    MaskedAutoencoder(image_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2).save_pretrained(tmp_path / "mae")
    monkeypatch.setattr(images, "decode", fail)
    with pytest.raises(type(error)):
        load_dataset(tmp_path, "all", image_size=8, skip_unreadable=True)
    monkeypatch.setattr(files, "safe_open", fail)
    with pytest.raises(type(error)):
        load(tmp_path / "mae")


def test_a_file_that_claims_more_than_memory_is_unreadable(tmp_path, monkeypatch):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<u1", "fortran_order": False, "shape": (10**7, 10**7, 3)})
    (tmp_path / "huge.npy").write_bytes(header.getvalue() + bytes(100))
    with pytest.raises(images.UnreadableImage, match="huge.npy"):
        read_image(tmp_path / "huge.npy", (3, 8, 8), depth="uint8")
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 80_000_000, 1, 8, 6, 0, 0, 0)  # too wide for Pillow to have a row of it
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "wide.png").write_bytes(png + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    with pytest.raises(images.UnreadableImage, match="80000000 x 1 pixels"):
        read_image(tmp_path / "wide.png", (3, 8, 8), depth="uint8")
    tifffile = pytest.importorskip("tifffile")
    bands = np.zeros((4, 9, 9), np.uint8)
    tifffile.imwrite(tmp_path / "large.tif", bands, photometric="minisblack", planarconfig="separate")
    read_image(tmp_path / "large.tif", (4, 8, 8), depth="uint8")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80)
    with pytest.raises(images.UnreadableImage, match="more than PIL.Image.MAX_IMAGE_PIXELS"):
        read_image(tmp_path / "large.tif", (4, 8, 8), depth="uint8")


def test_memory_that_runs_out_before_there_is_a_run_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrain, "create_model", lambda *_: torch.empty(1 << 60))
    line = refused(capsys, "pretrain", data="digits", batch_size=64, output_dir=tmp_path / "run")
    assert "memory ran out with batch_size 64: repeat the command with --gradient-checkpointing" in line


def test_memory_that_runs_out_in_a_save_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    def fail(*_):
        torch.empty(1 << 60)

    checkpoints = checkpoints_in(tmp_path)
    checkpoints.save(state_of(1), step=1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            checkpoints.save(state_of(2), step=2)
    assert checkpoints.load()["step"] == 1
