"""The page as people use it: real clicks, keys and files in a headless Chromium, answers held against torch."""

import contextlib
import functools
import http.server
import re
import shutil
import threading

import numpy as np
import pytest
import torch
from browsing import opened
from huggingface_hub import RepoCard
from PIL import Image

from tinymae import InputError, MaskedAutoencoder
from tinymae.interop.page import fetch_runtime, read_samples, write_page
from tinymae.models.classifier import build_classifier
from tinymae.models.conv import ConvAutoencoder

pytest.importorskip("onnxscript", reason="pip install onnx onnxscript")
ROWS, COLUMNS = 4, 6
CLASSES = ["cat", "golden retriever", "owl"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serve(folder):
    """The address of a folder handed out as `python -m http.server` does."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def shown(one_registry, tmp_path_factory):
    """A page of a small random model, wide and in colour, with what it was made of."""
    try:
        fetch_runtime()
    except InputError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("page")
    torch.manual_seed(0)
    sizes = {"image_size": (16, 24), "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
    model = MaskedAutoencoder(**sizes, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3)).eval()
    classifier = build_classifier(model, classes=CLASSES).eval()
    torch.nn.init.normal_(classifier.head.weight, std=3)
    (folder / "images").mkdir()
    for name in ("one image", "another"):  # smooth, so that patches guess something of each other
        coarse = Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (4, 6, 3), dtype=np.uint8))
        coarse.resize((24, 16)).save(folder / "images" / f"{name}.png")
    samples = read_samples(folder / "images", model)
    write_page(model, folder / "page", samples=samples, classifier=classifier)
    return folder, model, classifier, samples


@pytest.fixture
def page(shown, browser):
    """The page in a browser, its model loaded. Whatever goes wrong or leaves the machine fails the test."""
    with serve(shown[0] / "page") as address:
        allowed = (address, "data:", "blob:")
        with opened(browser, address, allowed=allowed, width=1100, height=900) as page:
            yield page


def pixels(page, canvas: str) -> np.ndarray:
    """What a canvas shows: uint8 (H, W, 3)."""
    settle(page)
    data = page.evaluate(
        "(id) => { const c = document.getElementById(id);"
        "return [c.height, c.width, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data] }",
        canvas,
    )
    return np.array(data[2:], dtype=np.uint8).reshape(data[0], data[1], 4)[..., :3]


def settle(page) -> None:
    # Not wait_for_function, which the page's security policy forbids.
    page.evaluate(
        "new Promise((done) => { const look = () => (busy || stale ? setTimeout(look, 5) : done()); look() })"
    )


def patch(page, row: int, column: int):
    return page.locator(f"#patches button >> nth={row * COLUMNS + column}")


def hidden(page) -> list[bool]:
    buttons = page.locator("#patches button")
    return [pressed == "true" for pressed in buttons.evaluate_all("all => all.map(b => b.ariaPressed)")]


@pytest.mark.parametrize("width", [1100, 390])
def test_names_of_classes_are_shown_whole_where_there_is_room(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    names = page.locator("#classes th").evaluate_all(
        "all => all.map(th => [th.scrollWidth, th.clientWidth, th.offsetWidth])"
    )
    assert all(wanted <= shown and whole < 0.5 * width for wanted, shown, whole in names), names


def test_clicked_patches_are_painted_in_as_torch_does(page, shown):
    _, model, classifier, samples = shown
    page.click("text=Show all")
    image = samples[0][1].permute(1, 2, 0).numpy()
    assert np.array_equal(pixels(page, "original"), image)
    assert np.abs(pixels(page, "reconstruction").astype(int) - image).max() <= 1
    mask = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    before = pixels(page, "reconstruction")
    for row, column in [(0, 1), (1, 1), (1, 4), (3, 5)]:
        patch(page, row, column).click()
        mask[row, column] = True
        after = pixels(page, "reconstruction")
        place = (slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
        assert not np.array_equal(after[place], before[place])
        before = after
    assert hidden(page) == mask.flatten().tolist()
    expected = model.reconstruct(samples[0][1][None], mask).images
    difference = np.abs(after.astype(int) - (255 * expected[0]).round().permute(1, 2, 0).numpy())
    assert difference.max() <= 1  # of 255: what rounding may do
    images = torch.stack([samples[0][1], torch.from_numpy(after).permute(2, 0, 1)])
    percent = 100 * classifier(images).softmax(dim=1).T  # (classes, original and reconstruction)
    texts = page.locator("#classes tr").all_inner_texts()
    for text, name, row in zip(texts, CLASSES, percent, strict=True):
        assert text.startswith(name)
        assert [int(n) for n in re.findall(r"(\d+) %", text)] == pytest.approx(row.tolist(), abs=1)
    patch(page, 0, 1).click()
    assert not hidden(page)[1]


def test_a_stroke_paints_what_its_first_patch_did(page):
    page.click("text=Show all")
    start, end = patch(page, 2, 0).bounding_box(), patch(page, 2, 5).bounding_box()
    page.mouse.move(start["x"] + 9, start["y"] + 9)
    page.mouse.down()
    page.mouse.move(end["x"] + 9, end["y"] + 9, steps=12)
    page.mouse.up()
    page.mouse.move(end["x"] + 9, start["y"] - 60)  # a hand that moves on paints nothing
    assert hidden(page) == [row == 2 for row in range(ROWS) for _ in range(COLUMNS)]


def test_the_keyboard_reaches_every_patch(page):
    page.click("text=Show all")
    patch(page, 0, 0).focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowUp", "Space"):
        page.keyboard.press(key)
    assert [i for i, one in enumerate(hidden(page)) if one] == [2]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "ratio"
    page.keyboard.press("ArrowRight")
    assert sum(hidden(page)) == 2 and page.inner_text("#percent") == "8 %"


def test_the_slider_the_buttons_and_the_last_patch(page):
    page.fill("#ratio", "20")
    first = hidden(page)
    assert sum(first) == 20
    page.click("text=New random mask")
    assert sum(hidden(page)) == 20 and hidden(page) != first
    second = hidden(page)
    page.click("text=Invert")
    assert hidden(page) == [not one for one in second]
    page.fill("#ratio", "23")
    settle(page)
    last = hidden(page).index(False)
    patch(page, *divmod(last, COLUMNS)).click()
    assert sum(hidden(page)) == 23 and "has to stay visible" in page.inner_text("#status")


def test_another_image_and_one_of_ones_own(page, shown, tmp_path):
    page.click("[title=another]" if shown[3][0][0] != "another" else "[title='one image']")
    assert np.array_equal(pixels(page, "original"), shown[3][1][1].permute(1, 2, 0).numpy())
    # A tall photograph, blue above and below: the middle is cut out and averaged down.
    photograph = np.zeros((900, 300, 3), dtype=np.uint8)
    photograph[..., 2] = 255
    photograph[350:550] = (200, 100, 50)
    Image.fromarray(photograph).save(tmp_path / "own.png")
    page.set_input_files("#upload", tmp_path / "own.png")
    page.wait_for_selector(".upload.chosen")
    assert np.abs(pixels(page, "original").astype(int) - (200, 100, 50)).max() <= 2
    (tmp_path / "note.png").write_text("no image")
    page.set_input_files("#upload", tmp_path / "note.png")
    page.wait_for_selector("#status.error")
    assert "note.png is not an image" in page.inner_text("#status")


def test_the_folder_is_a_static_space_of_the_hub(shown):
    folder = shown[0] / "page"
    card = RepoCard.load(folder / "README.md", ignore_metadata_errors=False)
    space = card.data.to_dict()
    assert space["sdk"] == "static" and (folder / space["app_file"]).read_text().startswith("<!doctype html>")
    assert len(space["short_description"]) <= 60  # more the Hub refuses
    assert {space["colorFrom"], space["colorTo"]} <= set("red yellow green blue indigo purple pink gray".split())
    assert card.text.strip().startswith(f"# {space['title']}") and space["title"] == "Masked autoencoder"


def test_a_family_that_hides_nothing_shows_what_it_makes_of_the_whole_image(shown, browser, tmp_path):
    torch.manual_seed(0)
    model = ConvAutoencoder(image_size=16, in_channels=3, width=8).eval()
    image = shown[3][0][1][:, :, :16]
    written = write_page(model, tmp_path / "page", samples=[("left", image)])
    assert sorted(written) == sorted(path for path in (tmp_path / "page").rglob("*") if path.is_file())
    with serve(tmp_path / "page") as address:
        allowed = (address, "data:", "blob:")
        with opened(browser, address, allowed=allowed, width=390, height=844) as page:
            expected = (255 * model.reconstruct(image[None]).images[0]).round().permute(1, 2, 0).numpy()
            assert np.abs(pixels(page, "reconstruction").astype(int) - expected).max() <= 1
            assert not page.is_visible("#paint") and not page.is_visible("#controls")
            assert page.inner_text("h1") == page.title() == "Autoencoder"
            assert "hide" not in page.inner_text("body").lower()
            assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen_or_jumps(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    height = page.evaluate("document.documentElement.scrollHeight")
    page.click("text=New random mask")
    settle(page)
    assert page.evaluate("document.documentElement.scrollHeight") == height


def test_a_missing_model_is_said_on_the_page(shown, browser, tmp_path):
    folder = tmp_path / "page"
    shutil.copytree(shown[0] / "page", folder)
    (folder / "reconstruction.onnx").unlink()
    with serve(folder) as address, browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("#status.error")
        assert "reconstruction.onnx: 404" in page.inner_text("#status")
