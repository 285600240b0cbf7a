"""Image files of many bands and of colours deeper than 8 bits are read as they are, and others as Pillow reads them."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from tinymae import InputError, load_dataset
from tinymae.data.images import read_image, to_depth
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
            with pytest.raises(InputError, match=message) as refused:
                load_dataset(tmp_path, "all", image_size=8, channels=channels, skip_unreadable=skip_unreadable)
            assert not isinstance(refused.value, UnreadableImage)
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


@pytest.mark.parametrize("name", ["interleaved.tif", "deflate.tif", "pages.tif", "alpha.png", "plain.ppm"])
def test_a_damaged_deep_file_is_refused_by_name_or_read(tmp_path, name):
    whole, generator, refused = DEEP[name](colours(8, 12)), np.random.default_rng(1), 0
    path = tmp_path / name
    for number in range(150):
        content = bytearray(whole)
        for _ in range(generator.integers(1, 5)):
            content[generator.integers(min(len(content), 300))] = generator.integers(256)
        path.write_bytes(content[: generator.integers(len(content))] if number % 3 == 0 else content)
        try:
            assert read_image(path, (3, 8, 8), depth="uint8").shape == (3, 8, 8)
        except InputError as error:
            assert name in str(error)
            refused += 1
    assert refused >= 50


def test_what_an_optional_library_is_needed_for_is_said(tmp_path, monkeypatch):
    values = colours(8, 8)
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(
        InputError, match="image bytes has many channels or more than 8 bits a colour, which need tifff"
    ):
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
