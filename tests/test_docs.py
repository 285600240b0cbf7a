"""What the README and the pages of docs/ show works as printed, and what they point to is there."""

import hashlib
import inspect
import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinymae
from tinymae.commands.cli import COMMANDS, create_parser, parse
from tinymae.data.images import read_image
from tinymae.files import read_json
from tinymae.models.classifier import build_classifier
from tinymae.study import compare
from tinymae.study.runs import parse_extra

import demo  # isort: skip  # a script, as is the next
import release  # isort: skip

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "CONTRIBUTING.md", ROOT / "logs" / "README.md"]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
PROGRAMS = {
    name: [text for language, text in BLOCK.findall(page) if language == "python"] for name, page in TEXTS.items()
}
CARDS = sorted(ROOT.glob("weights/*/README.md"))
SETTINGS = {name: getattr(import_module(f"tinymae.{home}"), settings) for name, (home, settings, _) in COMMANDS.items()}
SETTINGS |= {"release": release.ReleaseSettings, "demo": demo.DemoSettings}
PLACES = {"compare": compare.PLACES, "release": release.PLACES}
COMMAND = re.compile(r"(?:tinymae |scripts/)([a-z][a-z_-]*)(?:\.py)?(?= |$)(.*)", re.DOTALL)
# Flags of other programs: accelerate, torchrun, sbatch, http.server, tensorboard.
OTHERS = set(
    "--cpu --num_processes --nproc_per_node --nnodes --node_rank --master_addr --master_port --nodes --ntasks-per-node "
    "--gpus-per-node --time --requeue --directory --logdir".split()
)

# So that a program of a page takes a second: these stand in for settings that it leaves out, or gives larger.
TINY = {
    "embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "batch_size": 8, "epochs": 2, "optimizer": "adamw",
    "mixed_precision": "no",
}  # fmt: skip
SHORTENED = {
    "pretrain": TINY | {"decoder_dim": 16, "decoder_depth": 1, "contrast_epochs": 1, "contrast_batch_size": 8},
    "linear_probe": {"mixed_precision": "no"},
    "finetune": {"batch_size": 8, "epochs": 1, "mixed_precision": "no"},
}


def blocks(language: str) -> list[tuple[str, str]]:
    """The blocks of code in this language, each with the name of its page."""
    return [(name, text) for name, page in TEXTS.items() for kind, text in BLOCK.findall(page) if kind == language]


def prose() -> list[tuple[str, str]]:
    """Every page without its blocks of code."""
    return [(name, BLOCK.sub("", page)) for name, page in TEXTS.items()]


def command_lines() -> list[str]:
    """Every line of a shell block, and every span of code."""
    lines = "".join(text for _, text in blocks("bash")).replace("\\\n", " ").splitlines()
    return lines + [" ".join(span.split()) for _, page in prose() for span in re.findall(r"`([^`]+)`", page)]


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder with what the programs name: the repository's weights and images, labelled photos, others' weights."""
    for name in ("weights", "assets", "logs"):
        (tmp_path / name).symlink_to(ROOT / name)
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(15):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    paths = [f"photos/{label}/{number}.png" for label in ("cat", "dog") for number in range(15)]
    (tmp_path / "train.csv").write_text("\n".join(["path,label", *(f"{path},{path[7:10]}" for path in paths)]))
    (tmp_path / "test.csv").write_text("\n".join(["path", *paths[:4]]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_others_weights(folder: Path) -> None:
    """An official MAE, folders of transformers, and a fine-tuned classifier, all of them tiny."""
    sizes = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "decoder_dim": 16, "decoder_depth": 1}
    model = tinymae.MaskedAutoencoder(image_size=32, decoder_heads=2, **sizes)
    classifier = build_classifier(model, classes=["cat", "dog"], pool="cls")
    tinymae.to_official(model, folder / "mae_pretrain_vit_base.pth")
    tinymae.to_transformers(model, folder / "folder-of-save_pretrained")
    tinymae.to_transformers(classifier, folder / "folder-of-a-ViT")
    classifier.write_weights(folder / "runs" / "finetune")
    model.write_weights(folder / "runs" / "mae")


def shortened(command: str):
    """The command with the settings that make it quick; those that a program gives must be the command's own."""
    function = getattr(tinymae, command)

    def call(*args, **keywords):
        bound = inspect.signature(function).bind(*args, **keywords)
        return function(**bound.arguments | SHORTENED[command])

    return call


