"""Fine-tuning with images that have no labels."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from running import FEW, metrics, same_files, tiny_mae

import tinymae
from tinymae import InputError, load_dataset
from tinymae.commands import finetune
from tinymae.commands.finetune import FinetuneSettings
from tinymae.commands.unlabelled import UnlabelledSettings
from tinymae.data.batches import Batch, MixedBatch, join_batches
from tinymae.files import read_json
from tinymae.models.pseudo_labels import unlabelled_losses

TUNE = FEW | {"batch_size": 16, "epochs": 2, "flip": False, "log_every": 1, "unlabelled": 2, "unlabelled_warmup": 0.5,
              "unlabelled_threshold": 0.1}  # fmt: skip


def test_losses_are_those_of_each_image_in_turn():
    torch.manual_seed(0)
    student, teacher, known = 3 * torch.randn(50, 4), 3 * torch.randn(50, 4), torch.randint(4, (50,))
    student.requires_grad_(), teacher.requires_grad_()
    losses, kept, right = [], 0, 0
    for mine, expected, label in zip(student, teacher, known, strict=True):
        probabilities = expected.exp() / expected.exp().sum()
        best = int(probabilities.argmax())
        if probabilities[best] >= 0.7:
            losses.append(-(mine.exp() / mine.exp().sum())[best].log())
            kept, right = kept + 1, right + (best == label)
    found = unlabelled_losses(student, teacher, known, threshold=0.7)
    assert 0 < right < kept < 50
    assert float(found["unlabelled_kept"]) == pytest.approx(kept / 50)
    assert float(found["unlabelled_right"]) == pytest.approx(right / 50)
    torch.testing.assert_close(found["unlabelled_loss"], sum(losses) / 50)
    found["unlabelled_loss"].backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None
    assert "unlabelled_right" not in unlabelled_losses(student, teacher, threshold=0.7)


def test_joined_batches_keep_their_order_and_their_places_in_the_whole_batch():
    def stream(first: int, parts: list[list[int]]):
        for step in range(3):
            yield [
                Batch(torch.tensor(part) + 100 * step + first, torch.tensor(part) % 2, torch.tensor(part))
                for part in parts
            ]

    steps = list(join_batches(stream(0, [[0, 3], [1, 2]]), stream(50, [[0, 1, 6, 7], [2, 3, 4, 5]]), batch_size=4))
    assert len(steps) == 3
    first, second = steps[2]
    assert isinstance(first, MixedBatch)
    assert first.images.tolist() == [200, 203, 250, 251, 256, 257] and first.labels.tolist() == [0, 1]
    assert first.positions.tolist() == [0, 3, 4, 5, 10, 11] and first.known.tolist() == [0, 1, 0, 1]
    assert sorted(first.positions.tolist() + second.positions.tolist()) == list(range(12))


def test_unlabelled_images_join_after_the_warm_up_and_are_watched(quick_figures, tmp_path, monkeypatch):
    shown = []

    def spying(*given, create_losses=finetune.create_losses, **options):
        compute_losses = create_losses(*given, **options)
        return lambda **inputs: shown.extend(inputs.get("shown", [])) or compute_losses(**inputs)

    monkeypatch.setattr(finetune, "create_losses", spying)
    weighed = TUNE | {"crop_padding": 0, "random_erasing": 1.0, "unlabelled_weight": 0.3}
    run = tinymae.finetune(**weighed, weights=tiny_mae(), output_dir=tmp_path)
    rows = [row for row in metrics(tmp_path) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 9)) and run.results["num_labels"] == 64
    assert not any("unlabelled_loss" in row for row in rows[:4])
    for row in rows[4:]:
        assert 0 <= row["unlabelled_right"] <= row["unlabelled_kept"] <= 1
        assert row["loss"] == pytest.approx(row["labelled_loss"] + 0.3 * row["unlabelled_loss"], rel=1e-4)
    assert rows[-1]["unlabelled_kept"] == 1  # ten classes: one of them has a tenth
    known = {image.numpy().tobytes() for image in FEW["data"]}  # the teacher's are neither distorted nor erased
    assert len(shown) == 4 * 32 and all(image.numpy().tobytes() in known for image in shown)


@pytest.mark.parametrize(("threshold", "kept"), [(0.1, 1.0), (0.99, 0.0)])
def test_how_many_were_learned_from_at_the_end_is_told_and_of_none_the_remedy(
    threshold, kept, quick_figures, tmp_path, capsys
):
    settings = TUNE | {"unlabelled_threshold": threshold, "weights": tiny_mae()}
    assert tinymae.finetune(**settings, output_dir=tmp_path).results["unlabelled_kept"] == kept
    said = capsys.readouterr().out
    assert f"at the end {100 * kept:g} % of the images without labels were learned from\n" in said
    remedy = "the teacher was 99 % sure of the class of none: train longer, or lower unlabelled_threshold\n"
    assert (remedy in said) == (not kept)


def test_the_end_is_the_last_tenth_of_the_lines_that_have_such_images():
    rows = [{"loss": 1.0}] * 50 + [{"unlabelled_kept": ratio / 100} for ratio in range(50)] + [{"accuracy_val": 9.0}]
    run = SimpleNamespace(progress=SimpleNamespace(metrics=rows), print=print)
    settings = FinetuneSettings(from_scratch=True, unlabelled=3)
    assert settings.judge_unlabelled(run) == {"unlabelled_kept": pytest.approx(np.mean([0.45, 0.46, 0.47, 0.48, 0.49]))}
    run.progress.metrics = rows[:50]  # the time was over before them
    assert settings.judge_unlabelled(run) == {}


def test_what_the_images_without_labels_are_is_printed(quick_figures, tmp_path, capsys):
    settings, words = TUNE | {"weights": tiny_mae()}, f"{TUNE['unlabelled']} more for each, "
    for name, changes, said in [
        ("all", {}, "of the labelled images themselves, as none is without a label: --unlabelled-data names others"),
        ("half", {"label_fraction": 0.5}, "without labels, of all 64: {others} with no label that is learned from"),
        ("folder", {"unlabelled_data": load_dataset("digits", "val").images}, "without labels, of 137"),
    ]:
        run = tinymae.finetune(**settings | changes, output_dir=tmp_path / name)
        said = said.format(others=64 - run.results["num_labels"])
        assert f"{words}{said}\n" in capsys.readouterr().out


def test_a_folder_of_images_without_labels_may_be_theirs(quick_figures, tmp_path):
    others = load_dataset("digits", "val").images
    settings = TUNE | {"unlabelled_data": others, "label_fraction": 0.5, "weights": tiny_mae()}
    tinymae.finetune(**settings, output_dir=tmp_path / "run")
    row = metrics(tmp_path / "run")[-2]
    assert "unlabelled_loss" in row and "unlabelled_right" not in row
    recorded = read_json(tmp_path / "run" / "args.json")
    assert recorded["inputs"]["unlabelled"].startswith("137 images")  # nothing is held out of them
    with pytest.raises(InputError, match="unlabelled_data was 'array .*, now 'array"):
        tinymae.finetune(**settings | {"unlabelled_data": 255 - others}, output_dir=tmp_path / "run")


def test_labels_of_images_without_labels_are_not_learned_from(quick_figures, tmp_path, monkeypatch):
    def with_others(self, train_set):
        return replace(train_set, labels=(train_set.labels + 1) % 10)

    right = tinymae.finetune(**TUNE, weights=tiny_mae(), output_dir=tmp_path / "right")
    monkeypatch.setattr(UnlabelledSettings, "load_unlabelled", with_others)
    wrong = tinymae.finetune(**TUNE, weights=tiny_mae(), output_dir=tmp_path / "wrong")
    seen = [[row.get("unlabelled_right") for row in metrics(run.folder)] for run in (right, wrong)]
    assert seen[0] != seen[1]
    assert same_files(right.folder, wrong.folder)


def test_what_does_not_go_with_them_is_refused_before_a_folder_is_made(tmp_path):
    for settings, message in [
        ({"unlabelled": -1}, "unlabelled -1 is below 0"),
        ({"unlabelled": 5}, "unlabelled 5 x batch_size 16 is more than the 64 images without labels"),
        ({"unlabelled_threshold": 1.0}, "unlabelled_threshold 1 is not below 1"),
        ({"unlabelled_warmup": -0.1}, "unlabelled_warmup -0.1 is below 0"),
        ({"ema_decay": 0.0}, "unlabelled needs the moving average of the weights: give an ema_decay above 0"),
        ({"mixup": 0.8}, "unlabelled does not go with mixup and cutmix: make both 0"),
        ({"unlabelled": 0, "unlabelled_data": "photos"}, "unlabelled_data without a ratio is not used"),
        ({"unlabelled_data": "photos"}, "data photos does not exist"),
        ({"unlabelled_data": torch.zeros(90, 3, 8, 8, dtype=torch.uint8)}, "has 3 channels, the weights want 1"),
        (
            {"unlabelled_data": torch.zeros(90, 1, 8, 8, dtype=torch.uint16)},
            "has uint16 images, those with labels are uint8",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            tinymae.finetune(**TUNE | {"weights": tiny_mae()} | settings, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
