"""The map as people use it: pointed at, zoomed, searched and drawn around in a headless Chromium."""

import json
import re

import numpy as np
import pytest
import torch
from browsing import opened

from tinymae.evaluation.map import Colouring, by_place, write_map

# Twenty columns of fifteen images; the colour says which: red grows to the right, green downwards.
COLUMNS, ROWS = 20, 15
COUNT = COLUMNS * ROWS
EVIL = "</script><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A page of a grid of images."""
    column, row = torch.arange(COUNT) % COLUMNS, torch.arange(COUNT) // COLUMNS
    pixels = torch.stack([12 * column, 16 * row, torch.zeros(COUNT, dtype=torch.long)], dim=1).to(torch.uint8)
    names = [f"row {r} column {c}.png" for r, c in zip(row.tolist(), column.tolist(), strict=True)]
    names[7] = EVIL
    return write_map(
        tmp_path_factory.mktemp("map") / "map.html", names=names, side=8, title="Grid", subtitle="a test",
        places=np.stack([(column.numpy() + 0.5) / COLUMNS, (row.numpy() + 0.5) / ROWS], axis=1).astype(np.float32),
        images=lambda rows: pixels[rows][..., None, None].expand(-1, -1, 8, 8),
        colourings=[Colouring("half", ["left", "right"], (column >= COLUMNS // 2).long().numpy()),
                    Colouring("row", [str(r) for r in range(ROWS)], row.numpy())],
    )  # fmt: skip


@pytest.fixture
def page(shown, browser):
    """The page opened from its file. Whatever goes wrong or asks the network fails the test."""
    with opened(browser, shown.as_uri(), allowed=("file:", "data:"), width=1000, height=700) as page:
        yield page


def where(page, column, row) -> tuple[float, float]:
    """Where an image lies on the screen."""
    box = page.locator("#points").bounding_box()
    view = page.evaluate("view")
    x, y = (column + 0.5) / COLUMNS, (row + 0.5) / ROWS
    return box["x"] + view["x"] + x * view["scale"], box["y"] + view["y"] + y * view["scale"]


def under(page, x: float, y: float) -> list[float]:
    """The place on the map that is at a point of the screen."""
    box = page.locator("#points").bounding_box()
    return page.evaluate(
        "([x, y]) => [(x - view.x) / view.scale, (y - view.y) / view.scale]", [x - box["x"], y - box["y"]]
    )


def settle(page) -> None:
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def pixel(page, x: float, y: float) -> list[int]:
    """What the map shows at a point of the screen: red, green, blue, opacity."""
    box = page.locator("#points").bounding_box()
    return page.evaluate(
        "([x, y]) => [...document.getElementById('points').getContext('2d').getImageData(x, y, 1, 1).data]",
        [x - box["x"], y - box["y"]],
    )


def colours(page, selector: str) -> np.ndarray:
    """The middle pixel of a canvas."""
    return page.evaluate(
        "(s) => { const c = document.querySelector(s);"
        "return [...c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data] }", selector,
    )  # fmt: skip


def test_pointing_shows_the_image_and_its_name(page):
    page.mouse.move(*where(page, 13, 4))
    assert page.inner_text("#card figcaption").splitlines() == ["row 4 column 13.png", "half: right", "row: 4"]
    page.wait_for_timeout(50)  # the sheet is decoded
    assert np.allclose(colours(page, "#card canvas")[:3], [12 * 13, 16 * 4, 0], atol=6)  # WebP is not exact
    page.mouse.move(*where(page, 2, 11))
    assert page.inner_text("#card figcaption").startswith("row 11 column 2.png")
    page.mouse.move(*where(page, 2.5, 11.5))
    assert page.is_hidden("#card")


def test_a_name_is_text_whatever_it_says(page):
    page.mouse.move(*where(page, 7, 0))
    assert page.inner_text("#card figcaption").startswith(EVIL) and page.title() == "Grid"


def test_a_lasso_lists_the_names_inside_it(page):
    page.click("#lasso")
    corners = [(2.5, 1.5), (5.5, 1.5), (5.5, 3.5), (2.5, 3.5)]  # three columns and two rows
    page.mouse.move(*where(page, *corners[0]))
    page.mouse.down()
    for corner in [*corners[1:], corners[0]]:
        page.mouse.move(*where(page, *corner), steps=4)
    page.mouse.up()
    assert page.inner_text("#chosen h2") == "6 chosen"
    names = page.input_value("#chosen textarea").split("\n")
    assert sorted(names) == sorted(f"row {row} column {column}.png" for row in (2, 3) for column in (3, 4, 5))
    assert page.get_attribute("#lasso", "aria-pressed") == "false"
    settle(page)
    opacity = [pixel(page, *where(page, column, row))[3] for column, row in [(4, 2), (3, 3), (6, 2), (19, 14)]]
    assert opacity[:2] == [255, 255] and max(opacity[2:]) < 64  # what was not chosen is pale
    page.click("#copy")
    page.wait_for_selector("text=copied 6 names")
    page.click("#clear")
    assert page.is_hidden("#chosen")


def test_search_finds_by_any_part_of_the_name_and_goes_there(page):
    page.fill("#search", "COLUMN 19.")
    assert page.inner_text("#status") == f"{ROWS} of {COUNT} names match"
    page.mouse.move(*where(page, 3, 3))
    assert page.is_hidden("#card")  # what does not match is not picked
    page.fill("#search", "row 14 column 0.")
    page.press("#search", "Enter")
    settle(page)
    assert page.inner_text("#card figcaption").startswith("row 14 column 0.png")
    box = page.locator("#points").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert where(page, 0, 14) == pytest.approx(middle, abs=1)


def test_zooming_keeps_what_is_under_the_pointer_and_shows_images(page):
    x, y = (round(value) for value in where(page, 10, 7))
    before = under(page, x, y)
    page.mouse.move(x, y)
    for _ in range(6):
        page.mouse.wheel(0, -300)
    page.wait_for_timeout(100)
    settle(page)
    assert under(page, x, y) == pytest.approx(before, abs=1e-4) and page.evaluate("view.scale") > 3000
    assert np.allclose(pixel(page, x, y)[:3], [120, 112, 0], atol=6)
    page.click("#whole")
    settle(page)
    assert where(page, 10, 7) == pytest.approx((x, y), abs=1)


def test_dragging_moves_the_map_and_the_legend_hides(page):
    x, y = where(page, 10, 7)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 70, y + 30, steps=5)
    page.mouse.up()
    assert where(page, 10, 7) == pytest.approx((x + 70, y + 30), abs=1)
    assert page.locator("#legend button").all_inner_texts() == [f"left\n{COUNT // 2}", f"right\n{COUNT // 2}"]
    page.click("#legend button >> nth=1")
    page.mouse.move(*where(page, 13, 4))
    assert page.is_hidden("#card")
    page.select_option("#colouring", label="row")
    assert page.locator("#legend button").count() == ROWS


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_larger_than_the_screen(page, width):
    page.set_viewport_size({"width": width, "height": 780})
    settle(page)
    root = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert root == [width, 780]
    assert page.locator("#points").bounding_box()["height"] > 300


def test_a_tap_and_a_pinch_do_what_a_mouse_does(shown, browser):
    with browser.new_context(viewport={"width": 390, "height": 780}, has_touch=True, device_scale_factor=3) as context:
        page = context.new_page()
        page.goto(shown.as_uri())
        page.wait_for_selector("body[data-ready]")
        page.touchscreen.tap(*where(page, 4, 4))
        assert page.inner_text("#card figcaption").startswith("row 4 column 4.png")
        before, (x, y) = page.evaluate("view.scale"), where(page, 10, 7)
        client = context.new_cdp_session(page)

        def touch(kind: str, apart: float) -> None:
            points = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}] if apart else []
            client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", 20)
        for apart in (30, 45, 60):
            touch("touchMove", apart)
        touch("touchEnd", 0)
        assert page.evaluate("view.scale") > 1.5 * before and where(page, 10, 7)[0] == pytest.approx(x, abs=8)


# ---- what goes into the page


def test_the_page_holds_every_image_once_and_asks_for_nothing(shown):
    text = shown.read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert len(set(data["names"])) == COUNT and EVIL in data["names"]
    assert text.count('class="sheet"') == -(-COUNT // data["per_sheet"]) and not re.search(r'(src|href)="', text)


def test_images_that_are_close_share_a_sheet():
    places = np.random.default_rng(0).random((4096, 2), dtype=np.float32)
    order = by_place(places, 256)
    assert np.array_equal(np.sort(order), np.arange(4096))
    extents = np.ptp(places[order].reshape(16, 256, 2), axis=1)
    assert extents.max() < 0.5  # at random it would be nearly 1