@pytest.mark.parametrize("page", [name for name, programs in PROGRAMS.items() if programs])
def test_the_programs_of_a_page_run_one_after_the_other(page, workplace, monkeypatch, quick_figures):
    for command in SHORTENED:
        monkeypatch.setattr(tinymae, command, shortened(command), raising=False)
    if "from_official" in TEXTS[page] or page == "docs/own_images.md":
        write_others_weights(workplace)
    names: dict = {}
    for program in PROGRAMS[page]:
        exec(program, names)
    if page == "README.md":
        assert len(PROGRAMS[page][0].strip().splitlines()) <= 11
        assert names["features"].shape == (16, 192)
        assert np.asarray(Image.open("reconstructions.png")).std() > 20
    if page == "docs/own_images.md":  # each image is judged once; each of test has an id and all probabilities
        assert sorted(name for fold in names["held_out"] for name in fold.index) == sorted(names["table"]["path"])
        header, *rows = [line.split(",") for line in Path("submission.csv").read_text().splitlines()]
        assert header == ["id", "cat", "dog"] and [row[0] for row in rows] == [*"0123"]
        assert all(float(row[1]) + float(row[2]) == pytest.approx(1, abs=1e-4) for row in rows)
    if page == "docs/design.md":
        names["model"].save_pretrained("family")
        assert names["LinearAutoencoder"].from_pretrained("family").config == names["model"].config


def write_odd_files(folder: Path) -> list[Path]:
    """Images of many formats, modes and sizes, and of all eight orientations."""
    generator = np.random.default_rng(0)
    smooth = Image.fromarray(generator.integers(0, 256, (6, 8, 4), dtype=np.uint8), "RGBA")
    large, small = smooth.resize((400, 300), Image.Resampling.BICUBIC), smooth.resize((41, 23))
    palette = small.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
    images: dict[str, tuple[Image.Image, dict]] = {
        "alpha.png": (small, {}), "alpha.webp": (small, {"lossless": True}),
        "grey and alpha.png": (small.convert("LA"), {}), "palette.png": (palette, {"transparency": 3}),
        "palette.gif": (palette, {"transparency": 3}),
        "colour that is transparent.png": (small.convert("RGB"), {"transparency": (1, 2, 3)}),
        "grey.png": (small.convert("L"), {}), "bits.png": (small.convert("1"), {}),
        "cmyk.jpg": (large.convert("CMYK"), {}),
        "ycbcr.tif": (small.convert("YCbCr"), {}), "rgb.bmp": (small.convert("RGB"), {}),
        "narrow.png": (small.resize((3, 200)), {}), "of the size.png": (small.resize((40, 24)), {}),
        "progressive.jpg": (large.convert("RGB"), {"progressive": True}), "grey.jpg": (large.convert("L"), {}),
    }  # fmt: skip
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        images[f"upright {orientation}.jpg"] = large.convert("RGB"), {"exif": exif}
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    return sorted(folder.iterdir())


def test_pillow_and_numpy_alone_read_files_as_predict_does(tmp_path):
    (program,) = [text for text in PROGRAMS["docs/elsewhere.md"] if "def read(" in text]
    assert set(re.findall(r"^(?:import|from) (\w+)", program, re.MULTILINE)) == {"numpy", "PIL"}
    names: dict = {}
    exec(program, names)
    for file in write_odd_files(tmp_path):
        for size, mode in (((32, 32), "RGB"), ((24, 40), "RGB"), ((32, 32), "L")):
            expected = read_image(file, (len(mode), *size), depth="uint8").numpy()
            assert np.array_equal(names["read"](file, size, mode), expected), f"{file.name} {size} {mode}"
    for deep in (np.uint16, np.float32):
        Image.fromarray(np.zeros((9, 9), deep)).save(file := tmp_path / "deep.tif")
        with pytest.raises(ValueError, match=r"deep\.tif has more than 8 bits a pixel"):
            names["read"](file, (8, 8), "L")


