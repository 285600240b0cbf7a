"""What the README shows works as printed, and what it points to is there."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_opening_program_runs(tmp_path, monkeypatch):
    program = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len(program.strip().splitlines()) <= 11
    for name in ("weights", "assets"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(program, names)
    assert names["features"].shape == (16, 192)
    assert np.asarray(Image.open("reconstructions.png")).std() > 20


def test_every_picture_and_link_to_a_file_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_stated_checksums_are_those_of_the_weights():
    import hashlib

    for readme in ROOT.glob("weights/*/README.md"):
        digest = hashlib.sha256((readme.parent / "model.safetensors").read_bytes()).hexdigest()
        assert digest in readme.read_text()
