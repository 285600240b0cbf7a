"""Pixels of other depths, ranges and numbers of channels than 8 bits of grey or RGB."""

import numpy as np
import pytest
import torch
from pictures import describe, picture
from PIL import Image
from running import one_line, save_images

import tinymae
from tinymae import InputError, load_dataset
from tinymae.data.sources.source import Reading


def test_sixteen_bits_stay_sixteen_bits(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (20, 8, 8), dtype=np.uint16)
    save_images(tmp_path, values)
    dataset = load_dataset(tmp_path, "all", image_size=8, channels=1)
    assert dataset.images.dtype == torch.uint16 and np.array_equal(dataset.images[:, 0].numpy(), values)
    mean, std = dataset.statistics
    np.testing.assert_allclose([mean[0], std[0]], [(values / 65535).mean(), (values / 65535).std()], atol=1e-6)
    assert np.array_equal(load_dataset(values, "all").images[:, 0].numpy(), values)
    Image.fromarray(np.full((8, 8), 100, dtype=np.uint8)).save(tmp_path / "99.png")
    assert set(load_dataset(tmp_path, "all", image_size=8, channels=1).images[-1].flatten().tolist()) == {100 * 257}


def test_twelve_bits_in_sixteen_may_be_spread_over_their_range(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (20, 8, 8), dtype=np.uint16)
    values[0, 0, 0] = 4095
    save_images(tmp_path, values)
    for data in (values, tmp_path):
        options = {"image_size": 8, "channels": 1}
        plain = load_dataset(data, "all", **options)
        assert "(values up to 4,095: give pixel_range 0 4095 to use the whole range)" in plain.description[2]
        spread = load_dataset(data, "all", **options, pixel_range=(0, 4095))
        assert "values" not in spread.description[2]
        assert np.array_equal(spread.images[:, 0].numpy(), np.round(values / 4095 * 65535).astype(np.uint16))
    assert "values" not in describe(values * 5)


def test_either_byte_order_is_read(tmp_path):
    tifffile, h5py = pytest.importorskip("tifffile"), pytest.importorskip("h5py")
    values = np.random.default_rng(0).integers(0, 4096, (12, 8, 8), dtype=np.uint16)
    swapped = values.astype(">u2")
    for kind in ("tif", "npy"):
        (tmp_path / kind).mkdir()
    for number, image in enumerate(values):
        tifffile.imwrite(tmp_path / "tif" / f"{number:02}.tif", image, byteorder=">")
        np.save(tmp_path / "npy" / f"{number:02}.npy", swapped[number])
    np.savez(tmp_path / "a.npz", images=swapped)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = swapped
    shown = f"8 x 8 pixels, 1 channel of uint16 (values up to {values.max():,}: give pixel_range 0 4095 to use the"
    for data in (tmp_path / "tif", tmp_path / "npy", tmp_path / "a.npz", tmp_path / "a.h5", swapped):
        dataset = load_dataset(data, "all", image_size=8, channels=1)
        assert np.array_equal(dataset.images[:, 0].numpy(), values)
        assert shown in dataset.description[2]
    floats = load_dataset(values.astype(">f4"), "all", pixel_range=(0, 65535))
    assert np.array_equal(floats.images[:, 0].numpy(), values)


def test_an_array_of_black_and_white_is_eight_bits_as_its_files_are(tmp_path):
    values = np.random.default_rng(0).random((12, 8, 8)) < 0.5
    for number, image in enumerate(values):
        np.save(tmp_path / f"{number:02}.npy", image)
    files, array = (load_dataset(data, "all", image_size=8, channels=1) for data in (tmp_path, values))
    assert array.images.dtype == torch.uint8 and np.array_equal(array.images[:, 0].numpy(), 255 * values)
    assert torch.equal(files.images, array.images)


@pytest.mark.parametrize(("place", "met"), [(0, True), (101, False)])  # the first is among the headers looked at
def test_one_deep_image_among_others_is_read_as_they_are(tmp_path, place, met):
    for number in range(200):
        Image.new("L", (4, 4), number).save(tmp_path / f"{number:03}.png")
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(tmp_path / f"{place:03}.png")
    dataset = load_dataset(tmp_path, "all", image_size=4, channels=1)
    expected = [round(40_000 / 257) if number == place else number for number in range(200)]
    assert dataset.images.dtype == torch.uint8 and dataset.images[:, 0, 0, 0].tolist() == expected
    assert ("some of 16 bits, converted to 8" in dataset.description[2]) == met


