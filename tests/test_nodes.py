"""Two machines, played by two processes with separate working folders on the loopback."""

import signal
from pathlib import Path

from running import flags, group_of_two, metrics, start
from safetensors.torch import load_file

import tinymae

SETTINGS = {
    "data": "digits", "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "decoder_dim": 16,
    "decoder_depth": 1, "decoder_heads": 2, "epochs": 4, "contrast_epochs": 0, "batch_size": 256, "flip": False,
    "mixed_precision": "no", "probe_every": 100, "log_every": 1, "log_with": ("tensorboard",),
}  # fmt: skip


def run_nodes(folder: Path, *, killed: tuple[int, int] | None = None, **settings) -> list[int | None]:
    """The exit code on each "machine", whose output folder is on a disk of its own; the second one may be killed."""
    nodes = []
    for node, environment in enumerate(group_of_two(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")):  # as torchrun --nnodes 2
        (folder / f"node{node}").mkdir(parents=True, exist_ok=True)
        command = ["pretrain", *flags(**SETTINGS, **settings, output_dir="run")]
        own = {"folder": folder / f"node{node}", "killed": killed if node else None}
        nodes.append(start(folder / f"node{node}.log", command, **own, **environment))
    for process in nodes:
        process.join(timeout=300)
    return [process.exitcode for process in nodes]


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
    alone = tinymae.pretrain(**SETTINGS, output_dir=tmp_path / "alone")
    together, single = (load_file(path / "model.safetensors") for path in (tmp_path / "node0" / "run", alone.folder))
    for name, tensor in single.items():
        assert (together[name] - tensor).abs().max() < 1e-3, name
