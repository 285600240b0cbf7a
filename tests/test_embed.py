"""Tables of features: what is in them, how they resume, and images without labels."""

import base64
import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import picture
from PIL import Image
from running import DIGITS, FEW, note_sheets, one_line, refused, rows_of, save_images, tiny_mae

import tinymae
from tinymae import InputError, load_dataset
from tinymae.commands import embed as command
from tinymae.commands.features import JoinedSplits
from tinymae.data.images import read_image
from tinymae.evaluation.layout import choose_to_label
from tinymae.models.classifier import build_classifier, feature_function
from tinymae.models.conv import ConvAutoencoder

SPLITS = ["train", "val", "test"]


def read_npz(path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:  # which refuses to unpickle
        return dict(arrays)


def test_the_table_holds_every_image_once_and_what_encode_gives(tmp_path):
    model = tiny_mae()
    run = tinymae.embed(**DIGITS, weights=model, formats=("npz",), output_dir=tmp_path)
    rows = pq.read_table(tmp_path / "embeddings.parquet")
    table = rows.to_pydict()
    features = np.array(table["features"], dtype=np.float32)
    digits = {split: load_dataset("digits", split) for split in SPLITS}
    assert [*table] == ["name", "split", "label", "features"]
    assert table["split"] == [split for split in SPLITS for _ in range(len(digits[split]))]
    assert table["label"] == [str(n) for split in SPLITS for n in digits[split].labels.tolist()]
    assert len({*zip(table["name"], table["split"], strict=True)}) == 1797
    with torch.no_grad():
        expected = torch.cat([model.encode(digits[split].images) for split in SPLITS])
    assert torch.allclose(torch.from_numpy(features), expected, atol=1e-5)
    assert rows.schema.field("features").type.value_type == pa.float32()
    assert run.results["images"] == 1797 and run.results["num_features"] == 16

    arrays = read_npz(tmp_path / "embeddings.npz")
    assert np.array_equal(arrays["features"], features) and arrays["features"].dtype == np.float32
    assert arrays["names"].tolist() == table["name"] and arrays["splits"].tolist() == table["split"]
    assert arrays["classes"][arrays["labels"]].tolist() == table["label"]


@pytest.mark.parametrize("layers", [(0, -1), 2], ids=["by place", "how many of the last"])
def test_images_without_labels_of_one_split_and_other_features(layers, tmp_path):
    model = tiny_mae(depth=2)
    data = {"data": load_dataset("digits").images[:50], "mixed_precision": "no", "formats": ("npz",)}
    tinymae.embed(**data, weights=model, split=("val",), pool="cls", layers=layers, output_dir=tmp_path)
    table = pq.read_table(tmp_path / "embeddings.parquet")
    rows = len(load_dataset(data["data"], "val"))
    assert table.num_rows == rows and set(table["split"].to_pylist()) == {"val"}
    assert table["label"].to_pylist() == [None] * rows
    with torch.no_grad():
        expected = model.encode(load_dataset(data["data"], "val").images, pool="cls", layers=[0, 1])
    assert torch.allclose(torch.tensor(table["features"].to_pylist()), expected, atol=1e-5)
    arrays = read_npz(tmp_path / "embeddings.npz")
    assert arrays["labels"].tolist() == [-1] * rows and not len(arrays["classes"])


def test_the_images_to_label_are_those_of_clusters_without_a_label(tmp_path, monkeypatch):
    def choose(*given, count, seed):
        assert seed == 3
        return choose_to_label(*given, count=count, seed=seed)

    monkeypatch.setattr(command, "choose_to_label", choose)
    digits, common = load_dataset("digits"), {"weights": tiny_mae(), "mixed_precision": "no", "formats": (), "seed": 3}
    labels = [int(label) if row % 50 == 0 else -1 for row, label in enumerate(digits.labels[:500])]
    data = {"data": digits.images[:500], "labels": labels, "split": ("all",), "output_dir": tmp_path}
    tinymae.embed(**common, **data, to_label=30)
    names = [row["name"] for row in rows_of(tmp_path / "to_label.csv")]
    assert len({*names}) == 30 and not any(int(name) % 50 == 0 for name in names)
    assert Image.open(tmp_path / "to_label.png").width > 900
    tinymae.embed(**common, **data, to_label=5)  # of the same table
    assert [row["name"] for row in rows_of(tmp_path / "to_label.csv")] != names[:5]
    with pytest.raises(InputError, match="to_label 5: all 1,300 images of train have a label: leave it out, or "):
        tinymae.embed("digits", **common, split=("train", "val"), to_label=5, output_dir=tmp_path / "labelled")


def test_images_to_label_are_chosen_by_those_of_train_alone_unless_other_splits_are_named(tmp_path, capsys):
    digits, common = (
        load_dataset("digits", "all"),
        {"weights": tiny_mae(), "mixed_precision": "no", "formats": ("npz",)},
    )
    labels = [str(int(label)) if row % 9 == 0 else "" for row, label in enumerate(digits.labels[:300])]
    data = {"data": digits.images[:300], "labels": labels, "to_label": 20}
    run = tinymae.embed(**data, **common, output_dir=tmp_path / "train")
    arrays = read_npz(run.folder / "embeddings.npz")
    ours = arrays["splits"] == "train"
    rows = choose_to_label(arrays["features"][ours], arrays["labels"][ours] >= 0, count=20)
    chosen = [row["name"] for row in rows_of(run.folder / "to_label.csv")]
    assert chosen == arrays["names"][ours][rows].tolist() and {*arrays["splits"]} == {*SPLITS}
    unlabelled = int((arrays["labels"][ours] < 0).sum())
    assert f"to_label.csv: 20 of the {unlabelled} images of train without a label\n" in capsys.readouterr().out
    run = tinymae.embed(**data, **common, split=("val", "test"), output_dir=tmp_path / "others")
    found = [(row["name"], row["split"]) for row in rows_of(run.folder / "to_label.csv")]
    arrays = read_npz(run.folder / "embeddings.npz")
    assert {*found} <= {*zip(arrays["names"], arrays["splits"], strict=True)}
    lines = [
        "path,label,split",
        *(f"{row}.png,{'ab'[row % 2]},train" for row in range(8)),
        "8.png,,test",
        "9.png,,test",
    ]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    for row in range(10):
        picture(tmp_path / f"{row}.png", seed=row)
    with pytest.raises(
        InputError, match="all . images of train have a label: leave it out, or .*other splits by --split"
    ):
        tinymae.embed(tmp_path / "table.csv", **common, to_label=2, output_dir=tmp_path / "refused")


@pytest.mark.parametrize("split", [SPLITS, ["val"]], ids=["all splits", "val"])
def test_a_split_without_any_label_has_images_to_label(split, tmp_path):
    """So few labels are there at the start that train alone has some."""
    images, labels = load_dataset("digits").images[:60], [*"ab", *[""] * 58]
    assert load_dataset(images, "val", labels=labels).labels is None
    common = {"weights": tiny_mae(), "formats": (), "mixed_precision": "no", "output_dir": tmp_path}
    run = tinymae.embed(images, labels=labels, split=split, to_label=2, **common)
    assert len(rows_of(run.folder / "to_label.csv")) == 2


def test_the_table_of_images_to_label_is_data_once_it_is_filled_in_beside_them(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    for number in range(40):
        picture(photos / f"hall {number % 3}" / f"{number}.png", size=(40, 40), seed=number)
    common = {"weights": tiny_mae(), "formats": (), "to_label": 30, "mixed_precision": "no"}
    remedy = r"a folder unlabelled/ beside .*, or photos/\*/ if folders are no classes"
    with one_line(f"to_label 30: all 3. images of train have a label: .*{remedy}"):
        tinymae.embed(photos, **common, output_dir=tmp_path / "refused")
    sheets = note_sheets(monkeypatch, command)
    tinymae.embed(sorted(photos.iterdir()), **common, output_dir=tmp_path / "run")
    for tile in sheets["to_label.png"]:  # from the file, for a person to recognise: the encoder sees 8 x 8 pixels
        seen = read_image(photos / tile.lines[0], (1, 96, 96), depth="uint8")
        assert torch.equal(tile.image, seen.expand(3, -1, -1))
    rows = [*csv.DictReader((tmp_path / "run" / "to_label.csv").open())]
    assert [*rows[0]] == ["path", "label"] and {row["label"] for row in rows} == {""}
    table = photos / "to_label.csv"
    shutil.copy(tmp_path / "run" / "to_label.csv", table)
    assert load_dataset(table, "all").labels is None  # nothing is filled in yet
    cats = {row["path"]: "cat" if number % 2 else "dog" for number, row in enumerate(rows[:-3])}  # and some stay empty
    table.write_text("path,label\n" + "".join(f"{row['path']},{cats.get(row['path'], '')}\n" for row in rows))
    dataset = load_dataset(table, "all", image_size=8)
    found = dict(zip(dataset.names, dataset.labels.tolist(), strict=True))
    numbers = {"cat": 0, "dog": 1, "": -1}
    assert found == {row["path"]: numbers[cats.get(row["path"], "")] for row in rows}
    full = photos / "full.csv"
    full.write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in cats.items()))
    with pytest.raises(InputError, match="or give images without one: .*rows of a table with an empty label"):
        tinymae.embed(full, **common, output_dir=tmp_path / "refused")
    probe = tinymae.linear_probe(table, weights=tiny_mae(), output_dir=tmp_path / "probe", mixed_precision="no")
    assert probe.model.classes == ["cat", "dog"]


