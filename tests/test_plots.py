"""Text of people in figures is text, whatever signs it has, and what has no value is left out."""

import pytest
import torch

from higgs.workflow.plots import curves, mel_comparison

TEXTS = ['He said: "$20?" "No, $30!"', "Is it $5, 50% of $10?", "$x^2$ and \\frac{1}", "a_b^c {d} \\"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_title_is_drawn_as_it_is_written(text):
    figure = mel_comparison({text: torch.zeros(24_000)})
    (axis, *_) = figure.axes
    assert axis.get_title(loc="left") == text and not axis.title.get_parse_math()
    figure.canvas.draw()


def test_a_short_clip_and_a_curve_without_a_value_are_drawn():
    mel_comparison({"a moment": torch.zeros(100)}).canvas.draw()
    rows = [{"x": 1, "en": 2.0, "es": None}, {"x": 2, "en": 1.0, "es": None}, {"x": 3, "en": None, "es": None}]
    (axis,) = curves(rows, "x", ["en", "es"], "y").axes
    assert [line.get_xydata().tolist() for line in axis.lines] == [[[1, 2], [2, 1]], []]
