"""What goes wrong around a library, over and over: kills, full disks, jumping clocks, damaged and hostile files.

    python benchmarks/chaos.py --minutes 20                       # all parts, which divide the time among them
    python benchmarks/chaos.py --minutes 5 --only kills --seed 7
    python benchmarks/chaos.py --minutes 1 --only images --first 1234    # a case that the JSON names, again

A case is lost if a repeated command does not end in the weights of an undisturbed run, if an error is not one line that
the library meant to say, or if a damaged file is used. Prints a table and saves JSON; exits with 1 if any case is lost.
"""

import argparse
import builtins
import copy
import errno
import io
import itertools
import json
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tqdm import tqdm

import tinymae
from tinymae import InputError
from tinymae.commands import cli
from tinymae.data.images import read_image
from tinymae.files import digest, write_json
from tinymae.models.classifier import build_classifier
from tinymae.models.conv import ConvAutoencoder
from tinymae.models.weights import save_autoencoder, save_classifier
from tinymae.training.checkpoints import Checkpoints
from tinymae.training.clock import Stopwatch
from tinymae.training.run import Run

# Processes that need not import torch again: they are forked from one that has.
PROCESSES = multiprocessing.get_context("forkserver")
PRELOAD = ["tinymae.commands.pretrain", "tinymae.commands.finetune", "torch.utils.tensorboard", "torchinfo", "tinymae",
           "matplotlib.backends.backend_agg", "sklearn.datasets", "safetensors.torch"]  # fmt: skip
COMMON = "--data digits --seed 1 --mixed-precision no --no-flip --checkpoint-minutes 0 --log-every 1 --batch-size 256"
COMMANDS = {
    "pretrain": f"pretrain {COMMON} --patch-size 4 --embed-dim 16 --depth 1 --num-heads 2 --decoder-dim 16 "
    "--decoder-depth 1 --mask-ratio 0.5 --epochs 3 --contrast-epochs 2 --views 2 --contrast-batch-size 512 "
    "--contrast-crop pad --optimizer adamw --probe-every 1",
    "finetune": f"finetune {COMMON} --epochs 3 --eval-every 1",
}
DAY = 86400.0
Case = dict  # case: its number; what: was tried; lost: why, or None
SIZES = {"image_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "decoder_dim": 16,
         "decoder_depth": 1, "decoder_heads": 2}  # fmt: skip


class TooSlow(BaseException):
    """Not an Exception, which the library might take for a file's fault."""


def work(log: Path, words: list[str], environment: dict[str, str], disturb: Callable | None, arguments: tuple) -> None:
    """A command as its process runs it, after `disturb` has patched that process."""
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    if disturb:
        disturb(*arguments)
    cli.main(words)