def test_images_with_several_labels_are_not_chosen_from(tmp_path):
    digits = load_dataset("digits")
    several = {"labels": np.eye(10, dtype=np.uint8)[digits.labels[:100]], "mixed_precision": "no"}
    with pytest.raises(InputError, match="to_label 5: these images may have several labels each; leave it out"):
        tinymae.embed(digits.images[:100], **several, weights=tiny_mae(), to_label=5, output_dir=tmp_path)


@pytest.mark.parametrize("comes", [True, False])
def test_a_split_that_came_or_went_since_is_other_data(comes, tmp_path):
    """Its images would be missing from the table, or still in it, although those of the other splits are the same."""
    for split, count in {"train": 4, "val": 2, "test": 1}.items():
        save_images(tmp_path / "images" / split, load_dataset("digits").images[:count])
    inside, outside = tmp_path / "images" / "test", tmp_path / "test"
    settings = {"weights": tiny_mae(), "formats": (), "mixed_precision": "no", "output_dir": tmp_path / "run"}
    if comes:
        inside.rename(outside)
    assert tinymae.embed(tmp_path / "images", **settings).results["images"] == (6 if comes else 7)
    (outside if comes else inside).rename(inside if comes else outside)
    message = "test was None, now '1 images" if comes else "test was '1 images.*', now None"
    with pytest.raises(InputError, match=f"holds another run .{message}"):
        tinymae.embed(tmp_path / "images", **settings)


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "PART", 500)
    model = tiny_mae()
    settings = {**DIGITS, "weights": model, "formats": ("npz",), "batch_size": 100}
    tinymae.embed(**settings, output_dir=tmp_path / "whole")
    counted = 0

    def stop(*arguments, **keywords):
        nonlocal counted
        counted += 1
        if counted == 3:
            raise KeyboardInterrupt
        return map_images(*arguments, **keywords)

    map_images = command.map_images
    monkeypatch.setattr(command, "map_images", stop)
    with pytest.raises(KeyboardInterrupt):
        tinymae.embed(**settings, output_dir=tmp_path / "stopped")
    assert sorted(path.name for path in (tmp_path / "stopped" / "parts").iterdir()) == [
        "000000.parquet",
        "000001.parquet",
    ]
    run = tinymae.embed(**settings, output_dir=tmp_path / "stopped")
    assert counted == 3 + 2  # of four parts two were there
    for name in ("embeddings.parquet", "embeddings.npz"):
        a, b = ((tmp_path / folder / name) for folder in ("whole", "stopped"))
        if name.endswith("npz"):
            assert all(np.array_equal(read_npz(a)[key], read_npz(b)[key]) for key in read_npz(a))
        else:
            assert pq.read_table(a).equals(pq.read_table(b))
    assert not (run.folder / "parts").exists()


