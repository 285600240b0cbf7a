"""Which images are of which split, and which of their labels are used."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import SPLITS, every_split, picture, pixels, write_table
from PIL import Image
from pyarrow import parquet
from running import one_line

from tinymae import InputError, load_dataset
from tinymae.commands.settings import LabelSettings
from tinymae.data.load import load_splits
from tinymae.data.splits import balanced, few_labels, hash_names, held_out, split_by_hash


def test_an_image_more_moves_no_other(tmp_path):
    for number in range(300):
        picture(tmp_path / ("cat" if number % 2 else "dog") / f"{number}.png", size=(2, 2), seed=number)
    before = {split: set(dataset.names) for split, dataset in every_split(tmp_path, image_size=2).items()}
    assert set.union(*before.values()) == {f"{'cat' if n % 2 else 'dog'}/{n}.png" for n in range(300)}
    assert 15 < len(before["val"]) < 50 and 15 < len(before["test"]) < 50  # a tenth of 300, give or take
    for number in range(300, 340):
        picture(tmp_path / "cat" / f"{number}.png", size=(2, 2))
    (tmp_path / "cat" / "1.png").unlink()
    after = {split: set(dataset.names) for split, dataset in every_split(tmp_path, image_size=2).items()}
    for split in SPLITS:
        assert before[split] - {"cat/1.png"} <= after[split]


def test_small_folders_keep_every_class_in_train_and_no_split_empty(tmp_path):
    for name in "abcdefghij":
        picture(tmp_path / name / "only.png")
    for number in range(9):
        picture(tmp_path / "a" / f"{number}.png", seed=number)
    splits = every_split(tmp_path, image_size=8, val_fraction=0.4, test_fraction=0.4)
    assert set(splits["train"].labels.tolist()) == set(range(10))
    assert all(len(dataset) for dataset in every_split(tmp_path, image_size=8, val_fraction=1e-6).values())


def test_what_is_held_out_of_named_sets_stays_so():
    """Released scores are of these images, which a seed that is part of the protocol has drawn."""
    assert held_out(50_000, {"val": 2000})["val"][:5].tolist() == [18, 72, 89, 101, 122]


def test_a_fold_without_test_images_is_learned_from_whole(tmp_path):
    rows = [{"path": f"{n:02}.png", "label": n % 2, "fold0": "val" if n % 3 else "train"} for n in range(60)]
    table = write_table(tmp_path, rows)
    fold, plain = (LabelSettings(data=table, split_column=column, no_test=True) for column in ("fold0", None))
    sizes = {"image_size": 8, "channels": 3}
    named = {name: [row["path"] for row in rows if row["fold0"] == name] for name in ("train", "val")}
    assert {name: split.names for name, split in fold.load_labelled(**sizes).items()} == named
    for asked in (replace(fold, no_test=False), replace(fold, test_fraction=0.3), plain):
        splits = asked.load_labelled(**sizes)
        train = named["train"] if asked.split_column else [row["path"] for row in rows]
        test = load_dataset(table, "test", split_column=asked.split_column, test_fraction=asked.test_fraction).names
        assert test and splits["train"].names == [name for name in train if name not in {*test, *splits["val"].names}]
    with pytest.raises(InputError, match="a larger --test-fraction, or leave test out: --no-test"):
        replace(fold, no_test=False, test_fraction=0).load_labelled(**sizes)


@pytest.mark.parametrize("limit", [4, 0], ids=["in memory", "streamed"])
def test_images_that_are_data_again_stay_in_their_splits(classes_folder, tmp_path, limit):
    encoded = [(classes_folder / "dog" / f"{number:02}.png").read_bytes() for number in range(0, 30, 2)] * 4
    parquet.write_table(pa.table({"image": encoded}), tmp_path / "rows.parquet")
    for data in (classes_folder, pixels(60, 8, 8), tmp_path / "rows.parquet"):
        sizes = {"image_size": 8, "channels": 1, "val_fraction": 0.3, "test_fraction": 0.2}
        whole = load_dataset(data, "all", image_size=8, channels=1, memory_limit_gb=limit)
        for split in ("train", "val", "test"):
            expected = load_dataset(data, split, **sizes)
            again = load_dataset(whole, split, **sizes)
            assert again.names == expected.names and torch.equal(again[:][0], expected.images)


@pytest.mark.parametrize("limit", [4, 0], ids=["in memory", "streamed"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_images_held_out_of_a_named_set_stay_held_out(split, limit):
    given = load_dataset("digits", split, memory_limit_gb=limit)
    assert load_dataset(given, split).names == given.names
    with one_line(rf"digits has no images for train, only {len(given)} {split}: give other data"):
        load_dataset(given, "train")


@pytest.mark.parametrize(
    ("folders", "split", "said"),
    [
        (["train", "test"], "train", "val held out of train by a hash of each image's own name"),
        (["train", "val", "test"], "train", "as the data come"),
        (["a", "b"], "train", "val and test held out of train by a hash of each image's own name"),
    ],
)
def test_it_is_said_which_splits_were_held_out(folders, split, said, tmp_path):
    for folder in folders:
        (tmp_path / folder / "c").mkdir(parents=True)
        for number in range(20):
            Image.new("L", (4, 4), number).save(tmp_path / folder / "c" / f"{number}.png")
    dataset = load_dataset(tmp_path, split, image_size=4)
    assert dataset.description[1].endswith(f" ({said})")
    whole = load_dataset(tmp_path, "all", image_size=4)
    assert whole.description[1] == f"splits: all {20 * len(folders)}"
    unlabelled = load_dataset(whole.images, "train")
    assert unlabelled.description[1].endswith(" (val held out of train by a hash of each image's own name)")


def test_images_with_masks_are_held_out_as_those_with_labels_are():
    images = pixels(200, 4, 4)
    masked = load_splits(images, SPLITS, masked=True)
    labelled = load_splits(images, SPLITS, labels=[0, 1] * 100)
    assert {name: split.names for name, split in masked.items()} == {name: of.names for name, of in labelled.items()}


# ---- groups


@pytest.fixture
def films(tmp_path):
    """Forty frames of each of ten films, two classes; a table of them as well."""
    lines = ["path,label,film"]
    for number, pixel in enumerate(pixels(400, 8, 8)):
        film, label = number % 10, "cat" if number % 3 else "dog"
        path = tmp_path / "films" / label / f"film{film}_frame{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixel).save(path)
        lines.append(f"films/{label}/{path.name},{label},{film}")
    (tmp_path / "films.csv").write_text("\n".join(lines))
    return tmp_path


def film_of(name: str) -> str:
    return name.split("film")[-1].split("_")[0]


@pytest.mark.parametrize("kind", ["folder", "column", "hugging face"])
def test_images_of_a_group_stay_in_one_split(films, kind):
    grouped = {"group_pattern": r"film(\d+)_frame\d+"}  # what is in brackets
    data, channels = films / "films", {"channels": 1}
    if kind != "folder":
        grouped, data = {"group_column": "film"}, films / "films.csv"
    if kind == "hugging face":
        hub = pytest.importorskip("datasets")
        rows = [line.split(",") for line in data.read_text().splitlines()[1:]]
        names, labels, films_of = zip(*rows, strict=True)
        columns = {"image": [str(films / name) for name in names], "label": labels, "film": films_of}
        data = hub.Dataset.from_dict(columns).cast_column("image", hub.Image())
        found = {split: load_dataset(data, split, **grouped, **channels) for split in ("train", "val", "test")}
        films_in = {split: {films_of[int(name.split("/")[1])] for name in of.names} for split, of in found.items()}
    else:
        found = {split: load_dataset(data, split, **grouped, **channels) for split in ("train", "val", "test")}
        films_in = {split: set(map(film_of, dataset.names)) for split, dataset in found.items()}
    assert sum(map(len, films_in.values())) == 10 and set.union(*films_in.values()) == {*"0123456789"}
    assert sum(map(len, found.values())) == 400 and all(len(dataset) % 40 == 0 for dataset in found.values())
    assert "by a hash of each image's group, one of 10" in "\n".join(found["val"].description)
    plain = load_dataset(data, "val", **channels)
    assert len(plain) % 40  # by themselves the frames are torn apart


@given(
    labels=st.lists(st.tuples(st.integers(0, 8), st.integers(-1, 2)), min_size=12, max_size=40),
    fractions=st.sampled_from([{"val": 0.1}, {"val": 0.3, "test": 0.3}, {"val": 0.0, "test": 0.6}]),
)
def test_no_group_is_torn_and_no_class_is_lost_whatever_the_groups(labels, fractions):
    groups, classes = np.array(labels).T
    places = hash_names(map(str, groups))
    parts = split_by_hash(places, fractions, classes, grouped=len({*groups}) < len(groups))
    assert sorted(np.concatenate([*parts.values()])) == [*range(len(groups))]
    assert len(set(groups)) == sum(len(set(groups[rows])) for rows in parts.values())
    if len(set(groups)) < len(groups):
        assert {*classes[parts["train"]], -1} == {*classes, -1}


@given(
    rows=st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=4, max_size=30),
    fractions=st.sampled_from([{"val": 0.1, "test": 0.1}, {"val": 0.3, "test": 0.3}, {"val": 0.0, "test": 0.6}]),
)
def test_no_image_is_in_two_splits_though_one_of_its_rows_lacks_the_label(rows, fractions):
    images, has_label = np.array(rows).T
    parts = split_by_hash(hash_names(map(str, images)), fractions, np.where(has_label, images % 3, -1))
    assert sorted(np.concatenate([*parts.values()])) == [*range(len(rows))]
    assert len(set(images)) == sum(len(set(images[part])) for part in parts.values())


def test_rows_without_a_label_move_no_image_of_a_table(tmp_path):
    names = [f"{number}.png" for number in range(12)]
    for name in names:
        Image.new("L", (4, 4)).save(tmp_path / name)
    labelled = [f"{name},{'cat' if place % 2 else 'dog'}" for place, name in enumerate(names[:8])]
    others = [f"{name}," for name in names[8:]]
    found = []
    for rows in (labelled + others, labelled + others + [f"{name}," for name in names]):
        (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
        found.append(
            {split: {*load_dataset(tmp_path / "table.csv", split).names} for split in ("train", "val", "test")}
        )
    assert found[0] == found[1] and sum(map(len, found[0].values())) == 12


@pytest.mark.parametrize("split", ["test", "all"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"val_fraction": 7.0}, "val_fraction 7 is not within 0 and 1"),
        ({"test_fraction": float("nan")}, "test_fraction nan is not within 0 and 1"),
        ({"group_pattern": "("}, r"group_pattern '\(' is no regular expression: "),
        ({"group_pattern": "a", "group_column": "b"}, "group_column and group_pattern are two ways to say the same"),
    ],
)
def test_what_cannot_be_right_is_refused_where_it_would_not_be_used(tmp_path, split, wrong, message):
    (tmp_path / "test").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "test" / "1.png")
    assert len(load_dataset(tmp_path, split)) == 1
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path, split, **wrong)


@pytest.mark.parametrize("absolute", [False, True])
def test_an_image_without_a_group_is_one_of_its_own(films, absolute):
    header, *lines = (films / "films.csv").read_text().splitlines()
    rows = [(f"{films}/{line}" if absolute else line).split(",") for line in lines]
    blank = {path for path, *_ in rows[::7]}
    table, size = films / "blank.csv", {"image_size": 8, "channels": 1}
    cells = [[path, label, " " if path in blank else film] for path, label, film in rows]
    table.write_text("\n".join([header, *map(",".join, cells)]))
    alone, grouped = every_split(table, **size), every_split(table, **size, group_column="film")
    for split, dataset in grouped.items():
        assert {*dataset.names} & blank == {*alone[split].names} & blank != set()
    films_in = [{film_of(name) for name in {*dataset.names} - blank} for dataset in grouped.values()]
    assert sum(map(len, films_in)) == len(set.union(*films_in)) == 10
    assert f"groups: {len(blank)} rows have none, and each is one of its own" in grouped["train"].description


@pytest.mark.parametrize("limit", [4, 0], ids=["in memory", "streamed"])
def test_data_again_keep_their_groups(films, limit):
    reading = {"group_column": "film", "channels": 1, "memory_limit_gb": limit}
    train = load_dataset(films / "films.csv", "train", **reading)
    parts = {split: load_dataset(train, split) for split in ("train", "val", "test")}
    films_in = [set(map(film_of, part.names)) for part in parts.values()]
    assert sum(map(len, films_in)) == len(set.union(*films_in)) == len(set(map(film_of, train.names)))
    some = train.subset([0, 5, 7])
    assert list(some.groups) == [film_of(name) for name in some.names]


def test_a_named_set_has_no_groups(mnist_dir):
    with pytest.raises(InputError, match="group_pattern '1': data mnist has splits of its own; leave it out"):
        load_dataset("mnist", data_dir=mnist_dir, group_pattern="1")


@pytest.mark.parametrize(
    ("column", "remedy"),
    [
        ("film", "each group left in train is the only one of a class: give another group column or pattern, or"),
        (None, "each image left in train is the only one of a class: give more images, or splits of your own"),
    ],
)
def test_it_is_said_why_nothing_can_be_held_out(films, column, remedy):
    label = "film" if column else "path"
    with pytest.raises(InputError, match=f"films has no images for val, only 400 train: {remedy}"):
        load_splits(films / "films.csv", ["val"], labelled=True, label_column=label, group_column=column, channels=1)


def test_groups_that_cannot_be_are_refused_and_those_that_are_torn_are_said(films):
    for wrong, says in [
        ({"group_pattern": "reel"}, "group_pattern 'reel' is not found in cat/film.*, the name of an image of films"),
        ({"group_pattern": "film"}, "data films: 1 group of images cannot be cut into train, val and test: .*"),
        ({"group_column": "film"}, "group_column film is of tables, .*"),
    ]:
        with pytest.raises(InputError, match=f"^{says}$"):
            load_dataset(films / "films", **wrong)
    with pytest.raises(InputError, match="group_column reel is none of table .*films.csv's columns, path, label, film"):
        load_dataset(films / "films.csv", group_column="reel")
    table = (films / "films.csv").read_text().splitlines()
    split = [
        table[0] + ",split",
        *(f"{line},{'test' if number < 31 else 'train'}" for number, line in enumerate(table[1:])),
    ]
    (films / "own.csv").write_text("\n".join(split))
    description = load_dataset(films / "own.csv", group_column="film", channels=1).description
    assert "groups: 10 of 10 are in more than one split (0, 1, 2, ...)" in description


# ---- few labels


def test_few_labels_take_the_same_share_of_each_class():
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 3)
    chosen = labels[few_labels(labels, 0.1, seed=1)]
    assert chosen.bincount().tolist() == [10, 5, 1]
    assert torch.equal(few_labels(labels, 0.1, 1), few_labels(labels, 0.1, 1))
    assert not torch.equal(few_labels(labels, 0.1, 1), few_labels(labels, 0.1, 2))
    assert len(few_labels(labels, 1.0, 1)) == len(labels)


def test_a_command_chooses_labels_by_class_and_seed_and_those_of_validation_by_their_own_setting():
    splits = {name: load_dataset("digits", name) for name in ("train", "val")}
    one, other = (LabelSettings(label_fraction=0.1, seed=seed).choose_labels(splits) for seed in (1, 2))
    assert torch.equal(one["train"].labels.bincount(), (0.1 * splits["train"].labels.bincount()).round().long())
    assert one["train"].names != other["train"].names and one["val"] is splits["val"]
    assert LabelSettings(val_labels=20).choose_labels(splits)["val"].labels.bincount().tolist() == [2] * 10


def test_a_balanced_choice_takes_as_many_of_each_class_as_it_can():
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 3)
    for count, expected in [(1, [0, 0, 1]), (9, [3, 3, 3]), (10, [3, 3, 4]), (23, [10, 10, 3]), (153, [100, 50, 3])]:
        chosen = balanced(labels, count, seed=1)
        assert len(chosen.unique()) == count
        assert labels[chosen].bincount(minlength=3).sort().values.tolist() == sorted(expected)
    assert torch.equal(balanced(labels, 9, 1), balanced(labels, 9, 1))
    assert not torch.equal(balanced(labels, 9, 1), balanced(labels, 9, 2))
    for count in (0, 154):
        with pytest.raises(InputError, match=f"val_labels {count} is not within 1 and the 153 validation images"):
            balanced(labels, count, 1)
