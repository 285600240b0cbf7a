"""A run's folder is its own: which command may go on in it, and on which data and weights."""

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import picture, pixels
from PIL import Image
from running import FEW, QUICK, TINY, edit_json, one_line, run_in, save_images, tiny_mae

import tinymae
from tinymae import InputError, load_dataset
from tinymae.commands.fields import describe_value
from tinymae.commands.pretrain import PretrainSettings
from tinymae.errors import Stopped
from tinymae.files import read_json, write_json
from tinymae.models.classifier import build_classifier
from tinymae.training import run as run_module
from tinymae.training.inputs import require_same_run

pytestmark = pytest.mark.usefixtures("quick_figures")


@pytest.mark.parametrize("seed", [1, 2])
def test_a_folder_is_one_runs_at_a_time(seed, tmp_path):
    """Whether the other command is the same one or not, which would take over a run without a step."""
    with run_in(tmp_path, arguments={"seed": 1}), pytest.raises(InputError, match="in use by another process"):
        run_in(tmp_path, arguments={"seed": seed}).claim()
    assert read_json(tmp_path / "args.json")["arguments"] == {"seed": 1}


def test_a_folder_that_cannot_be_the_runs_is_left_as_it_was(tmp_path):
    with run_in(tmp_path / "run", arguments={"sizes": (1, 2)}, inputs={"train": "10 images, ab"}) as run:
        run.finish({}, [])
    content = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for arguments, inputs, message in [
        ({"sizes": (1, 3)}, {"train": "10 images, ab"}, r"sizes was \[1, 2\], now \[1, 3\]\): choose .*give overwrite"),
        ({"sizes": (1, 2), "more": 1}, {"train": "10 images, ab"}, "more was None, now 1"),
        ({"sizes": (1, 2)}, {"train": "11 images, cd"}, "train was '10 images, ab', now '11 images, cd'"),
    ]:
        with pytest.raises(InputError, match=message):
            run_in(tmp_path / "run", arguments=arguments, inputs=inputs).__enter__()
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == content
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file"):
        run_in(tmp_path / "file").__enter__()
    with run_in(tmp_path / "run", arguments={"sizes": (1, 2)}):  # nothing is known of its inputs
        pass


LEFT = {"args.json", ".lock", "metrics.jsonl", "tensorboard/events.out", "reconstructions.png", "inputs/train.txt"}


