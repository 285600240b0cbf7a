"""Nearest neighbours: exact, as scikit-learn and brute force find them; votes; the command's sheet and table."""

import numpy as np
import pytest
import torch
from pictures import picture, resized
from PIL import Image
from running import DIGITS, note_sheets, refused, rows_of, save_images, tiny_mae
from sklearn.neighbors import NearestNeighbors

import tinymae
from tinymae import load_dataset
from tinymae.commands import neighbours as command
from tinymae.data.images import read_image
from tinymae.evaluation import neighbours, sheets
from tinymae.evaluation.neighbours import knn_predict, kth_distance, nearest, vote


@pytest.mark.parametrize("count", [7, 64, 3000])
def test_neighbours_are_those_of_scikit_learn(count, monkeypatch):
    monkeypatch.setattr(neighbours, "CELLS", 20 * count)  # several chunks
    bank, queries = torch.randn(count, 5), torch.randn(50, 5)
    cosines, index = nearest(queries, bank, k=4)
    distances, expected = NearestNeighbors(n_neighbors=4, metric="cosine").fit(bank.numpy()).kneighbors(queries.numpy())
    assert np.allclose(1 - cosines.numpy(), distances, atol=1e-5)
    assert (index.numpy() == expected).mean() > 0.99  # but for ties in the last digit


def test_no_row_is_its_own_neighbour_but_a_twin_is():
    bank = torch.randn(40, 6)
    bank[17] = bank[3]
    cosines, index = nearest(bank, bank, k=100, same=True)
    assert index.shape == (40, 39) and not (index == torch.arange(40)[:, None]).any()
    assert index[3, 0] == 17 and index[17, 0] == 3 and cosines[3, 0] == pytest.approx(1)
    brute = torch.nn.functional.cosine_similarity(bank[:, None], bank[None], dim=2).fill_diagonal_(-9)
    ranked = brute.sort(dim=1, descending=True).values
    assert torch.allclose(cosines, ranked[:, :39], atol=1e-5)
    assert torch.allclose(kth_distance(bank, k=7), 1 - ranked[:, 6], atol=1e-5)


def test_a_vote_is_the_weighted_mean_of_the_neighbours_one_hot_labels():
    bank, labels, queries = torch.randn(300, 8), torch.randint(0, 4, (300,)), torch.randn(60, 8)
    cosines, index = nearest(queries, bank, k=20)
    weights = (cosines / 0.07).exp()
    expected = (weights[..., None] * torch.nn.functional.one_hot(labels, 4)[index]).sum(dim=1)
    expected /= expected.sum(dim=1, keepdim=True)
    assert torch.allclose(vote(cosines, labels[index], num_classes=4), expected, atol=1e-5)
    assert torch.equal(knn_predict(bank, labels, queries, num_classes=4), expected.argmax(dim=1))


def test_queries_find_themselves_first(tmp_path):
    model = tiny_mae()
    digits = load_dataset("digits", "test")
    files = save_images(tmp_path / "queries", digits.images[[7, 31, 200]])
    run = tinymae.neighbours(
        **DIGITS, weights=model, split=("test",), query=files[:2], k=3, output_dir=tmp_path / "run"
    )
    rows = rows_of(run.folder / "neighbours.csv")
    assert len(rows) == 2 * 3 and [row["rank"] for row in rows] == ["1", "2", "3"] * 2
    assert [row["name"] for row in rows[::3]] == [digits.names[7], digits.names[31]]
    assert rows[0]["query"] == str(files[0])
    assert rows[0]["label"] == str(int(digits.labels[7])) and rows[0]["split"] == "test"
    with torch.no_grad():
        features = model.encode(digits.images).numpy()
    search = NearestNeighbors(n_neighbors=3, metric="cosine").fit(features)
    distances, index = search.kneighbors(features[[7, 31]])
    assert [row["name"] for row in rows] == [digits.names[place] for place in index.flatten()]
    assert [float(row["cosine"]) for row in rows] == pytest.approx((1 - distances).flatten().tolist(), abs=1e-3)
    sheet = np.asarray(Image.open(run.folder / "neighbours.png"))
    assert sheet.shape[1] == 4 * (96 + 8) + 8
    for column, place in enumerate(index[0], 1):  # the neighbours of the first query, enlarged
        shown = sheet[27:123, 8 + 104 * column : 104 + 104 * column, 0]
        assert np.allclose(shown, resized(digits.images[place, 0], 96), atol=1)
    more = tinymae.neighbours(**DIGITS, weights=model, query=(tmp_path / "queries",), output_dir=tmp_path / "more")
    assert more.results == {"images": 1797, "queries": 3, "k": 8}


