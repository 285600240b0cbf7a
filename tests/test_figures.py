"""Figures: letters of any script."""

import warnings

import numpy as np
from PIL import Image

from tinymae.evaluation import figures


def test_names_in_scripts_that_no_font_has_draw_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.confusion_matrix(np.eye(2), ["\ue001 鳥", "кошка"], tmp_path / "matrix.png", "漢字 \ue001")
        rows = [{"epoch": epoch, "loss": 1.0} for epoch in (1, 2)]
        figures.training_curves(rows, {"loss": ["loss"]}, tmp_path / "curves.png", "漢字 \ue001")
    for name in ("matrix", "curves"):
        assert np.asarray(Image.open(tmp_path / f"{name}.png")).std() > 10