@pytest.mark.parametrize("line", [line for line in command_lines() if COMMAND.search(line)])
def test_a_command_line_is_one_that_its_command_takes(line):
    name, words = COMMAND.search(line).groups()
    name = name.replace("_", "-")
    parser = create_parser(SETTINGS[name], partial=True)
    given = parse(parser, shlex.split(words, comments=True))
    if "extra" in given:
        parse_extra(given["extra"], PLACES[name])


def test_every_other_line_of_a_shell_block_is_of_a_known_kind():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for _, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words or COMMAND.search(line):
                continue
            if words[0] == "make":
                assert set(words[1:]) <= targets, line
            elif words[:2] in (["python", "-m"], ["pip", "install"], ["git", "clone"]):
                continue
            else:
                assert words[0] == "python" and (ROOT / words[1]).exists(), line


def test_every_flag_is_one_of_a_command():
    known = set().union(*({*create_parser(settings)._option_string_actions} for settings in SETTINGS.values()))
    elsewhere = "".join(file.read_text() for file in ROOT.glob("benchmarks/**/*.py"))
    for name, page in TEXTS.items():
        for flag in set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page)) - OTHERS - known:
            assert f'"{flag}"' in elsewhere, f"{name}: {flag}"


def test_every_image_and_link_to_a_file_exists():
    for name, text in prose():
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            assert target.startswith("https://") or (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


def test_every_path_in_the_repository_exists():
    folders = "assets benchmarks docs logs scripts src tests weights".split()
    for name, page in TEXTS.items():
        for path in set(re.findall(rf"(?<![\w/.])(?:{'|'.join(folders)})/[\w./*-]*\w", page)):
            assert [*ROOT.glob(path)], f"{name}: {path}"


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].split()) <= 1100


def test_the_layout_names_what_there_is():
    layout = next(text for _, text in blocks("") if text.startswith("src/"))
    lines = [line.split() for line in layout.splitlines()]
    rooms = {words[0] for words in lines[1:] if (ROOT / "src" / "tinymae" / words[0]).is_dir()}
    package = ROOT / "src" / "tinymae"
    assert rooms == {f"{room.parent.name}/" for room in package.glob("*/__init__.py")}
    for folder, *words in lines:
        for word in words:
            if word.endswith((".py", ".md,", "/")):
                places = (package, ROOT / folder, ROOT)
                assert any((place / word.rstrip(",")).exists() for place in places), word


def test_the_index_of_the_logs_names_every_one():
    entries = {path.name for path in (ROOT / "logs").iterdir()} - {"README.md"}
    assert entries == set(re.findall(r"`(vit-t-[\w.-]+)`", TEXTS["logs/README.md"]))


@pytest.mark.parametrize(
    "log, row, keys",
    [
        ("vit-t", "four contrasted views**", ["knn_all", "probe_all", "probe_10", "probe_1"]),
        (
            "vit-t-mae-part-3", "two contrasted views (0.2)",
            ["knn_all", "probe_all", "finetune_all", "finetune_10", "finetune_1", "probe_10", "probe_1"],
        ),
    ],
)  # fmt: skip
def test_the_released_scores_are_those_of_the_log(log, row, keys):
    test = read_json(ROOT / "logs" / f"{log}-release.json")["test"]
    line = next(line for line in TEXTS["docs/results.md"].splitlines() if row in line)
    for key in keys:
        text = f"{test[key]['mean']:.1f}" + (f" ± {test[key]['std']:.1f}" if test[key]["std"] else "")
        assert text in re.sub(r"[*|()]", " ", line), f"{key}: {text}"
        assert text in TEXTS["README.md"], f"{key}: {text}"


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_the_program_of_a_card_loads_its_weights_and_the_checksum_is_theirs(card, monkeypatch):
    text = card.read_text()
    assert hashlib.sha256((card.parent / "model.safetensors").read_bytes()).hexdigest() in text
    monkeypatch.chdir(ROOT)
    names = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1), names)
    model = names.get("classifier") or names["model"]
    assert not model.training