class Runs:
    """Commands in processes of their own, and the weights in which they must end."""

    def __init__(self, place: Path):
        self.place, self.folder, self.log = place, place / "run", place / "log"
        self.references: dict[tuple[str, int], Path] = {}
        self.seconds: dict[tuple[str, int], float] = {}

    def start(self, name: str, folder: Path, *, count: int = 1, disturb: Callable | None = None, arguments: tuple = ()):
        """The processes of one run."""
        words = [*COMMANDS[name].split(), "--output-dir", str(folder)]
        if name == "finetune":
            words += ["--weights", str(self.reference("pretrain"))]
        self.log.unlink(missing_ok=True)
        group = [{}] if count == 1 else [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        if count > 1:  # what torch.distributed.run sets
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = str(probe.getsockname()[1])
            shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            group = [own | shared | {"ACCELERATE_USE_CPU": "1"} for own in group]
        processes = [PROCESSES.Process(target=work, args=(self.log, words, own, disturb, arguments)) for own in group]
        for process in processes:
            process.start()
        return processes

    def finish(self, processes, *, patience: float = 180) -> set[int | None]:
        """Their exit codes. Once one has failed, the others are killed soon, as torch.distributed.run does."""
        until = time.monotonic() + patience
        while any(process.is_alive() for process in processes) and time.monotonic() < until:
            if any(process.exitcode for process in processes):
                until = min(until, time.monotonic() + 3)
            time.sleep(0.01)
        codes = {process.exitcode for process in processes}  # None: still going
        for process in processes:
            process.kill()
            process.join()
        return codes

    def reference(self, name: str, count: int = 1) -> Path:
        """The folder of an undisturbed run."""
        if (name, count) not in self.references:
            folder = self.place / f"reference-{name}-{count}"
            if name == "finetune":
                self.reference("pretrain")
            began = time.monotonic()
            if self.finish(self.start(name, folder, count=count)) != {0}:
                raise RuntimeError(f"the undisturbed {name} failed:\n{self.log.read_text()[-3000:]}")
            self.seconds[name, count], self.references[name, count] = time.monotonic() - began, folder
        return self.references[name, count]

    def fresh(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.unlink(missing_ok=True)
        return self.folder

    def compare(self, name: str, count: int = 1) -> str | None:
        """Why the run's weights are not those of the undisturbed one, or None."""
        paths = [folder / "model.safetensors" for folder in (self.reference(name, count), self.folder)]
        if not paths[1].exists() or paths[0].read_bytes() != paths[1].read_bytes():
            return "other weights than the undisturbed run's"
        if not (self.folder / "results.json").exists():
            return "no results.json"
        one, many = load_file(self.reference(name) / "model.safetensors"), load_file(paths[1])
        # The keys' bias has no gradient but rounding noise.
        far = [key for key in one if "qkv.bias" not in key and (one[key] - many[key]).abs().max() > 1e-5]
        return f"{far} are over 1e-5 from those of one process" if far else None

    def repeat(self, name: str, count: int = 1) -> str | None:
        """The same command without a disturbance: why it does not end in the reference weights, or None."""
        codes = self.finish(self.start(name, self.folder, count=count))
        if codes != {0}:
            return f"the repeated command ended with {codes}: {self.log.read_text()[-1500:]}"
        return self.compare(name, count)

    def judge(self, codes: set[int | None]) -> str | None:
        """Why a disturbed run did not end as it should: well, or with one line that says what is wrong."""
        output = self.log.read_text()
        meant = codes == {2} and output.count(": error: ") == 1  # TensorBoard's thread may print what it met
        return None if codes == {0} or meant else f"ended with {codes}: {output[-1500:]}"


def kills(runs: Runs, seed: int, number: int) -> Case:
    """SIGKILL at random moments, up to three times, then the same command to its end."""
    generator = np.random.default_rng([seed, 0, number])
    name, count = ("pretrain", "finetune")[(number + number // 4) % 2], 2 if number % 4 == 1 else 1
    runs.reference(name, count)
    runs.fresh()
    moments = generator.uniform(0, runs.seconds[name, count], generator.integers(1, 4)).tolist()
    killed = 0
    for moment in moments:
        processes = runs.start(name, runs.folder, count=count)
        time.sleep(moment)
        victims = [processes, processes[:1], processes[-1:]][generator.integers(3)]
        killed += any(process.is_alive() for process in victims)
        for process in victims:
            process.kill()
        runs.finish(processes)
    what = f"{name}, {count} processes, killed after {', '.join(f'{moment:.2f}' for moment in moments)} s"
    return {"what": what, "kills": killed, "lost": runs.repeat(name, count)}


def break_disk(kind: str, number: int, lasting: bool, folder: Path) -> None:
    """In a child: calls of one kind fail at the n-th, and with `lasting` ever after."""
    calls = itertools.count(1)

    def wrap(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def call(*arguments, **keywords):
            if name == "open":
                mode = keywords.get("mode", arguments[1] if len(arguments) > 1 else "r")
                if not set("wax+") & set(mode) or not str(arguments[0]).startswith(str(folder)):
                    return original(*arguments, **keywords)
            call_number = next(calls)
            if call_number == number or (lasting and call_number > number):
                if name == "save":  # as torch's own writer says it
                    Path(arguments[1]).write_bytes(b"PK")
                    raise RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments, **keywords)

        setattr(owner, name, call)

    for owner, name in {"fsync": [(os, "fsync")], "replace": [(os, "replace")], "save": [(torch, "save")],
                        "write": [(Path, "write_text"), (Path, "write_bytes")],
                        "open": [(builtins, "open"), (io, "open")], "mkdir": [(os, "mkdir")]}[kind]:  # fmt: skip
        wrap(owner, name)


def disk(runs: Runs, seed: int, number: int) -> Case:
    """Writes that fail, obstacles in a file's place, a folder deleted under the run; then the same command again."""
    generator = np.random.default_rng([seed, 1, number])
    name = ("pretrain", "finetune")[generator.integers(2)]
    runs.reference(name)
    folder = runs.fresh()
    trouble = generator.choice(["call", "call", "call", "obstacle", "deleted"])
    if trouble == "call":
        kind = str(generator.choice(["fsync", "replace", "save", "write", "open", "mkdir"]))
        fatal, lasting = int(generator.integers(1, 40)), bool(generator.integers(2))  # about as many as a run has
        what = f"{name}: {kind} {fatal} fails{' and all later ones' if lasting else ''}"
        arguments = (kind, fatal, lasting, folder)
        codes = runs.finish(runs.start(name, folder, disturb=break_disk, arguments=arguments))
    elif trouble == "obstacle":
        files = [
            "args.json",
            "metrics.jsonl",
            "model.safetensors",
            "config.json",
            "results.json",
            "curves.png",
            ".lock",
        ]
        place = str(generator.choice([*files, "", "checkpoints", "tensorboard"]))
        what = f"{name}: {'a folder' if place in files else 'a file'} stands where {place or 'its folder'} should"
        folder.parent.mkdir(parents=True, exist_ok=True)
        (folder / place).mkdir(parents=True) if place in files else None
        if place not in files:
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_text("in the way")
        codes = runs.finish(runs.start(name, folder))
        obstacle = folder / place
        obstacle.unlink() if obstacle.is_file() else shutil.rmtree(obstacle, ignore_errors=True)
    else:
        moment = generator.uniform(0, runs.seconds[name, 1])
        what = f"{name}: its folder is deleted after {moment:.2f} s"
        processes = runs.start(name, folder)
        time.sleep(moment)
        shutil.rmtree(folder, ignore_errors=True)
        codes = runs.finish(processes)
    unclear = runs.judge(codes)
    return {"what": what, "ended": sorted(map(str, codes)), "lost": unclear or runs.repeat(name)}


def bend_clock(jumps: dict[int, float | None]) -> None:
    """In a child: time.monotonic jumps by so many seconds in these steps, or stands still from there (None)."""
    real, report, offset = time.monotonic, Run.report, [0.0]
    still: list[float] = []

    def now() -> float:
        return still[0] if still else real() + offset[0]

    def jumping(run, state):
        jump = jumps.get(state.step, 0.0)
        still[:] = still or [now()] if jump is None else []
        offset[0] += jump or 0.0
        report(run, state)

    time.monotonic, Run.report = now, jumping
    Stopwatch.__init__.__kwdefaults__["now"] = now


def clock(runs: Runs, seed: int, number: int) -> Case:
    """Jumps of the clock by a day, to and fro, or a clock that stands still for some steps."""
    generator = np.random.default_rng([seed, 2, number])
    name = ("pretrain", "finetune")[number % 2]
    runs.reference(name)
    steps = generator.integers(1, 10, generator.integers(1, 6)).tolist()
    jumps = {step: (DAY, -DAY, None)[generator.integers(3)] for step in steps}
    codes = runs.finish(runs.start(name, runs.fresh(), disturb=bend_clock, arguments=(jumps,)))
    lost = runs.compare(name) if codes == {0} else f"ended with {codes}: {runs.log.read_text()[-1500:]}"
    return {"what": f"{name}, jumps after steps {jumps}", "lost": lost}


# ---- files, within one process


def flip_bits(content: bytes, generator: np.random.Generator, *, most: int = 8, within: int | None = None) -> bytes:
    changed = bytearray(content)
    for place in generator.integers(min(within or len(content), len(content)), size=generator.integers(1, most + 1)):
        changed[place] ^= 1 << int(generator.integers(8))
    return bytes(changed)


def save_originals(folder: Path) -> list[Path]:
    """Whole images of all formats and modes."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 18, 3), dtype=np.uint8)
    rgb = Image.fromarray(pixels)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    clear = rgb.convert("RGBA")
    clear.putalpha(rgb.convert("L"))
    frames = [Image.fromarray(np.roll(pixels, shift, 0)) for shift in range(3)]
    several = {"save_all": True, "append_images": frames[1:]}
    plain = {mode: rgb.convert(mode) for mode in ("RGB", "L", "P", "1", "CMYK", "F")}
    kinds = plain | {"I;16": deep, "RGBA": clear, "LA": clear.convert("LA")}
    for suffix, modes in {"png": "RGB L P 1 I;16 RGBA LA", "jpg": "RGB L CMYK", "bmp": "RGB L P 1", "gif": "L P 1",
                          "tif": "RGB L P 1 CMYK F I;16 RGBA", "webp": "RGB RGBA", "ppm": "RGB", "pgm": "L I;16",
                          "tga": "RGB L P RGBA"}.items():  # fmt: skip
        for mode in modes.split():
            kinds[mode].save(folder / f"{mode.replace(';', '')}.{suffix}")
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        rgb.save(folder / f"{compression}.tif", compression=compression)
    for suffix in ("gif", "tif", "webp", "png"):
        frames[0].save(folder / f"frames.{suffix}", **several)
    rgb.convert("P").save(folder / "transparent.png", transparency=3)
    rgb.convert("P").save(folder / "transparent.gif", transparency=3)
    rgb.save(folder / "progressive.jpg", progressive=True)
    rgb.save(folder / "rle.tga", compression="tga_rle")
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    return sorted(folder.iterdir())


def mutate_image(content: bytes, way: str, generator: np.random.Generator) -> bytes:
    at = int(generator.integers(len(content)))
    if way == "truncated":
        return content[:at]
    if way == "flipped":
        return flip_bits(content, generator, within=(None, 64)[generator.integers(2)])
    if way == "lying":
        values = [0, 1, 255, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 30_000]
        field = struct.pack(f"{'<>'[generator.integers(2)]}I", values[generator.integers(len(values))])
        at, size = int(generator.integers(min(80, len(content)))), (1, 2, 4)[generator.integers(3)]
        changed = content[:at] + (field[:size] if generator.integers(2) else field[-size:]) + content[at + size :]
        if changed[12:16] == b"IHDR":  # else its checksum would tell
            changed = changed[:29] + struct.pack(">I", zlib.crc32(changed[12:29])) + changed[33:]
        return changed
    if way == "spliced":
        length = int(generator.integers(1, 40))
        return content[:at] + content[at : at + length] * int(generator.integers(0, 4)) + content[at + length :]
    return b"" if way == "empty" else content[: int(generator.integers(2, 16))] + generator.bytes(300)


def images(place: Path, seed: int) -> Callable[[int], Case]:
    """read_image gives pixels or an InputError that names the file, soon."""
    originals = save_originals(place)
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TooSlow()))
    ways = ["untouched", "truncated", "flipped", "lying", "spliced", "empty", "noise", "folder", "link", "renamed"]
    rates = [0.02, 0.2, 0.26, 0.26, 0.16, 0.01, 0.05, 0.01, 0.01, 0.02]

    def check(number: int) -> Case:
        generator = np.random.default_rng([seed, 3, number])
        original, way = originals[generator.integers(len(originals))], str(generator.choice(ways, p=rates))
        path, what, lost = place / f"mutant{number}{original.suffix}", f"{original.name} {way}", None
        if way == "folder":
            path.mkdir()
        elif way == "link":
            path.symlink_to(place / "nothing")
        elif way in ("untouched", "renamed"):
            path = path.with_suffix(path.suffix if way == "untouched" else ".jpg")
            path.write_bytes(original.read_bytes())
        else:
            path.write_bytes(mutate_image(original.read_bytes(), way, generator))
        began, channels = time.monotonic(), int(generator.choice([1, 3]))
        try:
            signal.alarm(5)
            pixels = read_image(path, (channels, 16, 12))
            if pixels.dtype != torch.uint8 or pixels.shape != (channels, 16, 12):
                lost = f"gave {pixels.dtype} {tuple(pixels.shape)}"
        except InputError as error:
            if str(path) not in str(error) or way in ("untouched", "renamed"):
                lost = f"said {error}"
        except (Exception, TooSlow) as error:
            lost = f"raised {error!r}: {traceback.format_exc()[-600:]}"
        signal.alarm(0)
        if time.monotonic() - began > 5:
            lost = lost or f"took {time.monotonic() - began:.1f} s"
        path.rmdir() if way == "folder" else path.unlink()
        return {"what": what, "lost": lost}

    return check


def save_models(place: Path) -> list[Path]:
    """A folder of each kind of weights."""
    torch.manual_seed(0)
    mae = tinymae.MaskedAutoencoder(**SIZES)
    conv = ConvAutoencoder(image_size=8, width=8, latent_dim=4)
    save_autoencoder(mae, place / "mae")
    save_autoencoder(conv, place / "conv_ae")
    save_classifier(build_classifier(mae, classes=["cat", "dog"], pool="avg"), place / "vit_classifier")
    save_classifier(build_classifier(conv, classes=["cat", "dog"]), place / "conv_classifier")
    tinymae.to_transformers(build_classifier(mae, classes=["cat", "dog"], pool="cls"), place / "hf_classifier")
    return sorted(place.iterdir())


def mutate_config(path: Path, generator: np.random.Generator) -> str:
    """Change a JSON file: a value of another type or size, a key more or less, or its bytes."""
    values = [None, True, "two\nlines", "", -1, 0, 1, 2, 3, 7, 12, 64, 0.5, 1e9, 10**9, 10**30, float("nan"), [], {},
              [8, "x"], [-1, -1], [8, 8], "avg", {"a": 1}, [[]], "MaskedAutoencoder", "vit_tiny"]  # fmt: skip
    way = str(generator.choice(["value", "value", "value", "gone", "extra", "flipped", "truncated"]))
    if way in ("flipped", "truncated"):
        whole = path.read_bytes()
        cut = int(generator.integers(len(whole)))
        path.write_bytes(flip_bits(whole, generator) if way == "flipped" else whole[:cut])
        return f"{path.name} {way}"
    content = inner = json.loads(path.read_text())
    key = str(generator.choice(sorted(inner)))
    while isinstance(inner[key], dict) and inner[key] and generator.integers(5):
        inner = inner[key]
        key = str(generator.choice(sorted(inner)))
    value = copy.deepcopy(values[generator.integers(len(values))])
    if way == "gone":
        del inner[key]
    else:
        extras = ["checkpoint_path", "pretrained", "self", "device", "a\nkey", "depth", "encoder"]
        key = key if way == "value" else str(generator.choice(extras))
        inner[key] = value
    path.write_text(json.dumps(content))
    return f"{path.name} {key!r} {way}" + (f": {value!r}" if way != "gone" else "")


def mutate_tensors(path: Path, others: list[Path], generator: np.random.Generator) -> str:
    """Change a safetensors file: its bits, its length, the order of its bytes or of its names; or take another's."""
    whole = path.read_bytes()
    start, at = 8 + int.from_bytes(whole[:8], "little"), int(generator.integers(len(whole)))
    way = str(generator.choice(["flipped", "flipped in header", "truncated", "shuffled", "swapped", "another's"]))
    if way == "shuffled":
        body = np.frombuffer(whole[start:], np.uint8).copy()
        generator.shuffle(body)
        whole = whole[:start] + body.tobytes()
    elif way == "swapped":
        header = json.loads(whole[8:start])
        one, two = (
            str(name) for name in generator.choice([n for n in header if n != "__metadata__"], 2, replace=False)
        )
        header[one], header[two] = header[two], header[one]
        whole = whole[:8] + json.dumps(header, separators=(",", ":")).encode().ljust(start - 8) + whole[start:]
    elif way == "another's":
        whole = (others[generator.integers(len(others))] / "model.safetensors").read_bytes()
    else:
        flipped = flip_bits(whole, generator, within=start if way == "flipped in header" else None)
        whole = whole[:at] if way == "truncated" else flipped
    path.write_bytes(whole)
    return f"{path.name} {way}"


def weights(place: Path, seed: int) -> Callable[[int], Case]:
    """tinymae.load gives the tensors that were saved, in a model that works, or an InputError on one line."""
    folders, asked = save_models(place), []

    def refuse(*arguments, **_):
        asked.append(str(arguments))
        raise OSError("the network was asked")

    for owner, name in ((socket.socket, "connect"), (socket, "create_connection"), (socket, "getaddrinfo")):
        setattr(owner, name, refuse)
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    known = {}
    for folder in folders:
        model = tinymae.load(folder)
        model(images if isinstance(model, tinymae.MaskedAutoencoder) else images.float())
        known[folder] = digest(model.state_dict())

    def check(number: int) -> Case:
        generator = np.random.default_rng([seed, 4, number])
        source, folder, lost = folders[generator.integers(len(folders))], place / "mutant", None
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        others = [each for each in folders if each != source]
        files = sorted(path for path in folder.glob("*.json"))
        if generator.integers(5) < 2:
            changed = mutate_tensors(folder / "model.safetensors", others, generator)
        else:
            changed = mutate_config(files[generator.integers(len(files))], generator)
        what, before = f"{source.name}: {changed}", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            model = tinymae.load(folder)
            if digest(model.state_dict()) != known[source] and "safetensors" in changed:
                # A damage that also removes the checksum's name makes a file of another writer, who gives none.
                with safe_open(folder / "model.safetensors", "pt") as file:
                    lost = "gave a model with other tensors" if "sha256" in (file.metadata() or {}) else None
        except InputError as error:
            lost = f"said {str(error)!r}" if "\n" in str(error) else None
        except Exception as error:
            lost = f"raised {error!r}: {traceback.format_exc()[-900:]}"
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        if growth > 500:
            lost = lost or f"took {growth:.0f} MB"
        if asked:
            lost = f"asked the network: {asked.pop()}"
        return {"what": what, "lost": lost}

    return check


def checkpoints(place: Path, seed: int) -> Callable[[int], Case]:
    """Of damaged checkpoints none is used: the one before it is, or none."""
    torch.manual_seed(0)
    model = tinymae.MaskedAutoencoder(**SIZES)
    optimizer, said = torch.optim.AdamW(model.parameters()), []
    kept, states = Checkpoints(place / "kept", said.append), {}
    for step in (1, 2):
        model(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)).loss.backward()
        optimizer.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "minutes": 0.5}
        kept.save(state, step=step)
        states[step] = flatten(kept.load())

    def check(number: int) -> Case:
        generator, folder = np.random.default_rng([seed, 5, number]), place / "mutant"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept.folder, folder)
        damaged = Checkpoints(folder, said.append)
        files, ways = damaged.files, []
        spoilt = files[1:] if generator.integers(3) else files
        for path in spoilt:
            whole, way = path.read_bytes(), str(generator.choice(["flipped", "truncated", "zeroed", "longer", "other"]))
            ways.append(way)
            at = int(generator.integers(len(whole)))
            path.write_bytes({
                "flipped": flip_bits(whole, generator), "truncated": whole[:at], "longer": whole + generator.bytes(9),
                "zeroed": whole[:at] + bytes(min(600, len(whole) - at)) + whole[at + 600 :],
                "other": (kept.files[0] if path == files[1] else kept.files[1]).read_bytes(),
            }[way])  # fmt: skip
        untouched = [p.read_bytes() == (kept.folder / p.name).read_bytes() for p in files]  # zeros over zeros
        wanted = 2 if untouched[1] else 1 if untouched[0] else None
        found = damaged.load()
        said.clear()
        lost = None if (found and flatten(found)) == (wanted and states[wanted]) else f"gave {found and found['step']}"
        return {"what": f"{len(spoilt)} checkpoints {' and '.join(ways)}, {wanted} is whole", "lost": lost}

    return check


def flatten(state: object) -> object:
    """Nested tensors as something that == compares bit by bit."""
    if isinstance(state, torch.Tensor):
        return digest({"": state})
    if isinstance(state, dict):
        return {key: flatten(value) for key, value in state.items()}
    return [flatten(value) for value in state] if isinstance(state, list | tuple) else state


# ---- all parts

RUN_PARTS = {"kills": kills, "disk": disk, "clock": clock}
FILE_PARTS = {"images": images, "weights": weights, "checkpoints": checkpoints}


def send_cases(pipe, part: str, place: Path, seed: int, first: int, until: float) -> None:
    """In a child: a part about files, case by case."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff says much
    torch.set_num_threads(1)
    place.mkdir()
    check = FILE_PARTS[part](place, seed)
    for number in itertools.count(first):
        if time.monotonic() > until:
            return
        try:
            pipe.send({"case": number} | check(number))
        except Exception as error:
            pipe.send({"case": number, "what": "?", "lost": f"{error!r}: {traceback.format_exc()[-900:]}"})


def file_cases(part: str, place: Path, seed: int, number: int, until: float) -> Iterator[Case]:
    """The cases of a part about files, from a child that may crash or hang; then the next child goes on."""
    for attempt in itertools.count():
        receiving, sending = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(
            target=send_cases, args=(sending, part, place / f"{part}{attempt}", seed, number, until)
        )
        process.start()
        sending.close()
        try:
            while receiving.poll(60):
                case = receiving.recv()
                number = case["case"] + 1
                yield case
        except EOFError:
            process.join()
        hung = process.is_alive()
        process.kill()
        process.join()
        if not hung and process.exitcode == 0:
            return
        yield {"case": number, "what": "?", "lost": "hangs" if hung else f"the process ended with {process.exitcode}"}
        number += 1
        if time.monotonic() > until or attempt > 20:
            return


def run_cases(part: str, runs: Runs, seed: int, first: int, until: float) -> Iterator[Case]:
    """The cases of a part about runs."""
    for number in itertools.count(first):
        if time.monotonic() > until:
            return
        yield {"case": number} | RUN_PARTS[part](runs, seed, number)


def warm_up() -> None:
    """Start the server of processes, which takes the time of its imports."""
    process = PROCESSES.Process(target=time.sleep, args=(0,))
    process.start()
    process.join()


def main() -> int:
    names = [*RUN_PARTS, *FILE_PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="in all")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these parts", metavar="PART")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--output", default="benchmarks/results/chaos.json")
    args = parser.parse_args()
    PROCESSES.set_forkserver_preload(PRELOAD)
    torch.set_num_threads(1)
    parts, seconds = {}, 60 * args.minutes
    bar = tqdm(total=round(seconds), unit="s", bar_format="{percentage:3.0f}%|{bar}| {elapsed} {postfix}")
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        warm_up()
        began = time.monotonic()
        for index, part in enumerate(args.only):
            here = time.monotonic()
            shares = [3 if name in RUN_PARTS else 1 for name in args.only[index:]]  # what a part leaves goes to others
            until = here + (began + seconds - here) * shares[0] / sum(shares)
            source = run_cases(part, runs, args.seed, args.first, until) if part in RUN_PARTS else file_cases(
                part, Path(folder), args.seed, args.first, until
            )  # fmt: skip
            row: dict = {"tried": 0, "lost": 0}
            parts[part] = row | {"seconds": 0.0, "losses": []}
            for case in source:
                row["tried"] += 1
                row["lost"] += case["lost"] is not None
                if "kills" in case:
                    row["kills"] = row.get("kills", 0) + case["kills"]
                if case["lost"] is not None:
                    parts[part]["losses"].append(case | {"seed": args.seed})
                parts[part] |= row | {"seconds": round(time.monotonic() - here, 1)}
                bar.set_postfix_str(f"{part}: {row['tried']} tried, {row['lost']} lost", refresh=False)
                bar.n = min(bar.total, round(time.monotonic() - began))
                bar.update(0)
    bar.close()
    machine = {"platform": platform.platform(), "python": platform.python_version(), "torch": torch.__version__,
               "cores": len(os.sched_getaffinity(0))}  # fmt: skip
    record = {"seed": args.seed, "minutes": args.minutes, "seconds": round(time.monotonic() - began, 1)}
    write_json(args.output, record | {"machine": machine, "parts": parts})
    print(f"{'part':14}{'tried':>8}{'lost':>8}{'seconds':>10}")
    for part, row in parts.items():
        extra = f"   {row['kills']} kills" if "kills" in row else ""
        print(f"{part:14}{row['tried']:>8,}{row['lost']:>8}{row['seconds']:>10.0f}{extra}")
        for loss in row["losses"][:5]:
            print(f"  case {loss['case']}: {loss['what']}: {loss['lost'].strip().splitlines()[-1][:160]}")
    print(f"wrote {args.output}")
    return 1 if any(row["lost"] for row in parts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