def test_floats_need_their_range(tmp_path):
    values = np.random.default_rng(0).normal(size=(20, 8, 8)).astype(np.float32)
    for number, image in enumerate(values):
        Image.fromarray(image).save(tmp_path / f"{number:02}.tif")
    with pytest.raises(InputError, match=r"has float32 pixels: give pixel_range LOW HIGH, the values of black and w"):
        load_dataset(tmp_path, image_size=8, channels=1)
    dataset = load_dataset(tmp_path, "all", image_size=8, channels=1, pixel_range=(-4, 4))
    np.testing.assert_allclose(dataset.images[:, 0].numpy() / 65535 * 8 - 4, values, atol=8 / 65535)
    same = load_dataset(values, "all", pixel_range=(-4, 4))
    assert torch.equal(same.images, dataset.images)
    for bounds, shown in [((0, float("inf")), "0 inf"), ((float("-inf"), 1), "-inf 1")]:
        with pytest.raises(InputError, match=f"pixel_range {shown}: both must be finite"):
            Reading(pixel_range=bounds)
    with pytest.raises(InputError, match="pixel_range 1 0: the first must be the lower one"):
        load_dataset(values, pixel_range=(1, 0))


def test_values_outside_the_range_are_counted():
    values = np.linspace(0, 1, 1000, dtype=np.float32).reshape(10, 10, 10)
    assert "(25 % of the values lie outside 0 to 0.75 and are clipped)" in describe(values, pixel_range=(0, 0.75))
    assert "clipped" not in describe(values, pixel_range=(0, 1))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path, wrong):
    values = np.zeros((20, 4, 4), dtype=np.float32)
    values[[7, 9], 1, 2] = wrong
    for limit in (0, 4):
        with pytest.raises(InputError, match="data array, row 7: NaN or infinity among its values"):
            load_dataset(values, "all", pixel_range=(0, 1), memory_limit_gb=limit)[torch.arange(20)]
    for number, image in enumerate(values):
        Image.fromarray(image).save(tmp_path / f"{number:02}.tif")
    options = {"pixel_range": (0, 1), "channels": 1, "image_size": 4}
    with pytest.raises(InputError, match=r"07\.tif cannot be read \(NaN or infinity among its values\)"):
        load_dataset(tmp_path, "all", **options)
    assert load_dataset(tmp_path, "all", **options, skip_unreadable=True).skipped == ["07.tif", "09.tif"]


def test_png_files_have_one_channel_or_three(tmp_path):
    picture(tmp_path / "1.png", mode="RGBA")
    for skip_unreadable in (False, True):
        with pytest.raises(InputError, match=r"in_channels 4: image .*1\.png is read as 1 \(grey\) or 3 \(RGB\)"):
            load_dataset(tmp_path, "all", channels=4, skip_unreadable=skip_unreadable)


def test_images_of_any_depth_and_channels_go_through_every_command(tmp_path, quick_figures, quick_probes):
    """By the plain commands: what is for colours of 8 bits is left out where there are none."""
    values = np.random.default_rng(0).integers(0, 65536, (60, 5, 8, 8), dtype=np.uint16)
    data = {"data": values, "labels": np.arange(60) % 2, "mixed_precision": "no"}
    sizes = {"image_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "decoder_dim": 16,
             "decoder_depth": 1, "batch_size": 16, "log_with": ()}  # fmt: skip
    run = tinymae.pretrain(**data, **sizes, epochs=3, output_dir=tmp_path / "run")
    assert run.model.in_channels == 5 and (tmp_path / "run" / "reconstructions.png").exists()
    assert run.results["contrast_color_jitter"] == 0.0 and run.results["contrast_epochs"] == 2
    given = data | {"weights": run.model}
    tuned = tinymae.finetune(**given, epochs=2, log_with=(), output_dir=tmp_path / "tuned")
    assert not tuned.results["trivial_augment"] and tuned.results["random_erasing"] == 0.25
    for command in (tinymae.linear_probe, tinymae.evaluate, tinymae.embed, tinymae.inspect):
        command(**given, output_dir=tmp_path / command.__name__)
    tinymae.predict(**data | {"weights": tuned.model}, output_dir=tmp_path / "predict")
    with one_line("color_jitter 0.5 is for grey and RGB images of 8 bits, and data array has 5 ch"):
        tinymae.pretrain(**data, **sizes, color_jitter=0.5, output_dir=tmp_path / "colour")
    with pytest.raises(InputError, match="trivial_augment is for grey and RGB images of 8 bits, and data array has"):
        tinymae.finetune(**given, trivial_augment=True, output_dir=tmp_path / "colour")
    assert not (tmp_path / "colour").exists()
