"""What the README shows works as printed, and what it points to is there."""

import ast
import hashlib
import inspect
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinymae
from tinymae.commands import evaluate, export, finetune, linear_probe, pretrain
from tinymae.commands.cli import create_parser, parse
from tinymae.study import compare
from tinymae.study.stages import parse_extra

import demo  # isort: skip  # a script, as is the next
import release  # isort: skip

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
PROGRAMS = [text for language, text in BLOCKS if language == "python"]
CARDS = sorted(ROOT.glob("weights/*/README.md"))
SETTINGS = {
    "pretrain": pretrain.PretrainSettings,
    "linear-probe": linear_probe.LinearProbeSettings,
    "finetune": finetune.FinetuneSettings,
    "evaluate": evaluate.EvaluateSettings,
    "export": export.ExportSettings,
    "compare": compare.CompareSettings,
    "release": release.ReleaseSettings,
    "demo": demo.DemoSettings,
}
PLACES = {"compare": compare.PLACES, "release": release.PLACES}
COMMAND = re.compile(rf"(?:tinymae |scripts/)({'|'.join(SETTINGS)}|linear_probe)(?:\.py)?(?![\w-])(.*)", re.DOTALL)


def command_lines() -> list[str]:
    """Every line of a shell block, every indented line, and every span of code."""
    lines = [text for language, text in BLOCKS if language == "bash"]
    lines = "".join(lines).replace("\\\n", " ").splitlines() + re.findall(r"^ {4,}(.+)$", README, re.MULTILINE)
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    return lines + [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def flags_of(name: str) -> set[str]:
    """The flags that a command knows."""
    return {*create_parser(SETTINGS[name])._option_string_actions}


def test_the_opening_program_runs(tmp_path, monkeypatch):
    assert len(PROGRAMS[0].strip().splitlines()) <= 11
    for name in ("weights", "assets"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(PROGRAMS[0], names)
    assert names["features"].shape == (16, 192)
    assert np.asarray(Image.open("reconstructions.png")).std() > 20


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_parses_and_calls_functions_by_arguments_that_they_have(program):
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tinymae":
            assert node.attr in tinymae.__all__
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("tinymae."):
            function = getattr(tinymae, node.func.attr)
            inspect.signature(function).bind(*node.args, **{word.arg: word.value for word in node.keywords})


@pytest.mark.parametrize("line", [line for line in command_lines() if COMMAND.search(line)])
def test_a_command_line_is_one_that_its_command_takes(line):
    name, words = COMMAND.search(line).groups()
    name = name.replace("_", "-")
    parser = create_parser(SETTINGS[name], required=False, exits=False)
    given = parse(parser, shlex.split(words, comments=True))
    if "extra" in given:
        parse_extra(given["extra"], PLACES[name])


def test_every_flag_is_one_of_a_command():
    known = set().union(*map(flags_of, SETTINGS))
    elsewhere = "".join(file.read_text() for file in ROOT.glob("benchmarks/*.py"))
    launchers = {"--cpu", "--num_processes", "--nproc_per_node", "--directory"}
    for flag in set(re.findall(r"(?<![\w-])--[a-z][\w-]*", README)) - launchers - known:
        assert f'"{flag}"' in elsewhere, flag


def test_every_picture_and_link_to_a_file_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_every_path_in_the_repository_exists():
    folders = "assets benchmarks docs logs scripts src tests weights".split()
    for path in set(re.findall(rf"(?<![\w/])(?:{'|'.join(folders)})/[\w./*-]*\w", README)):
        assert [*ROOT.glob(path)], path


def test_the_layout_names_what_there_is():
    layout = next(text for _, text in BLOCKS if text.startswith("src/"))
    lines = [line.split() for line in layout.splitlines()]
    rooms = {words[0] for words in lines[1:] if (ROOT / "src" / "tinymae" / words[0]).is_dir()}
    package = ROOT / "src" / "tinymae"
    assert rooms == {f"{room.parent.name}/" for room in package.glob("*/__init__.py")}
    for folder, *words in lines:
        for word in words:
            if word.endswith((".py", ".md,", "/")):
                places = (package, ROOT / folder, ROOT)
                assert any((place / word.rstrip(",")).exists() for place in places), word


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_the_program_of_a_card_loads_its_weights_and_the_checksum_is_theirs(card, monkeypatch):
    text = card.read_text()
    assert hashlib.sha256((card.parent / "model.safetensors").read_bytes()).hexdigest() in text
    monkeypatch.chdir(card.parent.parent)
    names = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1), names)
    model = names.get("classifier") or names["model"]
    assert not model.training
