"""Two machines, played by two torchrun agents with separate working folders on the loopback."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from running import flags, metrics
from safetensors.torch import load_file

import tinymae

SCRIPT = Path(__file__).parent.parent / "scripts" / "pretrain.py"
SETTINGS = {
    "data": "digits", "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "decoder_dim": 16,
    "decoder_depth": 1, "decoder_heads": 2, "epochs": 12, "contrast_epochs": 0, "batch_size": 256, "flip": False,
    "mixed_precision": "no", "probe_every": 100, "log_every": 1, "log_with": ("tensorboard",),
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_nodes(folder: Path, **settings) -> list[subprocess.Popen]:
    """A torchrun agent on each "machine", whose output folder is on a disk of its own."""
    port, words = free_port(), [*map(str, flags(**SETTINGS, **settings, output_dir="run"))]
    agents = []
    for node in range(2):
        (folder / f"node{node}").mkdir(parents=True, exist_ok=True)
        torchrun = f"--nnodes 2 --node_rank {node} --nproc_per_node 1 --master_addr 127.0.0.1 --master_port {port}"
        with open(folder / f"node{node}.log", "ab") as log:
            agents.append(subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *torchrun.split(), str(SCRIPT), *words],
                cwd=folder / f"node{node}", stdout=log, stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
            ))  # fmt: skip
    return agents


def wait(agents: list[subprocess.Popen], folder: Path) -> list[int]:
    codes = [agent.wait(timeout=300) for agent in agents]
    return codes if not any(codes) else pytest.fail((folder / "node0.log").read_text()[-3000:])


def test_two_machines_without_a_shared_disk_go_on_after_one_has_died(tmp_path):
    agents = start_nodes(tmp_path, checkpoint_minutes=0.0)
    saved = tmp_path / "node0" / "run" / "checkpoints"
    deadline = time.monotonic() + 300
    while not (saved.is_dir() and any(saved.iterdir())):
        assert time.monotonic() < deadline and agents[1].poll() is None, (tmp_path / "node0.log").read_text()[-3000:]
        time.sleep(0.05)
    machine = psutil.Process(agents[1].pid)
    for process in [machine, *machine.children(recursive=True)]:  # torchrun's workers are in sessions of their own
        process.kill()
    agents[1].wait()
    assert agents[0].wait(timeout=300) != 0  # it does not wait for the dead for ever
    assert not (tmp_path / "node0" / "run" / "results.json").exists()

    wait(start_nodes(tmp_path), tmp_path)
    assert "resuming" in (tmp_path / "node0.log").read_text()
    steps = [row["step"] for row in metrics(tmp_path / "node0" / "run") if "loss" in row]
    assert steps == [*range(1, 61)]
    assert not (tmp_path / "node1" / "run" / "model.safetensors").exists()  # the first machine has the results
    alone = tinymae.pretrain(**SETTINGS, output_dir=tmp_path / "alone")
    together, single = (load_file(path / "model.safetensors") for path in (tmp_path / "node0" / "run", alone.folder))
    for name, tensor in single.items():
        assert (together[name] - tensor).abs().max() < 1e-3, name
