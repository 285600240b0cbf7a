"""The comparison as people run it, on tiny models of real digits."""

import json
import re
import shutil
import subprocess
from functools import partial
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from pictures import SPLITS
from running import one_line, rows_of

import tinymae
from tinymae import InputError, load_dataset
from tinymae.commands import cli, evaluate, finetune, linear_probe, pretrain
from tinymae.commands.pretrain import PretrainSettings
from tinymae.data.splits import few_labels
from tinymae.errors import Diverged
from tinymae.files import read_json, write_json
from tinymae.models.families import FAMILIES
from tinymae.models.masked_conv import MaskedConvAutoencoder
from tinymae.study import compare, report, search, tables
from tinymae.study.compare import CompareSettings

TINY = (
    "pretrain: --batch-size 64 --no-flip --crop none --base-lr 4e-3",
    "mae: --patch-size 2 --embed-dim 16 --depth 1 --num-heads 2 --decoder-dim 16 --decoder-depth 1 --no-norm-pix-loss",
    "vae: --width 8 --depth 2",
    "finetune: --batch-size 64 --no-flip --layer-decay 0.8",  # the last of which is for ViTs alone
)
GRID = ["--data", "digits", "--models", "mae", "vae", "--latent-dims", "8", "--epochs", "1"]


@pytest.fixture(scope="module", autouse=True)
def small_maps(quick_stages):
    """t-SNE of few images, as it takes longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "MAPPED", 60)
        yield


def run(folder, *arguments):
    extra = [word for flags in TINY for word in ("--extra", flags)]
    common = ["--mixed-precision", "no", *extra, "--output-dir", str(folder)]
    return compare.run(settings_of(*common, *arguments)).results["rows"]


def settings_of(*arguments) -> CompareSettings:
    return CompareSettings(**cli.parse(cli.create_parser(CompareSettings), arguments))


def results_in(folder) -> dict:
    """Every results.json and when it was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("results.json"))}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A grid that is stopped after its first cell, and then run to its end."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        pretraining = pretrain.run

        def stop_at_the_second(settings):
            if "vae-8" in str(settings.output_dir):
                raise KeyboardInterrupt
            return pretraining(settings)

        patch.setattr(pretrain, "run", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run(folder, *GRID)
    before = results_in(folder)
    table = (folder / "comparison.csv").read_text()
    rows = run(folder, *GRID)
    return folder, rows, before, table


def test_an_interrupted_grid_keeps_what_was_done(compared):
    folder, rows, before, table = compared
    stages = {f"digits/mae/seed0/{stage}/results.json" for stage in "pretrain linear mlp evaluate finetune".split()}
    assert stages < before.keys() and not any("vae" in name for name in before)
    assert "mae, untrained" in table and "vae" not in table
    after = results_in(folder)
    assert {name: after[name] for name in before} == before
    assert [row["name"] for row in rows] == [
        "raw pixels", "mae", "mae, untrained", "vae 8", "vae 8, untrained",
    ]  # fmt: skip


def test_what_was_found_in_the_data_is_said_once_not_by_each_stage(tmp_path, capsys):
    run(
        tmp_path, "--data", "digits", "--models", "pca", "--latent-dims", "8", "--epochs", "1", "--finetune-epochs", "0"
    )
    assert capsys.readouterr().out.count("data digits (") == 1


def test_a_finished_grid_is_not_run_again(compared, monkeypatch):
    folder, rows, _, _ = compared
    before = results_in(folder)
    tables = [(folder / name).read_bytes() for name in ("comparison.csv", "comparison.md", "report.html")]
    for command in (pretrain, linear_probe, finetune):
        monkeypatch.setattr(command, "run", None)
    assert run(folder, *GRID) == rows
    assert results_in(folder) == before
    assert [(folder / name).read_bytes() for name in ("comparison.csv", "comparison.md", "report.html")] == tables


def test_the_tables_hold_what_the_stages_found(compared):
    folder, *_ = compared
    rows = {row["name"]: row for row in rows_of(folder / "comparison.csv")}
    assert len(rows) == 5
    for name, cell in {"mae": "mae", "vae 8": "vae-8"}.items():
        stage = {p.parent.name: json.loads(p.read_text()) for p in folder.glob(f"digits/{cell}/seed0/*/results.json")}
        found = {
            "knn_test": stage["linear"]["knn_test"], "linear_test": stage["linear"]["probe_test"],
            "mlp_test": stage["mlp"]["probe_test"], "finetuned_test": stage["finetune"]["accuracy_test"],
            "mse": stage["evaluate"]["full"]["mse"], "ssim": stage["evaluate"]["full"]["ssim"],
            "psnr": stage["evaluate"]["full"]["psnr"], "minutes": stage["pretrain"]["minutes"], "epochs": 1,
            "num_features": stage["linear"]["num_features"],
            "parameters": sum(
                p.numel() for p in tinymae.load(folder / "digits" / cell / "seed0" / "pretrain").parameters()
            ),
        }  # fmt: skip
        assert {column: float(rows[name][column]) for column in found} == found
        assert float(rows[f"{name}, untrained"]["linear_test"]) == stage["linear"]["untrained"]["probe_test"]
        assert (rows[name]["mse_masked"] != "") == (name == "mae")
    pixels = read_json(folder / "digits" / "raw_pixels" / "linear" / "results.json")
    assert float(rows["raw pixels"]["linear_test"]) == pixels["raw_pixels"]["probe_test"] > 90
    assert rows["raw pixels"]["num_features"] == "64" and rows["raw pixels"]["control"]

    table = (folder / "comparison.md").read_text()
    line = next(line for line in table.splitlines() if line.startswith("| vae 8 |"))
    assert f"| {float(rows['vae 8']['linear_test']):.1f} |" in line and "*raw pixels (control)*" in table


def test_with_nothing_hidden_the_errors_are_of_the_models_own_picture(tmp_path):
    model = MaskedConvAutoencoder(image_size=8, in_channels=1, patch_size=2, decoder_dim=16)
    model.write_weights(tmp_path / "pretrain")
    write_json(tmp_path / "pretrain" / "args.json", {"arguments": {"latent_dim": None, "loss": "mse"}})
    write_json(tmp_path / "pretrain" / "results.json", {"minutes": 1, "epochs": 1})
    for name in ("linear", "mlp"):
        scores = {"knn_val": 1, "knn_test": 2, "probe_val": 3, "probe_test": 4, "num_features": 320, "num_labels": 9}
        write_json(tmp_path / name / "results.json", scores)
    where = {"output_dir": tmp_path / "evaluate", "weights": tmp_path / "pretrain"}
    found = tinymae.evaluate("digits", mixed_precision="no", **where).results
    names = {"data": "digits", "name": "masked_conv", "model": "masked_conv", "seed": 0}
    row = tables.cell_rows(tmp_path, label_fraction=1.0, **names)[0]
    digits = load_dataset("digits", "test").images
    own = model.eval().reconstruct(digits, torch.zeros(16, dtype=torch.bool)).prediction
    assert row["mse"] == pytest.approx(float((own - digits / 255).square().mean()), rel=1e-4)
    assert row["mse"] > 0 and row["mse_masked"] == found["masked"]["mse"] > 0


def test_few_labels_are_learned_from_beside_all_of_them_by_the_same_pretraining(tmp_path):
    grid = ["--data", "digits", "--models", "vae", "--latent-dims", "8", "--epochs", "1", "--seeds", "0", "1"]
    run(tmp_path, *grid)
    before = results_in(tmp_path)
    rows = run(tmp_path, *grid, "--label-fractions", "0.1", "1")
    after = results_in(tmp_path)
    assert {name: after[name] for name in before} == before
    cell = {f"digits/vae-8/seed{seed}/{stage}-0.1" for seed in (0, 1) for stage in ("linear", "mlp", "finetune")}
    pixels = {f"digits/raw_pixels/linear-0.1-seed{seed}" for seed in (0, 1)}
    assert after.keys() - before.keys() == {f"{stage}/results.json" for stage in cell | pixels}

    all_labels, tenth = tables.by_labels(rows).values()
    drawn = few_labels(load_dataset("digits", "train").labels, 0.1, seed=0)
    assert {row["num_labels"] for row in tenth} == {len(drawn)}
    for name in ("vae 8", "vae 8, untrained", "raw pixels"):
        of_all, of_few = ([row["linear_test"] for row in those if row["name"] == name] for those in (all_labels, tenth))
        assert len(of_few) == 2 and of_few[0] != of_few[1] and np.mean(of_all) > np.mean(of_few) > 10
    few = [row for row in tenth if row["name"] == "vae 8"]
    for row in few:
        stage = {name: read_json(tmp_path / f"digits/vae-8/seed{row['seed']}/{name}-0.1/results.json")
                 for name in ("linear", "mlp", "finetune")}  # fmt: skip
        assert row["linear_test"] == stage["linear"]["probe_test"] and row["mlp_test"] == stage["mlp"]["probe_test"]
        assert row["finetuned_test"] == stage["finetune"]["accuracy_test"]
    mean = tables.format_value(tables.mean_and_std([row["linear_test"] for row in few]), 1)
    head, _, part = (tmp_path / "comparison.md").read_text().partition("## digits, 10 % of the labels")
    assert "PSNR" in head and f"| {mean} |" in part and f"| {mean} |" not in head
    page = (tmp_path / "report.html").read_text()
    assert mean in page and {"Results", "Results, 10 % of the labels"} < {*Page(page).headings}


def test_means_and_deviations_are_over_seeds():
    rows = [
        {"data": "d", "name": name, "control": "", "seed": seed, "label_fraction": 1.0, "linear_test": value}
        for name, values in {"a": [60, 62, 64], "b": [70]}.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    first, second = tables.summarise(rows)
    assert first["name"] == "b" and first["linear_test"] == (70, None) and first["seeds"] == 1
    assert second["linear_test"] == (62, pytest.approx(np.std([60, 62, 64], ddof=1)))
    assert tables.format_value(second["linear_test"], 1) == "62.0 ± 2.0"


def test_differences_are_to_the_first_model_under_the_same_seed():
    scores = {"a": {0: 60.0, 1: 70.0, 2: 80.0}, "b": {0: 63.0, 1: 71.0, 2: 82.0, 3: 10.0}, "c": {0: 50.0}}
    rows = [
        {"data": "d", "name": name, "control": "", "seed": seed, "label_fraction": 1.0, "linear_test": value,
         "knn_test": 1.0}
        for name, values in scores.items() for seed, value in values.items()
    ]  # fmt: skip
    rows[4]["finetuned_test"] = 40.0  # which a has none of
    control = {"name": "b, untrained", "control": "untrained", "linear_test": 1.0}
    rows += [rows[0] | control | {"seed": seed} for seed in range(3)]
    (line,) = tables.differences(rows)
    assert line["name"] == "b" and line["seeds"] == 3 and line["linear_test"] == (2.0, 1.0)  # not the 10 of seed 3
    assert "finetuned_test" not in line
    text = tables.markdown(rows, "")
    assert "less that of a under the same seed" in text and "| b | +0.0 ± 0.0 | +2.0 ± 1.0 | – | – | 3 |" in text
    assert "under the same seed" not in tables.markdown([row for row in rows if row["seed"] == 0], "")


def test_the_best_is_named_by_validation_and_test_stands_beside_it():
    common = {"data": "d", "control": "", "seed": 0, "label_fraction": 1.0}
    rows = [
        common | {"name": name, "linear_val": val, "linear_test": test}
        for name, val, test in (("lucky", 60.0, 75.0), ("chosen", 65.0, 70.0))
    ]  # fmt: skip
    lines = tables.summarise(rows)
    assert report.find_best(lines)["linear_test"] == ["chosen"]
    shown = report.table(lines, tables.READ, 1)["rows"]
    bold = [cell["text"] for row in shown for cell in row["cells"] if cell["best"]]
    assert bold == ["70.0"] and any(cell["text"] == "75.0" for row in shown for cell in row["cells"])


def test_a_model_that_hides_patches_is_not_the_best_at_errors_with_nothing_hidden():
    common = {"data": "d", "control": "", "seed": 0, "label_fraction": 1.0, "linear_val": 50.0, "linear_test": 50.0}
    rows = [
        common | {"name": "mae", "mse": 0.01, "psnr": 20.0, "ssim": 0.9, "mse_masked": 0.03},
        common | {"name": "vae", "mse": 0.02, "psnr": 17.0, "ssim": 0.5},
    ]
    third = common | {"name": "pca", "mse": 0.03, "psnr": 15.0, "ssim": 0.4}
    best = report.find_best(tables.summarise([*rows, third]))
    assert [best[metric] for metric in ("mse", "psnr", "ssim")] == [["vae"]] * 3 and "mse_masked" not in best
    lines = tables.summarise(rows)
    cells = {cell["text"]: cell["best"] for row in report.table(lines, tables.READ, 1)["rows"] for cell in row["cells"]}
    assert not cells["0.0100 †"] and not cells["0.0200"]  # the other has no rival
    text = tables.markdown(rows, "")
    assert "| 0.0100 † | 20.0 † | 0.900 † | 0.0300 |" in text and "| 0.0200 | 17.0 | 0.500 | – |" in text
    assert tables.UNRANKED in text and tables.UNRANKED not in tables.markdown(rows[1:], "")


def test_the_chart_of_sizes_is_of_the_linear_probe(monkeypatch):
    drawn = []
    monkeypatch.setattr(report.charts, "accuracy_by_size", lambda points, floor: drawn.append((points, floor)))
    monkeypatch.setattr(report.Sheet, "of_figure", lambda figure: None)
    scores = {("a", ""): 60.0, ("a, untrained", "untrained"): 30.0, ("raw pixels", "raw pixels"): 40.0}
    rows = [
        {"data": "d", "name": name, "model": "vae", "control": control, "seed": seed, "num_features": 8,
         "knn_test": 10.0, "linear_test": score + 2 * seed}
        for seed in (0, 1) for (name, control), score in scores.items()
    ]  # fmt: skip
    report.sizes(tables.summarise(rows), rows)
    (((point,), floor),) = drawn
    assert floor == 41 and (point.accuracy, point.std, point.untrained) == (61, pytest.approx(2**0.5), 31)


class Page(HTMLParser):
    """What a browser would look up, and whether every element is closed."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.addresses, self.images, self.headings, self.texts = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.addresses += [attributes[name] for name in ("src", "href", "srcset", "action") if name in attributes]
        if tag == "img":
            self.images.append(attributes)
        if tag == "svg":
            assert "aria-label" in attributes or "aria-hidden" in attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data)
        self.texts.append(data)


def test_the_report_is_whole_and_asks_nothing_of_the_network(compared):
    folder, rows, *_ = compared
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert not page.open
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert not re.search(r"https?://|url\(|@import", text)
    assert all(image["alt"] for image in page.images)
    # The original, 3 of mae, a vae's and its samples; a chart of sizes, 3 maps, 2 confusion matrices, 2 curves.
    assert len(page.images) == 6 + 1 + 3 + 2 + 2
    expected = "Results Reconstructions Samples Confusion Training latent size Maps".split()
    assert all(any(word in heading for heading in page.headings) for word in expected)
    for row in rows:
        assert row["name"] in page.texts and f"{row['linear_test']:.1f}" in page.texts
    assert text.count('<span class="badge">control</span>') == 3
    assert re.search(r"<td[^>]*>0\.\d{4} †</td>", text) and " ".join(text.split()).count(tables.UNRANKED) == 1


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_on_a_phone_the_page_fits_and_a_press_on_a_heading_sorts(compared, tmp_path):
    folder, rows, *_ = compared
    page = (folder / "report.html").read_text()
    press = """<script>
      const heads = [...document.querySelectorAll("thead tr:last-child th")];
      const head = heads.find((head) => head.textContent === "features");
      head.firstElementChild.click(); head.firstElementChild.click();
      const names = [...document.querySelectorAll("tbody tr")].map((row) => row.cells[0].dataset.value);
      const fits = document.documentElement.scrollWidth <= innerWidth ? "fits" : "overflows";
      document.title = fits + ", " + head.getAttribute("aria-sort") + ": " + names.join("; ");
    </script></body>"""
    pressed = tmp_path / "pressed.html"
    pressed.write_text(page.replace("</body>", press))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --window-size=390,800 --disable-component-update --disable-sync"
    command = ["chromium", *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", pressed.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    width, order, names = re.search(r"<title>(\w+), (\w+): (.*?)</title>", shown).groups()
    assert width == "fits"
    sizes = {row["name"]: row["num_features"] for row in rows}
    assert order == "ascending" and [sizes[name] for name in names.split("; ")] == sorted(sizes.values())


def test_the_grid_gives_each_family_what_it_has():
    def cells(*arguments) -> list[str]:
        settings = settings_of("--epochs", 1, *arguments).resolve()
        return [str(cell.folder) for cell in compare.plan(settings, "digits", {})]

    usual = cells()
    assert len(usual) == 8 and {"digits/mae", "digits/conv_ae", "digits/vae-128", "digits/vqvae-32"} < {*usual}
    assert {"digits/resnet_unet", "digits/resnet_unet_no_skips"} < {*usual}
    assert cells("--losses", "mse") == usual
    grid = cells("--latent-dims", "4", "8", "--losses", "mse", "0.8*ssim+0.2*l1", "--models", "mae", "vae", "pca")
    assert grid == [
        "digits/mae", "digits/vae-4", "digits/vae-4-0.8xssim+0.2xl1", "digits/vae-8", "digits/vae-8-0.8xssim+0.2xl1",
        "digits/pca-4", "digits/pca-8",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["mae", "vae"])
def test_every_stage_of_a_cell_has_the_seed_of_the_cell(name, monkeypatch, tmp_path):
    stages = []
    monkeypatch.setattr(compare, "run_once", lambda command, settings, **_: stages.append((command, settings)))
    monkeypatch.setattr(compare, "cell_rows", lambda folder, **names: [names])
    settings = CompareSettings(epochs=1, models=(name,), seeds=(3,), output_dir=tmp_path).resolve()
    (cell,) = compare.plan(settings, "digits", {})
    (row,) = compare.run_cell(settings, cell, 3, [])
    assert [command for command, _ in stages] == [pretrain, evaluate, linear_probe, linear_probe, finetune]
    assert {each.seed for _, each in stages} == {3} == {row["seed"]} and {each.data for _, each in stages} == {"digits"}
    assert {each.weights for _, each in stages[1:]} == {stages[0][1].output_dir}


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "mae"], "give --minutes or --epochs"),
        ({"data": ()}, r"data \(\) is empty: give at least one"),
        ({"models": ()}, r"models \(\) is empty"),
        ({"seeds": ()}, r"seeds \(\) is empty"),
        ([*GRID, "--label-fractions", "0.1", "0"], "label_fractions 0 is not above 0"),
        ([*GRID, "--label-fractions", "0.1", "0.1"], "label_fractions 0.1 0.1: one is given twice"),
        ([*GRID, "--extra", "finetune: --label-fraction 0.1"], "finetune a label_fraction: give label_fractions"),
        (["--epochs", "1", "--extra", "vea: --beta 1"], "extra 'vea' is none of"),
        (["--epochs", "1", "--extra", "vae"], "extra 'vae' does not begin with a place and a colon"),
        (["--epochs", "1", "--extra", "pretrain: --seed 3"], "extra 'pretrain' gives seed, which follows from"),
        (["--epochs", "1", "--extra", "mae: --beta 1"], "beta is not a setting of model mae"),
        (["--epochs", "1", "--data", "a/digits", "digits"], "two have one name"),
        (["--epochs", "1", "--seeds", "0", "0"], "seeds 0 0: one is given twice"),
        (["--epochs", "1", "--extra", 'mae: --data "x'], "cannot be split into flags .No closing quotation"),
        (["--epochs", "1", "--extra", "finetune: --no-such-flag"], 'extra "finetune: ..."'),
        (["--epochs", "1", "--extra", "vae: --epochs many"], 'extra "vae: ..."'),
        ([*GRID, "--losses", "mse", "nonsense"], "loss 'nonsense' is not a sum of"),
        ([*GRID, "--data", "digits", "nowhere"], "data nowhere does not exist"),
        ([*GRID, "--models", "vae", "pca", "--latent-dims", "65"], "pca on digits: latent_dim 65 is not within 1"),
        ([*GRID, "--extra", "vae: --image-size 16"], "extra gives vae images of .*16.* others .*None"),
        ([*GRID, "--minutes", "0"], "max_minutes 0 is not above 0"),
        ([*GRID, "--search", "optuna", "--trial-ratio", "0"], "trial_ratio 0 is not above 0"),
        ([*GRID, "--extra", "mae: --warmup-epochs 3"], "warmup_epochs 3 is not within 0 and the 1 epochs"),
        ([*GRID, "--extra", "finetune: --final-epochs 5"], "final_epochs 5 is not within 0 and 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        if isinstance(arguments, dict):  # what only Python can say
            tinymae.compare(**{"epochs": 1, "output_dir": tmp_path / "new"} | arguments)
        else:
            run(tmp_path / "new", *arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("data", [torch.zeros(2, 1, 8, 8), np.zeros((2, 1, 8, 8)), load_dataset("digits")], ids=type)
def test_images_in_memory_are_refused_with_what_to_give(data):
    for given in (data, ("digits", data)):
        with pytest.raises(InputError, match=f"data of type {type(data).__name__}: .*give a folder or a name; arrays"):
            tinymae.compare(given, epochs=1)


def test_two_processes_are_refused(tmp_path, monkeypatch):
    """Both would lock the folder, and one of them would wait for the other."""
    monkeypatch.setattr(compare, "PartialState", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(InputError, match="compare is one process, but 2 were started: leave out accelerate launch"):
        run(tmp_path / "run", *GRID)
    assert not (tmp_path / "run").exists()


def test_settings_from_python_go_to_their_places(tmp_path):
    with pytest.raises(InputError, match="extra 'vae' has no betta"):
        tinymae.compare(("digits",), epochs=1, extra={"vae": {"betta": 1}}, output_dir=tmp_path / "new")
    for given in ({"beta": 2.0}, "--beta 2"):
        settings = CompareSettings(data=("digits",), epochs=1, extra={"vae": given}, models=("vae",)).resolve()
        assert compare.plan(settings, "digits", {})[0].settings.beta == 2.0


def test_the_working_folder_has_its_own_name(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    settings = CompareSettings(data=".", epochs=1, models="mae").resolve()
    assert compare.plan(settings, ".", {})[0].folder.parts == ("photos", "mae")
    assert PretrainSettings(data=".").data_name == "photos"


def test_settings_are_held_against_the_length_that_was_given():
    settings = CompareSettings(data="digits", epochs=400, models="vae", extra="pretrain: --warmup-epochs 140").resolve()
    assert compare.plan(settings, "digits", {})[0].settings.warmup_epochs == 140


def test_raw_pixels_have_the_size_that_every_model_was_given(tmp_path):
    given = ["--data", "digits", "--models", "pca", "--epochs", "1", "--finetune-epochs", "0", "--latent-dims", "2"]
    given += ["--mixed-precision", "no", "--output-dir", str(tmp_path / "run"), "--extra", "pca: --image-size 12"]
    settings = settings_of(*given).resolve()
    for _ in range(2):  # a second time it resumes
        encoder = compare.check(settings)["digits"]
        assert compare.score_pixels(settings, "digits", encoder)[0]["num_features"] == 144
    other = [*given[:-1], "pca: --image-size 10"]
    before = results_in(tmp_path / "run")
    with pytest.raises(InputError, match="raw_pixels/linear holds another run .train was "):
        run(tmp_path / "run", *other)
    assert results_in(tmp_path / "run") == before
    assert any(row["num_features"] == 100 for row in run(tmp_path / "run", *other, "--overwrite"))


def test_other_arguments_are_refused(compared):
    folder, *_ = compared
    before = results_in(folder)
    for length, message in (
        (("--epochs", 2), r"seed0/pretrain holds another run \(.*epochs was 1, now 2\): choose another folder"),
        (("--minutes", 3), r"max_minutes was None, now 3.*give overwrite, which moves everything aside"),
    ):
        with pytest.raises(InputError, match=message):
            run(folder, *GRID, *length)
    changed = "moves everything aside; to make this part alone anew, remove .*/digits/vae-8/seed0"
    with pytest.raises(InputError, match=f"vae-8/seed0/pretrain holds another run .beta was 1, now 2.* {changed}"):
        run(folder, *GRID, "--extra", "vae: --beta 2")
    assert results_in(folder) == before


def few_digits(count: int) -> dict[str, np.ndarray]:
    """Images and labels of each split, so many at most, as an .npz file has them."""
    splits = {split: load_dataset("digits", split) for split in SPLITS}
    images = {f"{split}_images": dataset.images[:count].numpy() for split, dataset in splits.items()}
    return images | {f"{split}_labels": dataset.labels[:count].numpy() for split, dataset in splits.items()}


def test_other_images_or_labels_are_refused_before_anything_is_read_or_trained(tmp_path):
    few = few_digits(150)
    file, given = tmp_path / "digits.npz", {"models": ("pca",), "epochs": 1, "finetune_epochs": 0}
    given |= {"data": str(file), "mixed_precision": "no", "output_dir": tmp_path / "run"}
    np.savez(file, **few)
    tinymae.compare(**given, latent_dims=(2,))
    before = results_in(tmp_path / "run")
    for name in ("train_images", "train_labels", "test_labels"):
        np.savez(file, **few | {name: few[name][::-1]})
        split = name.partition("_")[0]
        with one_line(f"holds another run .{split} was .*, now .*; to make this part alone anew"):
            tinymae.compare(**given, latent_dims=(2, 4))
        assert results_in(tmp_path / "run") == before
    np.savez(file, **few)
    names = [row["name"] for row in tinymae.compare(**given, latent_dims=(2, 4)).results["rows"]]
    assert names == ["raw pixels", "pca 2", "pca 4"]


def test_a_comparison_of_partly_labelled_images_goes_on(tmp_path):
    few = few_digits(120)
    few["train_labels"][::2] = -1
    np.savez(tmp_path / "digits.npz", **few)
    given = {"data": str(tmp_path / "digits.npz"), "models": ("pca",), "epochs": 1, "finetune_epochs": 0}
    for dims in ((2,), (2, 4)):
        rows = tinymae.compare(**given, latent_dims=dims, mixed_precision="no", output_dir=tmp_path / "run").results[
            "rows"
        ]
    assert [row["name"] for row in rows] == ["raw pixels", "pca 2", "pca 4"]


def test_settings_for_one_place_stand_below_the_tables(compared):
    for name in ("comparison.md", "report.html"):
        text = (compared[0] / name).read_text()
        assert "Settings given by extra: " in text and "finetune (batch_size 64, flip False, layer_decay 0.8)" in text


def test_a_diverged_cell_is_named_and_the_tables_are_written(tmp_path):
    with pytest.raises(InputError, match="the loss of digits/vae-8/seed0 diverged: give a lower --base-lr"):
        run(tmp_path, *GRID, "--models", "vae", "--extra", "vae: --base-lr 1e30")
    assert "raw pixels" in (tmp_path / "comparison.csv").read_text()
    for name in ("comparison.md", "report.html"):
        assert "Left out, as a loss diverged: digits/vae-8/seed0." in (tmp_path / name).read_text()


def test_a_fine_tuning_that_diverges_leaves_the_probes_in_the_table(tmp_path):
    with pytest.raises(InputError, match="the loss of digits/vae-8/seed0/finetune diverged"):
        run(tmp_path, *GRID, "--models", "vae", "--extra", "finetune: --base-lr 1e30")
    rows = {row["name"]: row for row in rows_of(tmp_path / "comparison.csv")}
    assert float(rows["vae 8"]["linear_test"]) > 10 and rows["vae 8"]["finetuned_test"] == ""


# ---- the search, and choosing on validation


def test_a_search_resumes_and_its_best_flags_are_used(tmp_path):
    grid = ["--data", "digits", "--models", "pca", "--epochs", 1, "--search", "optuna"]
    run(tmp_path, *grid, "--trials", 2)
    trials = {name: time for name, time in results_in(tmp_path).items() if "trial0/" in name or "trial1/" in name}
    assert len([name for name in trials if name.endswith("linear/results.json") and "search" in name]) == 2
    rows = run(tmp_path, *grid, "--trials", 3)
    after = results_in(tmp_path)
    assert {name: after[name] for name in trials} == trials
    scores = {}
    for path in tmp_path.glob("digits/search/pca/trial*/linear/results.json"):
        results = json.loads(path.read_text())
        assert "probe_val" in results and not any("test" in key for key in results)
        scores[int(path.parts[-3].removeprefix("trial"))] = results["probe_val"]
    best = read_json(tmp_path / "digits" / "search" / "pca" / "best.json")
    assert sorted(scores) == [0, 1, 2] and best["value"] == max(scores.values()) == scores[best["trial"]]
    assert rows[1]["latent_dim"] == rows[1]["num_features"] == best["settings"]["latent_dim"]
    assert f"trial{best['trial']}" in rows[1]["folder"] and "trial" not in rows[1]["name"]
    assert f"latent_dim {best['settings']['latent_dim']}" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_search_proposes_is_a_model(family):
    digits = load_dataset("digits")
    space = search.search_space(family, values=64, given=())
    study = search.require_optuna().create_study()
    for found in (study.ask(space).params for _ in range(5)):
        settings = PretrainSettings(model=family, **found).resolve()
        assert {name: getattr(settings, name) for name in found} == found
        assert pretrain.create_model(settings, digits, None).num_features > 0
    assert "base_lr" not in search.search_space(family, values=64, given=["base_lr"])


def test_a_family_without_ranges_of_its_own_is_searched_in_those_of_all(monkeypatch):
    monkeypatch.setitem(FAMILIES, "another", FAMILIES["conv_ae"])
    assert search.search_space("another", values=64, given=()).keys() == {"base_lr", "weight_decay"}
    monkeypatch.setitem(FAMILIES, "another", FAMILIES["pca"])  # which is fitted
    assert search.search_space("another", values=64, given=()) == {}


def test_every_family_can_be_compared_by_its_name():
    assert {*FAMILIES} <= {*compare.MODELS} == {*get_args(compare.Name)}
    with pytest.raises(InputError, match="models 'pac' is none of mae, conv_ae, .*, resnet_unet_no_skips"):
        CompareSettings(models=("pac",))


def test_a_search_begins_at_the_recipe_with_the_learning_rate_that_it_comes_to(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(compare, "search", lambda objective, space, recipe, **_: begun.append((space, recipe)))
    arguments = ["--data", "digits", "--models", "conv_ae", "--epochs", "1", "--search", "optuna", "--trials", "1"]
    settings = settings_of(*arguments, "--output-dir", str(tmp_path)).resolve()
    compare.tune(settings, "digits", "conv_ae", compare.check(settings)["digits"])
    ((space, recipe),) = begun
    assert recipe["base_lr"] == pytest.approx(2e-3 * (64 / 512) ** 0.5 * 256 / 64)  # 1,300 images: 64 a step
    assert all(search.holds(space[name], recipe[name]) for name in space)


def test_a_trial_of_a_search_takes_a_part_of_a_pretrainings_length():
    assert compare.training_length(30, 100, 0.2) == {"epochs": 20, "max_minutes": 6}
    assert compare.training_length(None, 2, 0.2) == {"epochs": 1, "max_minutes": None}
    assert compare.training_length(30, None) == {"epochs": compare.NO_END, "max_minutes": 30}


def test_a_search_that_was_cut_proposes_the_same_again(tmp_path):
    space = search.search_space("vae", values=64, given=())
    recipe = {"base_lr": 1e-3, "weight_decay": 0.05, "latent_dim": 128, "width": 64, "beta": 1.0}
    whole, cut = [], []

    def objective(seen, number, settings, *, stop=None):
        seen.append((number, settings))
        if number == stop:
            raise Diverged("stopped")
        return -abs(settings["beta"] - 0.3)

    common = {"folder": tmp_path, "study_name": "s", "trials": 8, "seed": 0}
    best = search.search(partial(objective, whole), space, recipe, storage=tmp_path / "a.db", **common)
    with pytest.raises(Diverged):
        search.search(partial(objective, cut, stop=6), space, recipe, storage=tmp_path / "b.db", **common)
    again = search.search(partial(objective, cut), space, recipe, storage=tmp_path / "b.db", **common)
    study = search.require_optuna().load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'a.db'}")
    assert (study.best_trial.number, study.best_value) == (best["trial"], best["value"])
    assert whole[0] == (0, recipe) and [number for number, _ in whole] == list(range(8))
    assert cut == [*whole[:7], *whole[6:]] and again == best
    assert best["settings"] == max(whole, key=lambda trial: -abs(trial[1]["beta"] - 0.3))[1]
    assert len({settings["beta"] for _, settings in whole}) == 8
