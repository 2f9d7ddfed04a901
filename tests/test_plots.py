"""Text of people in figures is text, whatever signs it has."""

import pytest
import torch

from higgs.workflow.plots import mel_comparison

TEXTS = ['He said: "$20?" "No, $30!"', "Is it $5, 50% of $10?", "$x^2$ and \\frac{1}", "a_b^c {d} \\"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_title_is_drawn_as_it_is_written(text):
    figure = mel_comparison({text: torch.zeros(24_000)})
    (axis, *_) = figure.axes
    assert axis.get_title(loc="left") == text and not axis.title.get_parse_math()
    figure.canvas.draw()