def test_queries_and_neighbours_are_shown_from_their_files(tmp_path, monkeypatch):
    for number in range(6):
        picture(tmp_path / f"{number}.png", size=(40, 40), seed=number)
    shown = note_sheets(monkeypatch, command)
    settings = {"weights": tiny_mae(), "split": ("all",), "mixed_precision": "no", "output_dir": tmp_path / "run"}
    tinymae.neighbours(tmp_path, **settings, query=(tmp_path / "3.png",), k=6)
    (tiles,) = shown.values()
    assert len(tiles) == 7
    for tile in tiles:
        assert torch.equal(
            tile.image, read_image(tmp_path / tile.lines[0], (1, 96, 96), depth="uint8").expand(3, -1, -1)
        )


def test_queries_of_sixteen_bits_keep_them_and_find_themselves_first(tmp_path):
    """Of twelve bits, which differ in less than eight of sixteen tell."""
    torch.manual_seed(0)
    save_images(tmp_path / "data", (2000 + 60 * torch.randn(40, 8, 8)).numpy().astype(np.uint16))
    mean, std = load_dataset(tmp_path / "data", "all", image_size=8, channels=1).statistics
    model = tiny_mae(mean=mean, std=std)
    run = tinymae.neighbours(
        tmp_path / "data", weights=model, split=("all",), query=(tmp_path / "data",), k=1, mixed_precision="no",
        output_dir=tmp_path / "run",
    )  # fmt: skip
    rows = rows_of(run.folder / "neighbours.csv")
    assert len(rows) == 40 and all(row["name"] == row["query"].rpartition("/")[2] for row in rows)
    assert all(float(row["cosine"]) > 0.999 for row in rows)


def test_queries_of_floats_are_scaled_as_the_data_are(tmp_path):
    torch.manual_seed(0)
    model = tiny_mae()
    (tmp_path / "data").mkdir()
    for number, image in enumerate(load_dataset("digits", "test").images[:20].numpy()):
        np.save(tmp_path / "data" / f"{number:02}.npy", image / np.float32(255))
    run = tinymae.neighbours(
        tmp_path / "data", weights=model, split=("all",), query=(tmp_path / "data" / "07.npy",), pixel_range=(0, 1),
        k=1, mixed_precision="no", output_dir=tmp_path / "run",
    )  # fmt: skip
    (row,) = rows_of(run.folder / "neighbours.csv")
    assert row["name"] == "07.npy" and float(row["cosine"]) == pytest.approx(1, abs=1e-3)


def test_queries_that_are_none_are_one_line(tmp_path, capsys):
    tiny_mae().save_pretrained(tmp_path / "weights")
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.png").write_text("no image")
    settings = {**DIGITS, "weights": tmp_path / "weights", "output_dir": tmp_path / "run"}
    assert "not_there does not exist" in refused(capsys, "neighbours", **settings, query=("not_there",))
    assert "holds no images" in refused(capsys, "neighbours", **settings, query=(tmp_path / "empty",))
    said = refused(capsys, "neighbours", **settings, query=(tmp_path / "note.png",))
    assert "note.png cannot be read" in said and "skip-unreadable" not in said  # which is for the data
    assert not (tmp_path / "run").exists()


def test_captions_fit_their_image():
    assert sheets.cut("a long name of a file, 29.jpg", 40, ahead=0).lstrip("…") in "file, 29.jpg"
    assert sheets.cut("short", 96) == "short" and sheets.cut("two\nlines", 96) == "two lines"
    shortened = sheets.cut("a/very/long/path/of/an/image.png", 96)
    assert shortened.startswith("a/very") and shortened.endswith("age.png") and "…" in shortened
    assert sheets.font_for(shortened).getlength(shortened) <= 96


def test_a_name_that_is_too_long_for_one_line_has_two(tmp_path):
    assert sheets.caption(("A-Klinik/P0034 lesion_0.jpg", "mole")) == ["P0034 lesion_", "0.jpg", "mole"]
    assert sheets.caption(("photos/0001.png", "cat")) == ["0001.png", "cat"] and sheets.caption(()) == []
    start, end = sheets.caption(("camera3_2024-05-31_site-north_frame_000123.jpg",))
    assert start.startswith("camera3_") and end.startswith("…") and end.endswith("123.jpg")
    start, end = sheets.caption(("0123456789abcdef0123.png",))  # nowhere to break
    assert start + end == "0123456789abcdef0123.png"
    rows = [[sheets.Tile(torch.zeros(3, 8, 8), (name, "cat")) for name in ("0.png", "P0034 lesion_0.jpg")]]
    long, short = (sheets.write_sheet([row], tmp_path / f"{len(row)}.png", "") for row in (rows[0], rows[0][:1]))
    assert Image.open(long).height == Image.open(short).height + sheets.TEXT + 3