def leave(folder, names, step: int = 0) -> None:
    """What a run with a wrong seed left in its folder."""
    for path in (folder / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text({"args.json": '{"arguments": {"seed": 1}}', "metrics.jsonl": f'{{"step": {step}}}', ".lock": ""}
                        .get(path.name, "1.png"))  # fmt: skip


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_took_no_step_leaves_its_folder_to_the_corrected_command(overwrite, tmp_path):
    leave(tmp_path / "run", LEFT)
    with run_in(tmp_path / "run", arguments={"seed": 2}, overwrite=overwrite):
        pass
    assert read_json(tmp_path / "run" / "args.json")["arguments"] == {"seed": 2}
    assert not (tmp_path / "run" / "inputs").exists()  # of the other run
    assert [*tmp_path.iterdir()] == [tmp_path / "run"]


def test_a_run_that_took_a_step_is_not_taken_over(tmp_path):
    leave(tmp_path, LEFT, step=1)
    with pytest.raises(InputError, match="seed was 1, now 2"):
        run_in(tmp_path, arguments={"seed": 2}).claim()


@pytest.mark.parametrize(
    "name", ["checkpoints/step-000000001-0.pt", "parts/000000.parquet", "results.json", "model.safetensors", "notes"]
)
def test_a_run_that_left_anything_is_not_taken_over(name, tmp_path):
    leave(tmp_path, LEFT | {name})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="seed was 1, now 2"):
        run_in(tmp_path, arguments={"seed": 2}).claim()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_checkpoints_of_an_unknown_run_are_not_gone_on_from(tmp_path):
    """As they are left where a folder was moved while its last checkpoint was written."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-000000274-93236b0e0bac6b22.pt").write_bytes(b"state")
    with pytest.raises(InputError, match="holds another run .its checkpoints have no args.json"):
        run_in(tmp_path).claim()
    with run_in(tmp_path, overwrite=True) as run:
        assert run.load_checkpoint() is None


def test_results_of_another_program_are_no_finished_run(tmp_path):
    (tmp_path / "results.json").write_text('{"accuracy_test": {"mean": 5}}')
    with run_in(tmp_path) as run:
        run.finish({"images": 1}, [])


def test_what_is_not_a_runs_own_stays_in_its_folder(tmp_path):
    """Images in a folder inputs/, where a run keeps the names of its files; tables of other programs."""
    images = tmp_path / "inputs" / "cats"
    images.mkdir(parents=True)
    for number in range(24):
        Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(images / f"{number}.png")
    (tmp_path / "inputs" / "list.txt").write_text("mine")
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1}\n')
    (tmp_path / "projector").mkdir()
    (tmp_path / "projector" / "slides.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    model = tiny_mae(in_channels=3)
    tinymae.embed(tmp_path / "inputs", weights=model, mixed_precision="no", formats=["projector"], output_dir=tmp_path)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert (tmp_path / "inputs" / "train.txt").exists() and (tmp_path / "embeddings.parquet").exists()


def test_folders_are_moved_aside_however_soon_after_each_other(tmp_path):
    folder = tmp_path / "run"
    for content in ("a", "b", "c"):
        folder.mkdir()
        (folder / "results.json").write_text(content)
        run_module.move_aside(folder)
    assert sorted(file.read_text() for file in tmp_path.glob("*/results.json")) == ["a", "b", "c"]


@pytest.mark.parametrize("folder", [".", ".."])
def test_the_working_folder_is_not_moved_aside(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is the working folder or above it"):
        run_module.move_aside(Path(folder))


def test_overwrite_moves_the_old_run_aside(quick_figures, tmp_path):
    folder = tmp_path / "run"
    probe = FEW | {"weights": tiny_mae(), "head": "mlp", "output_dir": folder}
    tinymae.linear_probe(**probe)
    with pytest.raises(InputError, match="pool was 'avg', now 'cls'"):
        tinymae.linear_probe(**probe, pool="cls")
    tinymae.linear_probe(**probe, pool="cls", overwrite=True)
    aside = [path for path in tmp_path.iterdir() if path != folder]
    assert len(aside) == 1 and (aside[0] / "results.json").exists()
    assert read_json(folder / "args.json")["arguments"]["pool"] == "cls"


def test_a_message_of_many_differences_is_short_and_has_numbers_as_people_write_them(tmp_path):
    digests = "0123456789abcdef" * 4, "f" * 64
    olds, news = ({"warmup_epochs": 0.05 * n, "weights": digest} | {f"flag{k}": k * n for k in range(1, 5)}
                  for n, digest in ((41, digests[0]), (42, digests[1])))  # fmt: skip
    with run_in(tmp_path, arguments=olds) as run:
        run.finish({}, [])
    with pytest.raises(InputError) as refused:
        run_in(tmp_path, arguments=news).claim()
    assert (
        "(warmup_epochs was 2.05, now 2.1, weights was '0123456789abcdef', now 'ffffffffffffffff', flag1 was 41, "
        "now 42, and 3 more)" in str(refused.value)
    )


def test_a_folder_is_the_same_with_and_without_a_slash_at_its_end(tmp_path):
    for data in ("photos/", "photos", ["photos", "more/"], ["photos/", "more"]):
        folder = tmp_path / ("several" if isinstance(data, list) else "one")
        with run_in(folder, arguments={"data": data}) as run:
            run.finish({}, [])
    with pytest.raises(InputError, match="data was 'photos/', now 'photos2'"):
        run_in(tmp_path / "one", arguments={"data": "photos2"}).claim()


def test_a_repeated_command_says_that_it_is_finished(tmp_path, capsys):
    for results in ({"accuracy_test": 91.234, "knn_val": 50.0}, {"images": 3}):
        folder = tmp_path / str(len(results))
        for _ in range(2):
            assert "is finished" not in capsys.readouterr().out
            with run_in(folder) as run:
                run.finish(results, [])
        score = ", accuracy, test 91.23 %" * ("accuracy_test" in results)
        assert f"{folder} is finished{score}, and is made again\n" in capsys.readouterr().out


# ---- other inputs under the same settings


def test_a_setting_that_a_runs_version_did_not_know_has_its_default(tmp_path):
    start = QUICK | {"output_dir": tmp_path}
    with pytest.raises(Stopped):
        tinymae.pretrain(**start, pause_after_minutes=0)
    known = read_json(tmp_path / "args.json")["arguments"]
    edit_json(tmp_path / "args.json", {"arguments": {name: known[name] for name in known if name != "rotate90"}})
    with pytest.raises(InputError, match=r"holds another run \(rotate90 was False, now True\)"):
        tinymae.pretrain(**start, rotate90=True)
    assert tinymae.pretrain(**start).results["steps"] == 8


def test_a_run_is_not_continued_from_other_weights_in_the_same_folder(tmp_path):
    start, tune = QUICK | {"epochs": 1, "output_dir": tmp_path / "mae"}, FEW | {"batch_size": 16, "epochs": 1}
    tinymae.pretrain(**start)
    before = read_json(tmp_path / "mae" / "results.json")
    tuning = {**tune, "weights": tmp_path / "mae", "output_dir": tmp_path / "tuned"}
    with pytest.raises(Stopped):
        tinymae.finetune(**tuning, pause_after_minutes=0)
    tinymae.pretrain(**start | {"seed": 2}, overwrite=True)
    assert read_json(tmp_path / "mae" / "results.json") != before
    with pytest.raises(InputError, match=r"holds another run \(weights was '\w+', now '\w+'\): choose another folder"):
        tinymae.finetune(**tuning)
    tinymae.finetune(**tuning, overwrite=True)  # moves the old one aside
    tinymae.finetune(**tuning)
    other = tiny_mae()
    tinymae.linear_probe(**FEW, head="mlp", weights=other, output_dir=tmp_path / "probe")
    with torch.no_grad():
        other.encoder.norm.bias += 1
    with pytest.raises(InputError, match=r"\(weights was 'MaskedAutoencoder, sha256 \w+', now 'Mas[^']*'\)"):
        tinymae.linear_probe(**FEW, head="mlp", weights=other, output_dir=tmp_path / "probe")


def test_a_run_is_not_that_of_a_classifier_whose_config_says_otherwise(tmp_path):
    classifier = build_classifier(tiny_mae(), classes=["cat", "dog"]).eval()
    classifier.write_weights(tmp_path / "weights")
    settings = {"mixed_precision": "no", "output_dir": tmp_path / "run"}
    tinymae.predict(FEW["data"][:8], weights=classifier, **settings)
    assert tinymae.predict(FEW["data"][:8], weights=tmp_path / "weights", **settings).results["images"] == 8
    whole = (tmp_path / "weights" / "config.json").read_text()
    for changed in (
        {"label_names": ["dog", "cat"]}, {"several_labels": True}, {"reading": {"fit": "pad"}},
        {"pretrained_cfg": {"mean": [0.3], "std": [0.5]}},
    ):  # fmt: skip
        edit_json(tmp_path / "weights" / "config.json", changed)
        with pytest.raises(InputError, match="holds another run"):
            tinymae.predict(FEW["data"][:8], weights=tmp_path / "weights", **settings)
        (tmp_path / "weights" / "config.json").write_text(whole)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_run_is_not_continued_on_other_images_in_the_same_folder(streamed, tmp_path, monkeypatch):
    if streamed:
        load_splits = tinymae.data.load.load_splits
        monkeypatch.setattr(load_splits, "__kwdefaults__", load_splits.__kwdefaults__ | {"memory_limit_gb": 0})
    save_images(tmp_path / "images", load_dataset("digits").images[:40])
    settings = TINY | {"contrast_epochs": 0, "batch_size": 16, "mixed_precision": "no"}
    settings |= {"data": tmp_path / "images", "in_channels": 1, "image_size": 8, "epochs": 1, "num_workers": 0,
                 "output_dir": tmp_path / "run"}  # fmt: skip
    with pytest.raises(Stopped):
        tinymae.pretrain(**settings, pause_after_minutes=0)
    content = {path: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    Image.new("L", (9, 9), 7).save(tmp_path / "images" / "21.png")
    with one_line(r"another run \(images of the same names in (train|val) with other pixels or labels\): choose"):
        tinymae.pretrain(**settings)
    (tmp_path / "images" / "more.png").write_bytes(content[tmp_path / "images" / "03.png"])
    with pytest.raises(InputError, match=r"another run \(.*1 of train came: more\.png\)"):
        tinymae.pretrain(**settings)
    (tmp_path / "images" / "more.png").unlink()
    for path, before in content.items():
        path.write_bytes(before)
    assert tinymae.pretrain(**settings).results["steps"] == 2


def test_a_run_is_the_same_run_however_its_data_and_weights_are_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "images", load_dataset("digits").images[:20])
    save_images(tmp_path / "others", load_dataset("digits").images[20:40])
    tiny_mae().write_weights("mae")
    common = {"split": "all", "mixed_precision": "no", "output_dir": tmp_path / "run"}
    found = tinymae.evaluate("images", weights="mae", **common).results
    recorded = (tmp_path / "run" / "args.json").read_text()
    arguments = read_json(tmp_path / "run" / "args.json")["arguments"]
    assert (arguments["data"], arguments["weights"]) == ("images", "mae")
    Path("images").rename("moved")
    Path("mae").rename("weights")
    for data, weights in (("moved", tmp_path / "weights"), (tmp_path / "moved", "weights")):
        assert tinymae.evaluate(data, weights=weights, **common).results == found
    assert tinymae.evaluate("moved", weights=tiny_mae(), skip_unreadable=True, **common).results == found
    assert (tmp_path / "run" / "args.json").read_text() == recorded
    with one_line(r"\(data was 'images', now 'others', images of the same names in all with other pixels or labels\)"):
        tinymae.evaluate("others", weights="weights", **common)
    (tmp_path / "moved" / "07.png").rename(tmp_path / "moved" / "7.png")
    with pytest.raises(InputError, match=r"\(data was 'images', now 'moved', 1 of all came: 7\.png, 1 of all went: 07"):
        tinymae.evaluate("moved", weights="weights", **common)
    (tmp_path / "moved" / "7.png").rename(tmp_path / "moved" / "07.png")
    other = tiny_mae()
    other.mask_token.data += 1
    other.write_weights("weights")
    with pytest.raises(InputError, match=r"weights was 'mae', now 'weights'\)"):
        tinymae.evaluate("moved", weights="weights", **common)


def test_the_same_images_with_labels_of_other_names_are_other_data(tmp_path):
    images = load_dataset("digits").images[:40]
    np.savez(tmp_path / "a.npz", images=images, labels=["cat", "dog"] * 20)
    np.savez(tmp_path / "b.npz", images=images, labels=["benign", "malignant"] * 20)
    settings = {"weights": tiny_mae(), "epochs": 1, "batch_size": 16, "mixed_precision": "no"}
    tinymae.finetune(tmp_path / "a.npz", **settings, output_dir=tmp_path / "run")
    with pytest.raises(InputError, match="holds another run"):
        tinymae.finetune(tmp_path / "b.npz", **settings, output_dir=tmp_path / "run")


def test_a_path_counts_where_nothing_is_known_of_its_content_or_names_and_sizes_alone(tmp_path):
    arguments, inputs = {"data": "2023", "weights": "owner/name"}, {"train": "2 images, 12ab"}
    write_json(tmp_path / "args.json", {"arguments": arguments, "inputs": inputs})
    write_json(tmp_path / "results.json", {})
    pixels = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    in_memory, streamed = ({"train": load_dataset(pixels, memory_limit_gb=limit)} for limit in (4, 0))
    moved = arguments | {"data": "2024"}
    require_same_run(tmp_path, moved, inputs, in_memory)
    for changed, found, datasets in [
        (moved, {}, {}),
        (moved, inputs, streamed),
        (arguments | {"weights": "owner/other"}, inputs, in_memory),
    ]:
        with one_line(r"(data was '2023', now '2024'|weights was 'owner/name', now 'owner/other')\)"):
            require_same_run(tmp_path, changed, found, datasets)


def test_pixels_from_python_are_told_apart(tmp_path):
    tinymae.pretrain(**QUICK | {"epochs": 1}, output_dir=tmp_path)
    for name, changed in (("data", 255 - QUICK["data"]), ("labels", QUICK["labels"].flip(0)), ("labels", None)):
        now = "None" if changed is None else "'array [^']*'"
        with pytest.raises(InputError, match=rf"another run \({name} was 'array [^']*', now {now}\): choose"):
            tinymae.pretrain(**QUICK | {"epochs": 1, name: changed}, output_dir=tmp_path)
    same = {"data": QUICK["data"].numpy().copy(), "labels": QUICK["labels"].tolist()}
    assert tinymae.pretrain(**QUICK | {"epochs": 1} | same, output_dir=tmp_path).results["steps"] == 4


@pytest.mark.parametrize(
    "array",
    [np.arange(12.0).reshape(3, 4), np.array(3.5), np.zeros((0, 3)), np.array(["cat", "ox"]), np.eye(4)[:, ::2]],
)
def test_an_array_is_recorded_by_the_digest_of_its_values(array):
    digest = hashlib.sha256(array.tobytes()).hexdigest()[:16]
    assert describe_value(array).endswith(f" of {array.dtype}, sha256 {digest}")


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_an_array_is_recorded_without_a_copy(kind, tmp_path):
    np.save(tmp_path / "a.npy", pixels(1000, 32, 32))
    array = kind(np.load(tmp_path / "a.npy", mmap_mode="c"))
    tracemalloc.start()
    describe_value(array)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000  # of a million bytes


def test_tensors_that_numpy_does_not_know_are_recorded_as_they_are_read():
    values = torch.rand(3, 4, requires_grad=True)
    assert describe_value(values) == describe_value(values.detach().numpy())
    assert describe_value(values.bfloat16()) == describe_value(values.bfloat16().float())


def test_names_in_an_array_of_objects_are_recorded_as_names():
    """As pandas has them: their addresses would be others in the next process."""
    names = np.array(["cat", "ox"])
    assert describe_value(names.astype(object)) == describe_value(names)


def test_a_run_says_which_images_came_or_went(tmp_path):
    def run():
        data = {"train": load_dataset(tmp_path / "data", image_size=8)}
        inputs = {name: dataset.fingerprint for name, dataset in data.items()}
        return run_in(tmp_path / "run", inputs=inputs, datasets=data)

    save_images(tmp_path / "data", pixels(60, 8, 8))
    with run() as first:
        first.finish({}, [])
    names = load_dataset(tmp_path / "data").names
    (tmp_path / "data" / names[0]).unlink()
    for number in range(60, 70):
        picture(tmp_path / "data" / f"{number}.png")
    came = sorted(set(load_dataset(tmp_path / "data").names) - set(names))
    said = f"{len(came)} of train came: {', '.join(came[:3])}, ..., 1 of train went: {names[0]}"
    with pytest.raises(InputError, match=said):
        run().claim()


def test_labels_are_recorded_by_what_they_are_read_as():
    pandas = pytest.importorskip("pandas")
    numbers = [0, 1, 0, 1]
    ways = (numbers, np.array(numbers), pandas.Series(numbers))
    recorded = {PretrainSettings(data="digits", labels=labels).record()["labels"] for labels in ways}
    assert len(recorded) == 1 and recorded != {PretrainSettings(data="digits", labels=numbers[::-1]).record()["labels"]}
