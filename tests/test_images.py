"""Image files of many bands and of colours deeper than 8 bits are read as they are, and others as Pillow reads them."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from pictures import Items
from PIL import Image
from running import one_line, run_in

import tinymae
from tinymae import InputError, load_dataset
from tinymae.data import images
from tinymae.data.images import look_at_header, read_image, to_depth
from tinymae.data.masks import IGNORED, read_masks
from tinymae.data.unreadable import UnreadableImage

tifffile = pytest.importorskip("tifffile")


def deep_png(values, exif=None):
    """A PNG of 16 bits, of values (H, W, C), by the letter of its specification: Pillow writes none of several."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", *values.shape[1::-1], 16, kind, 0, 0, 0)),
              *([(b"eXIf", exif)] if exif else []), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def tiff(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def with_alpha(values, alpha=65535):
    return np.concatenate([values, np.full_like(values[..., :1], alpha)], axis=2)


def planes(values):
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def colours(*shape, top=65535):
    values = np.random.default_rng(0).integers(0, top + 1, (*shape, 3), dtype=np.uint16)
    values.flat[0] = top
    return values


# How a file of RGB of 16 bits, without transparent parts, may be written.
DEEP = {
    "interleaved.tif": lambda values: tiff(values, photometric="rgb"),
    "planes.tif": lambda values: tiff(planes(values), photometric="rgb", planarconfig="separate"),
    "motorola.tif": lambda values: tiff(values, photometric="rgb", byteorder=">"),
    "big.tif": lambda values: tiff(values, photometric="rgb", bigtiff=True),
    "deflate.tif": lambda values: tiff(values, photometric="rgb", compression="deflate", predictor=True),
    "alpha.tif": lambda values: tiff(with_alpha(values), photometric="rgb", extrasamples=["unassalpha"]),
    "premultiplied.tif": lambda values: tiff(with_alpha(values), photometric="rgb", extrasamples=["assocalpha"]),
    "pages.tif": lambda values: tiff(planes(values), photometric="minisblack"),
    "frames.tif": lambda values: tiff(np.stack([values, values // 2]), photometric="rgb", metadata=None),
    "imagej.tif": lambda values: tiff(planes(values), imagej=True, metadata={"axes": "CYX"}),
    "plain.png": deep_png,
    "alpha.png": lambda values: deep_png(with_alpha(values)),
    "plain.ppm": lambda values: b"P6\n# deep\n%d %d\n65535\n" % values.shape[1::-1] + values.astype(">u2").tobytes(),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_colours_of_sixteen_bits_stay_so(tmp_path, name):
    values = colours(8, 12, top=4095)
    (tmp_path / name).write_bytes(DEEP[name](values))
    dataset = load_dataset(tmp_path, "all", image_size=(8, 12))
    assert dataset.images.dtype == torch.uint16
    assert np.array_equal(dataset.images[0].numpy(), planes(values))
    assert "12 x 8 pixels" in dataset.description[2] and "of uint16 (values up to 4,095: give" in dataset.description[2]
    assert torch.equal(read_image((tmp_path / name).read_bytes(), (3, 8, 12), depth="uint16", name="bytes"),
                       dataset.images[0])  # fmt: skip
    spread = load_dataset(tmp_path, "all", image_size=(8, 12), pixel_range=(0, 4095))
    assert np.array_equal(spread.images[0].numpy(), to_depth(planes(values), "uint16", (0, 4095), ""))
    array = load_dataset(planes(values)[None], "all", image_size=5)
    assert torch.equal(load_dataset(tmp_path, "all", image_size=5).images, array.images)
    grey = read_image(tmp_path / name, (1, 8, 12), depth="uint16")[0].numpy()
    assert np.abs(grey - values @ [0.299, 0.587, 0.114]).max() <= 0.5


@pytest.mark.parametrize("write", [deep_png, lambda values: tiff(values, photometric="minisblack", extrasamples=[2])])
def test_deep_grey_with_alpha_is_grey_on_white(tmp_path, write):
    values = with_alpha(colours(8, 8)[..., :1])
    values[:4, :, 1], values[4, :, 1] = 0, 32768
    (tmp_path / "image").write_bytes(write(values))
    for channels in (1, 3):
        read = read_image(tmp_path / "image", (channels, 8, 8), depth="uint16").numpy()
        assert (read[:, :4] == 65535).all() and (read[:, 5:] == values[5:, :, 0]).all()
        half = values[4, :, 0] * (32768 / 65535) + 65535 - 32768
        assert np.abs(read[:, 4] - half).max() <= 0.5


def test_transparent_parts_of_deep_colours_are_white():
    values = with_alpha(colours(8, 8, top=4095))
    values[0, :, 3] = 0
    premultiplied = values.copy()
    premultiplied[0, :, :3] = 0
    for content in (
        deep_png(values),
        tiff(values, photometric="rgb", extrasamples=["unassalpha"]),
        tiff(premultiplied, photometric="rgb", extrasamples=["assocalpha"]),
    ):
        for pixel_range, white in ((None, 65535), ((0, 4095), 65535), ((0, 8190), 65535)):
            read = read_image(content, (3, 8, 8), depth="uint16", pixel_range=pixel_range, name="bytes")
            assert (read[:, 0] == white).all()
            expected = to_depth(planes(values)[:3, 1:], "uint16", pixel_range, "")
            assert np.array_equal(read[:, 1:].numpy(), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_deep_photo_stands_upright_as_others_do(orientation):
    values, exif = colours(6, 9), Image.Exif()
    exif[0x0112] = orientation
    shallow = io.BytesIO()
    Image.fromarray((values // 257).astype(np.uint8)).save(shallow, "PNG", exif=exif)
    turned = (9, 6) if orientation > 4 else (6, 9)
    expected = read_image(shallow.getvalue(), (3, *turned), depth="uint8", name="bytes")
    for content in (
        deep_png(values // 257 * 257, exif.tobytes().removeprefix(b"Exif\0\0")),
        tiff(values // 257 * 257, photometric="rgb", extratags=[(274, "H", 1, orientation, True)]),
    ):
        assert torch.equal(read_image(content, (3, *turned), depth="uint8", name="bytes"), expected)


# How a file of several bands that are no colours may be written.
BANDS = {
    "pages": lambda values: tiff(planes(values), photometric="minisblack"),
    "planes": lambda values: tiff(planes(values), photometric="minisblack", planarconfig="separate"),
    "interleaved": lambda values: tiff(values, photometric="minisblack", planarconfig="contig"),
    "motorola": lambda values: tiff(values, photometric="minisblack", planarconfig="contig", byteorder=">"),
    "rgb": lambda values: tiff(values, photometric="rgb", extrasamples=[0] * (values.shape[2] - 3)),
    "rgb planes": lambda values: tiff(
        planes(values), photometric="rgb", planarconfig="separate", extrasamples=[0] * (values.shape[2] - 3)
    ),
}


@pytest.mark.parametrize("depth", ["uint8", "uint16"])
@pytest.mark.parametrize("count", [4, 5])
@pytest.mark.parametrize("kind", BANDS)
def test_bands_that_are_no_colours_are_all_read_or_refused(tmp_path, kind, count, depth):
    values = np.random.default_rng(0).integers(0, 256, (8, 12, count)).astype(depth)
    (tmp_path / "bands.tif").write_bytes(BANDS[kind](values))
    for channels, wanted in ((1, "1 is wanted"), (3, "3 are wanted"), (7, "7 are wanted")):
        for skip_unreadable in (False, True):
            message = rf"bands\.tif has {count} channels, {wanted}: give --in-channels {count} when pretraining"
            with pytest.raises(InputError, match=message):  # with the flag as well, as none can be read
                load_dataset(tmp_path, "all", image_size=8, channels=channels, skip_unreadable=skip_unreadable)
    dataset = load_dataset(tmp_path, "all", image_size=(8, 12), channels=count)
    assert np.array_equal(dataset.images[0].numpy(), planes(values))
    assert f"12 x 8 pixels, {count} channels of {depth}" in dataset.description[2]


def test_a_fourth_band_that_a_program_took_for_alpha_is_no_alpha():
    content = tiff(colours(8, 8)[..., [0, 1, 2, 0]] // 16)  # tifffile's default for four
    with pytest.raises(InputError, match="has 4 channels, 3 are wanted"):
        read_image(content, (3, 8, 8), depth="uint8", name="bytes")


def test_three_bands_are_three_channels():
    values = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    for write in (BANDS["pages"], BANDS["planes"], BANDS["interleaved"]):
        assert np.array_equal(
            read_image(write(values), (3, 8, 12), depth="uint8", name="bytes").numpy(), planes(values)
        )


def test_arrays_in_files_are_grey_or_colours_as_images_are(tmp_path):
    values = colours(8, 12)
    np.save(tmp_path / "grey.npy", values[..., 0])
    np.save(tmp_path / "colours.npy", values)
    np.save(tmp_path / "bands.npy", values[..., [0, 1, 2, 0, 1]])
    read = read_image(tmp_path / "grey.npy", (3, 8, 12), depth="uint16").numpy()
    assert (read == values[..., 0]).all()
    assert read_image(tmp_path / "colours.npy", (1, 8, 12), depth="uint16").shape == (1, 8, 12)
    with pytest.raises(InputError, match=r"bands\.npy has 5 channels, 3 are wanted: give --in-channels 5"):
        read_image(tmp_path / "bands.npy", (3, 8, 12), depth="uint8")
    bands = read_image(tmp_path / "bands.npy", (5, 8, 12), depth="uint16").numpy()
    assert np.array_equal(bands, planes(values[..., [0, 1, 2, 0, 1]]))


@pytest.mark.parametrize("channels", [1, 3])
def test_what_pillow_reads_is_read_by_it(tmp_path, channels):
    rgb = Image.fromarray((colours(8, 12) // 257).astype(np.uint8))
    clear = rgb.copy()
    clear.putalpha(Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12)))
    on_white = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    expected = {}
    for suffix in ("png", "tif"):
        for mode in ("RGB", "L", "P", "1", "CMYK", "RGBA", "LA"):
            if (suffix, mode) == ("png", "CMYK"):
                continue
            name, image = f"{mode}.{suffix}", clear.convert(mode) if mode.endswith("A") else rgb.convert(mode)
            image.save(tmp_path / name)
            expected[name] = on_white.convert("LA").convert("RGBA") if mode == "LA" else on_white
            expected[name] = expected[name] if mode.endswith("A") else image
    rgb.save(tmp_path / "frames.tif", save_all=True, append_images=[rgb.rotate(180)])
    rgb.convert("L").save(tmp_path / "grey frames.tif", save_all=True, append_images=[rgb.rotate(180).convert("L")] * 3)
    expected |= {"frames.tif": rgb, "grey frames.tif": rgb.convert("L")}
    for name, image in expected.items():
        read = read_image(tmp_path / name, (channels, 8, 12), depth="uint8").permute(1, 2, 0).squeeze(2).numpy()
        difference = np.abs(read.astype(int) - np.asarray(image.convert("L" if channels == 1 else "RGB")))
        assert difference.max() <= ("LA" in name), name  # of grey with alpha the order of rounding


def test_what_an_optional_library_is_needed_for_is_said(tmp_path, monkeypatch):
    values = colours(8, 8)
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with one_line("image bytes has many channels or more than 8 bits a colour, which need tifff"):
        read_image(DEEP["interleaved.tif"](values), (3, 8, 8), depth="uint8", name="bytes")
    monkeypatch.undo()
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_, **__: 1 / 0)
    with pytest.raises(UnreadableImage, match="bytes"):
        read_image(DEEP["frames.tif"](values), (3, 8, 8), depth="uint8", name="bytes")

    def needs(*_, **__):
        raise KeyError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", needs)
    with pytest.raises(InputError, match="image bytes is compressed in a way that needs imagecodecs: pip install"):
        read_image(DEEP["frames.tif"](values), (3, 8, 8), depth="uint8", name="bytes")


# ---- images of another shape than is wanted


def long_image(height=10, width=40):
    """A grey-blue edge of two pixels, speckled, around noise."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[:2], image[-2:], image[:, :2], image[:, -2:] = 4 * [np.array([90, 100, 140], np.uint8)]
    image[0, ::7] = 255
    return image


def ways_to_give(folder, image):
    """The same image as data of each kind, with how exactly its resizing is that of torch's tensors."""
    folder.mkdir()
    Image.fromarray(image).save(folder / "image.png")
    (folder / "table.csv").write_text("path\nimage.png\n")
    np.savez(folder / "image.npz", images=image[None])
    return {"folder": (folder / "image.png", 3), "table": (folder / "table.csv", 3), "npz": (folder / "image.npz", 0),
            "array": (planes(image)[None], 0), "items": ([Image.fromarray(image)], 3),
            "torch": (list(torch.from_numpy(planes(image))[None]), 0)}  # fmt: skip


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("kind", ["folder", "table", "npz", "array", "items", "torch"])
def test_padding_keeps_the_whole_image_on_the_colour_of_its_edge(tmp_path, kind, upright):
    image = long_image()
    image = image.transpose(1, 0, 2).copy() if upright else image
    data, tolerance = ways_to_give(tmp_path / "data", image)[kind]
    padded = load_dataset(Items(data) if isinstance(data, list) else data, "all", image_size=20, fit="pad")
    assert isinstance(data, list) or ", resized and padded" in padded.description[2]
    read = padded.images[0].permute(0, 2, 1) if upright else padded.images[0]
    assert read.shape == (3, 20, 20)
    outside = torch.cat([read[:, :7], read[:, 12:]], dim=1)  # 5 of 20 rows are the image's
    assert (outside == torch.tensor([90, 100, 140])[:, None, None]).all()
    smaller = torch.nn.functional.interpolate(
        torch.from_numpy(planes(image))[None].float(), (20, 5) if upright else (5, 20), mode="bicubic", antialias=True
    )[0].round().clamp(0, 255)  # fmt: skip
    smaller = smaller.permute(0, 2, 1) if upright else smaller
    assert (read[:, 7:12].float() - smaller).abs().max() <= tolerance


def test_an_image_of_the_wanted_shape_is_neither_cropped_nor_padded(tmp_path):
    Image.fromarray(long_image(10, 20)).save(tmp_path / "image.png")
    for size in ((10, 20), (5, 10), (20, 40)):
        cropped, padded = (load_dataset(tmp_path, "all", image_size=size, fit=fit) for fit in ("crop", "pad"))
        assert torch.equal(cropped.images, padded.images)
        assert "padded" not in padded.description[2] and "cropped" not in cropped.description[2]
    assert "resized and centre-cropped" in load_dataset(tmp_path, "all", image_size=8).description[2]
    with pytest.raises(InputError, match="fit 'stretch' is none of crop and pad"):
        load_dataset(tmp_path, "all", fit="stretch")


@pytest.mark.parametrize("name", ["interleaved.tif", "plain.png"])
def test_deep_and_grey_images_are_padded_alike(tmp_path, name):
    values = long_image().astype(np.uint16) * 16
    (tmp_path / name).write_bytes(DEEP[name](values))
    read = load_dataset(tmp_path, "all", image_size=20, fit="pad").images[0]
    assert read[:, 0, 0].tolist() == [90 * 16, 100 * 16, 140 * 16]
    (tmp_path / name).unlink()
    Image.fromarray(values[..., 0]).save(tmp_path / "grey.png")
    assert load_dataset(tmp_path, "all", image_size=20, fit="pad").images[0, :, 0, 0].tolist() == 3 * [90 * 16]


def test_masks_are_padded_as_their_images_are_by_pixels_of_no_class(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    picture = np.zeros((10, 40, 3), np.uint8)
    picture[:, 20:] = 200
    Image.fromarray(picture).save(tmp_path / "images" / "1.png")
    Image.fromarray((picture[..., 0] > 0).astype(np.uint8)).save(tmp_path / "masks" / "1.png")
    dataset = load_dataset(tmp_path / "images", "all", image_size=20, fit="pad")
    (mask,) = read_masks(tmp_path / "masks", dataset, fit="pad")
    assert (mask[:7] == IGNORED).all() and (mask[12:] == IGNORED).all()
    assert (mask[7:12, :10] == 0).all() and (mask[7:12, 10:] == 1).all()
    assert ((dataset.images[0, 0, 7:12] > 100) == (mask[7:12] == 1)).all()


def test_queries_are_padded_as_the_data_are(tmp_path, quick_figures):
    (tmp_path / "data").mkdir()
    for number in range(12):
        image = long_image()
        image[:, 5 * (number % 3) :: 9] = 20 * number
        Image.fromarray(image[:, :: -1 if number % 2 else 1]).save(tmp_path / "data" / f"{number:02}.png")
    model = tinymae.MaskedAutoencoder(image_size=20, patch_size=4, embed_dim=24, depth=1, num_heads=2)
    found = {}
    for fit in ("crop", "pad"):
        folder = tinymae.neighbours(
            tmp_path / "data", weights=model, split=("all",), query=(str(tmp_path / "data"),), k=1, fit=fit,
            output_dir=tmp_path / fit,
        ).folder  # fmt: skip
        found[fit] = [line.split(",") for line in (folder / "neighbours.csv").read_text().splitlines()[1:]]
    assert all(query.endswith(name) and cosine == "1.0000" for query, _, name, _, _, cosine in found["pad"])


# ---- awkward, damaged and hostile files


def save_pictures(folder):
    """One image of each awkward but honest kind."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    rgb = Image.fromarray(generator.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    rgb.save(folder / "jpeg.jpg", quality=90)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("P").save(folder / "palette.png")
    rgb.convert("1").save(folder / "bits.png")
    rgb.save(folder / "webp.webp")
    rgb.save(folder / "bmp.bmp")
    for suffix, kind in (("png", np.uint16), ("pgm", np.int32)):  # both are files of 16 bits
        Image.fromarray(np.full((20, 20), 40_000, dtype=kind)).save(folder / f"16bit_{suffix}.{suffix}")
    clear = Image.new("RGBA", (20, 20), (200, 0, 0, 0))
    clear.save(folder / "alpha.png")
    Image.new("RGB", (1, 1), (10, 20, 30)).save(folder / "tiny.png")
    Image.new("L", (20_000, 3), 77).save(folder / "wide.png")
    return sorted(folder.iterdir())


def test_awkward_pictures_are_converted(tmp_path):
    for path in save_pictures(tmp_path / "images"):
        for channels in (1, 3):
            assert read_image(path, (channels, 16, 12), depth="uint8").shape == (channels, 16, 12), path
    read = {path.stem: read_image(path, (3, 8, 8), depth="uint8") for path in (tmp_path / "images").iterdir()}
    for name in ("16bit_png", "16bit_pgm"):
        assert (read[name] == round(40_000 / 257)).all()  # scaled, not clipped
        path = next((tmp_path / "images").glob(f"{name}.*"))
        assert look_at_header(path, 1, str(path)) == (1, 20, 20, "uint16")
    assert (read["alpha"] == 255).all()  # what is transparent is white
    assert read["tiny"][:, 4, 4].tolist() == [10, 20, 30] and (read["wide"] == 77).all()


def test_unreadable_pictures_are_refused_by_name_or_left_out(tmp_path):
    for number in range(30):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
    bad = {"05.png": b"", "11.png": b"no picture at all", "17.png": (tmp_path / "17.png").read_bytes()[:45]}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    left_out = load_dataset(tmp_path, "all", image_size=8, skip_unreadable=True)
    assert set(left_out.skipped) == set(bad) and len(left_out) == 27
    with pytest.raises(InputError, match=r"(05|11|17)\.png cannot be read"):
        load_dataset(tmp_path, "all", image_size=8)
    with run_in(tmp_path / "run", datasets={"all": left_out}) as run:
        run.finish({}, [])
    assert (tmp_path / "run" / "skipped.txt").read_text().split() == sorted(bad)


def test_of_a_narrow_image_only_what_is_cropped_is_copied(tmp_path):
    """138 bytes become 20 million pixels on the way."""
    Image.new("RGB", (20_000, 1), "red").save(tmp_path / "line.png")
    tracemalloc.start()
    pixels = read_image(tmp_path / "line.png", (3, 32, 32), depth="uint8")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert pixels.flatten(1).unique(dim=1).tolist() == [[255], [0], [0]]


def test_an_image_that_resizing_would_blow_up_is_refused(tmp_path, monkeypatch):
    Image.new("L", (1, 30_000)).save(tmp_path / "line.png")
    with pytest.raises(InputError, match=r"line\.png cannot be read \(1 x 30000 pixels are too narrow for 64 x 64\)"):
        read_image(tmp_path / "line.png", (3, 64, 64), depth="uint8")  # 64 x 1,920,000 pixels, from a file of 100 bytes
    monkeypatch.setattr("tinymae.data.fit.LARGEST", 8 * 800)
    for height, fits in ((100, True), (101, False)):
        Image.new("L", (1, height), 9).save(tmp_path / "line.png")
        if fits:
            assert (read_image(tmp_path / "line.png", (1, 8, 8), depth="uint8") == 9).all()
        else:
            with pytest.raises(InputError, match="1 x 101 pixels are too narrow"):
                read_image(tmp_path / "line.png", (1, 8, 8), depth="uint8")


def test_an_image_of_more_pixels_than_pillow_thinks_safe_is_refused(tmp_path, monkeypatch):
    """A file of 2 kB may say that it has 150 million pixels, and Pillow takes gigabytes for them."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("RGB", (40, 25), "red").save(tmp_path / "fits.png")
    assert read_image(tmp_path / "fits.png", (3, 8, 8), depth="uint8").shape == (3, 8, 8)
    Image.new("RGB", (40, 26)).save(tmp_path / "large.png")
    with pytest.raises(InputError, match=r"large\.png cannot be read \(40 x 26 pixels are more than"):
        read_image(tmp_path / "large.png", (3, 8, 8), depth="uint8")
    Image.new("RGB", (44, 44), "red").save(tmp_path / "photo.jpg")  # which JPEG decodes at half its size
    assert read_image(tmp_path / "photo.jpg", (3, 8, 8), depth="uint8").shape == (3, 8, 8)


def test_a_file_that_claims_more_than_memory_is_unreadable(tmp_path, monkeypatch):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<u1", "fortran_order": False, "shape": (10**7, 10**7, 3)})
    (tmp_path / "huge.npy").write_bytes(header.getvalue() + bytes(100))
    with pytest.raises(images.UnreadableImage, match="huge.npy"):
        read_image(tmp_path / "huge.npy", (3, 8, 8), depth="uint8")
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 80_000_000, 1, 8, 6, 0, 0, 0)  # too wide for Pillow to have a row of it
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "wide.png").write_bytes(png + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    with pytest.raises(images.UnreadableImage, match="80000000 x 1 pixels"):
        read_image(tmp_path / "wide.png", (3, 8, 8), depth="uint8")
    bands = np.zeros((4, 9, 9), np.uint8)
    tifffile.imwrite(tmp_path / "large.tif", bands, photometric="minisblack", planarconfig="separate")
    read_image(tmp_path / "large.tif", (4, 8, 8), depth="uint8")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80)
    with pytest.raises(images.UnreadableImage, match="more than PIL.Image.MAX_IMAGE_PIXELS"):
        read_image(tmp_path / "large.tif", (4, 8, 8), depth="uint8")


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_large_photo_is_read_as_its_pixels_are(tmp_path, fit):
    """JPEG decodes it small, but it stays sharp."""
    y, x = np.mgrid[0:1200, 0:3000] / 100
    smooth = np.stack([127 + 100 * np.sin(x + k) * np.cos(y) for k in range(3)], axis=2).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "photo.jpg", quality=95)
    np.save(tmp_path / "photo.npy", smooth)
    read, exact = (
        read_image(tmp_path / f"photo.{kind}", (3, 60, 60), depth="uint8", fit=fit) for kind in ("jpg", "npy")
    )
    assert (read.int() - exact.int()).abs().max() <= 6


def test_a_mutated_file_is_read_or_refused_by_name_and_nothing_else_happens(tmp_path):
    """200 mutants of each awkward kind, and 150 of some deep ones, of whose headers most bytes matter."""
    pictures = [path for path in save_pictures(tmp_path / "images") if path.stem != "wide"]
    originals = {path.name: (200, path.read_bytes()) for path in pictures}
    for name in ("interleaved.tif", "deflate.tif", "pages.tif", "alpha.png", "plain.ppm"):
        originals[f"deep {name}"] = 150, DEEP[name](colours(8, 12))
    generator, read = np.random.default_rng(1), 0
    for name, (count, original) in originals.items():
        path, refused = tmp_path / name, 0
        changed = min(len(original), 300) if name.startswith("deep") else len(original)
        for number in range(count):
            content = bytearray(original)
            for _ in range(generator.integers(1, 6)):
                content[generator.integers(changed)] = generator.integers(256)
            path.write_bytes(content[: generator.integers(len(content))] if number % 3 == 0 else content)
            try:
                assert read_image(path, (3, 8, 8), depth="uint8").shape == (3, 8, 8)
            except InputError as error:
                assert name in str(error) and "\n" not in str(error)
                refused += 1
        assert refused > count / 4, name
        read += count - refused
    assert read > 200  # where a checksum covers all, none is
