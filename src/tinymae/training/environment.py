"""What a run was made with: versions, commit and machine."""

import os
import platform
import re
import subprocess
from datetime import datetime
from importlib import metadata
from pathlib import Path

import accelerate
import numpy
import PIL
import safetensors
import timm
import torch
import torchvision
from accelerate import PartialState

from .. import __version__


def describe_device() -> str:
    """A GPU's name, where torch knows it, or else the CPU's cores."""
    kind = PartialState().device.type
    if kind == "cuda":
        return torch.cuda.get_device_name()
    return describe_cores() if kind == "cpu" else f"{kind}, beside {describe_cores()}"


def describe_cores() -> str:
    """How many of the CPU's cores the run's threads can keep busy."""
    total = os.cpu_count() or 1
    busy = min(torch.get_num_threads() * PartialState().num_processes, total)
    return f"{busy} of {total} CPU cores" if busy < total else f"{total} CPU cores"


def describe_processor() -> str:
    """The CPU's name: bf16, and the last bits of a result, depend on it."""
    try:
        found = re.search(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def environment() -> dict:
    """Versions, commit and machine, for args.json."""
    return {
        "commit": commit_of(Path(__file__).resolve().parents[3]),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "accelerate": accelerate.__version__,
            "numpy": numpy.__version__,
            "pillow": PIL.__version__,
            "safetensors": safetensors.__version__,
            "scikit-learn": metadata.version("scikit-learn"),  # whose import takes a second
            "tinymae": __version__,
        },
        "processor": describe_processor(),
        "device": describe_device(),
        "date": datetime.now().isoformat(timespec="seconds"),
    }


def describe_changes(before: dict, now: dict) -> str:
    """What of two environments' versions and commits differs, in words; empty if nothing does.

    >>> describe_changes({"versions": {"torch": "2.6.0"}}, {"versions": {"torch": "2.7.0"}, "commit": None})
    'torch 2.6.0, now 2.7.0'
    """
    names = [*now["versions"], "commit"]
    old, new = ({"commit": part.get("commit"), **part.get("versions", {})} for part in (before, now))
    differ = [name for name in names if old.get(name) and new[name] and old[name] != new[name]]
    return "; ".join(f"{name} {old[name]}, now {new[name]}" for name in differ)


def commit_of(root: Path) -> str | None:
    """The commit of a checkout of tinymae, and "-dirty" where its files differ; None where it was installed, whatever
    repository may enclose it there.
    """
    if not ((root / ".git").exists() and (root / "src" / "tinymae").is_dir()):
        return None
    try:
        git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