def test_the_projector_finds_names_and_a_sprite(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "PROJECTED", 10)
    run = tinymae.embed(**DIGITS, weights=tiny_mae(), formats=("projector",), output_dir=tmp_path)
    (folder,) = (run.folder / "projector").glob("*/features")
    with open(folder / "metadata.tsv") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert rows[0] == ["name", "split", "label"] and len(rows) == 11
    table = pq.read_table(tmp_path / "embeddings.parquet").to_pydict()
    of_image = dict(zip(zip(table["name"], table["split"], strict=True), table["features"], strict=True))
    expected = [of_image[name, split] for name, split, _ in rows[1:]]
    np.testing.assert_allclose(np.loadtxt(folder / "tensors.tsv"), expected, atol=1e-5)
    sprite = np.asarray(Image.open(folder / "sprite.png").convert("L"))
    assert sprite.shape == (32, 32)  # 4 x 4 images of 8 pixels
    for number, (name, split, _) in enumerate(rows[1:]):
        digits, (row, column) = load_dataset("digits", split), divmod(number, 4)
        tile = sprite[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert np.array_equal(tile, digits.images[digits.names.index(name), 0])
    assert "sprite.png" in (run.folder / "projector" / "projector_config.pbtxt").read_text()


def test_the_map_knows_class_cluster_and_split_of_each_image(tmp_path, monkeypatch):
    def lay_out(features, seed):
        assert seed == FEW["seed"]
        return features[:, :2].clip(0, 1)

    def find_clusters(features, *, count, seed, find=command.find_clusters):
        assert seed == FEW["seed"]
        return find(features, count=count, seed=seed)

    monkeypatch.setattr(command, "lay_out", lay_out)  # for where an image is to be known
    monkeypatch.setattr(command, "find_clusters", find_clusters)
    run = tinymae.embed(**FEW, weights=tiny_mae(), formats=("map",), clusters=3, output_dir=tmp_path)
    table = pq.read_table(tmp_path / "embeddings.parquet").to_pydict()
    text = (run.folder / "map.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert sorted(data["names"]) == sorted(table["name"]) and len(data["names"]) == 80
    values = {each["name"]: np.frombuffer(base64.b64decode(each["values"]), "<u2") for each in data["colourings"]}
    labels = {each["name"]: each["labels"] for each in data["colourings"]}
    assert [*values] == ["class", "cluster", "split"] and labels["cluster"] == ["cluster 0", "cluster 1", "cluster 2"]
    for colouring, column in {"class": "label", "split": "split"}.items():
        shown = [labels[colouring][value] for value in values[colouring]]
        given = dict(zip(table["name"], table[column], strict=True))
        assert shown == [given[name] for name in data["names"]]
    features = dict(zip(table["name"], np.array(table["features"]), strict=True))
    places = np.frombuffer(base64.b64decode(data["places"]), "<u2").reshape(-1, 2) / 65535
    expected = lay_out(np.array([features[name] for name in data["names"]]), seed=FEW["seed"])
    np.testing.assert_allclose(places, expected, atol=1e-4)


def test_a_repeated_run_writes_the_projector_anew_and_tensorboard_does_not_warn(tmp_path, capfd):
    settings = FEW | {"weights": tiny_mae(), "formats": ("projector",), "output_dir": tmp_path}
    files = []
    for _ in range(2):
        tinymae.embed(**settings)
        files.append({path.relative_to(tmp_path) for path in tmp_path.glob("projector/*/*/*")})
    assert files[0] == files[1] and len(files[0]) == 3
    out, err = capfd.readouterr()
    assert "Embedding dir exists" not in out + err


def test_every_kind_of_weights_gives_features():
    images = load_dataset("digits").images[:4]
    model = tiny_mae(depth=2)
    with torch.no_grad():
        for pool in ("avg", "cls"):
            classifier = build_classifier(model, classes=["a", "b"], pool=pool).eval()
            assert torch.allclose(feature_function(classifier)(images), model.encode(images, pool=pool), atol=1e-5)
            other = feature_function(classifier, pool="avg", layers=[0, 1])(images)
            assert torch.allclose(other, model.encode(images, layers=[0, 1]), atol=1e-5)
        conv = ConvAutoencoder(image_size=8, in_channels=1, width=8, latent_dim=6).eval()
        assert torch.equal(feature_function(conv, pool="avg")(images), conv.encode(images))
    with pytest.raises(InputError, match="a ConvAutoencoder is no ViT, leave it out"):
        feature_function(conv, layers=[0])
    with pytest.raises(InputError, match="pool 'cls' is not 'avg'"):
        feature_function(conv, pool="cls")


def test_splits_in_one_row_are_found_in_any_order():
    parts = {split: load_dataset("digits", split) for split in SPLITS}
    joined = JoinedSplits(parts)
    deep = JoinedSplits({
        name: replace(part, images=(257 * part.images.int()).to(torch.uint16)) for name, part in parts.items()
    })  # fmt: skip
    every = torch.cat([part.images for part in parts.values()])
    assert len(joined) == len(every) == 1797 and joined.image_shape == (1, 8, 8)
    for indices in (torch.tensor([1796, 0, 1300, 1300, 1299, 5]), torch.arange(20), torch.tensor([1436, 1437])):
        assert torch.equal(joined[indices], every[indices])
        assert torch.equal(deep[indices].int(), 257 * every[indices].int())
    splits = [split for _, split, _ in joined.about(torch.tensor([0, 1299, 1300, 1436, 1437]))]
    assert splits == ["train", "train", "val", "val", "test"]


def test_a_folder_with_another_table_is_refused(tmp_path, capsys):
    tiny_mae(depth=2).save_pretrained(tmp_path / "weights")
    settings = {**DIGITS, "weights": tmp_path / "weights", "output_dir": tmp_path / "run"}
    tinymae.embed(**settings, formats=("npz",))
    assert "holds another run (layers was [-1], now [0]" in refused(capsys, "embed", **settings, layers=(0,))
    shutil.rmtree(tmp_path / "run")
    assert "layers (7,) must name some of this encoder's 2" in refused(capsys, "embed", **settings, layers=(7,))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ((), r"split \(\) is empty: give one or several of train, val, test, all"),
        (("train", "all"), "split train all: all has the images of the others; give it alone, or them"),
        (("train", "val"), "split train val: data photos have none of them; give --split all"),
    ],
)
def test_splits_that_give_no_image_or_one_twice_are_refused(split, message, tmp_path):
    save_images(tmp_path / "photos" / "test", load_dataset("digits").images[:4])
    with pytest.raises(InputError, match=message):
        tinymae.embed(tmp_path / "photos", weights=tiny_mae(), split=split, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_channel_that_is_dead_is_remarked_on(tmp_path, capsys):
    values = np.random.default_rng(0).integers(0, 256, (40, 5, 8, 8), dtype=np.uint8)
    mean, std = load_dataset(values, "all").statistics
    values[:, 3] = 0
    model = tiny_mae(in_channels=5, mean=mean, std=std)
    tinymae.embed(values, weights=model, mixed_precision="no", formats=[], output_dir=tmp_path)
    assert "in channel 3 the images have 0 times the contrast" in capsys.readouterr().out


@pytest.mark.parametrize("given", [{}, {"pixel_range": (0, 4095)}])
def test_images_of_quite_another_contrast_than_those_of_training_are_remarked_on(given, tmp_path, capsys):
    """Values of 12 bits, read by the range of 16 or by their own."""
    values = np.random.default_rng(0).integers(0, 4096, (40, 1, 8, 8), dtype=np.uint16)
    mean, std = load_dataset(values, "all", pixel_range=(0, 4095)).statistics
    model = tiny_mae(mean=mean, std=std)
    tinymae.embed(values, weights=model, mixed_precision="no", formats=[], output_dir=tmp_path, **given)
    assert ("were these read with another pixel_range?" in capsys.readouterr().out) == (not given)


def test_a_killed_embed_leaves_nothing_that_stops_the_next(tmp_path):
    """Amid a part of the table, and after the table but before its parts were removed."""
    parts = tmp_path / "parts"
    for left in (".000000.parquet.partial-7", "000000.parquet"):
        parts.mkdir()
        (parts / left).touch()
        if left == "000000.parquet":
            assert (tmp_path / "embeddings.parquet").exists()
        tinymae.embed(**FEW, weights=tiny_mae(), output_dir=tmp_path, formats=())
        assert not parts.exists()
