"""Figures, the only place that imports matplotlib. Functions return figures; equal data give equal bytes."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from higgs.audio import log_mel

INK, ACCENT, SECOND, PALE = "#1f2933", "#c8553d", "#3d6ec8", "#d9dee4"

plt.rcParams.update(
    {
        "figure.dpi": 110,
        "savefig.bbox": "tight",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": INK,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "svg.hashsalt": "higgs",
    }
)


def _finish(figure: Figure) -> Figure:
    # A closed figure is shown once, as the value of its cell, and not a second time by the inline backend.
    plt.close(figure)
    return figure


def mel_comparison(waveforms: Mapping[str, Tensor], sample_rate: int = 24_000) -> Figure:
    """Mel spectrograms one above the other on one scale of time and level; names become titles."""
    mels = {
        name: log_mel(w.detach().cpu(), sample_rate).numpy() / np.log(10) * 20
        for name, w in waveforms.items()
    }
    top = max(mel.max() for mel in mels.values())
    figure, axes = plt.subplots(
        len(mels), 1, figsize=(9, 1.9 * len(mels)), sharex=True, squeeze=False, layout="constrained"
    )
    for axis, (name, mel) in zip(axes[:, 0], mels.items(), strict=True):
        image = axis.imshow(
            mel,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=top - 80,
            vmax=top,
            extent=(0, mel.shape[1] / 100, 0, mel.shape[0]),
        )
        axis.set_title(name)
        axis.set_ylabel("mel band")
    axes[-1, 0].set_xlabel("seconds")
    figure.colorbar(image, ax=axes[:, 0], label="dB", shrink=0.8)
    return _finish(figure)


def codes_map(codes: Tensor, codebook_size: int, frame_rate: float, title: str = "") -> Figure:
    """Codes [K, T] as colours: one row for each codebook, one column for each frame."""
    figure, axis = plt.subplots(figsize=(9, 1.9), layout="constrained")
    num_codebooks, frames = codes.shape
    image = axis.imshow(
        codes.cpu().numpy(),
        aspect="auto",
        cmap="viridis",
        vmin=0,
        vmax=codebook_size - 1,
        interpolation="nearest",
        extent=(0, frames / frame_rate, num_codebooks - 0.5, -0.5),
    )
    axis.set(xlabel="seconds", ylabel="codebook", title=title, yticks=range(num_codebooks))
    figure.colorbar(image, ax=axis, label="code")
    return _finish(figure)


def delay_picture(delayed: Tensor, codebook_size: int, title: str = "") -> Figure:
    """A delayed segment [K, C]: stream bos, codes, stream eos."""
    kinds = (delayed >= codebook_size).int() + (delayed > codebook_size).int()
    figure, axis = plt.subplots(figsize=(9, 1.9), layout="constrained")
    # codes in between, so that the staircase at both ends stands out
    axis.imshow(
        kinds.cpu().numpy(),
        aspect="auto",
        cmap=ListedColormap([PALE, SECOND, ACCENT]),
        vmin=0,
        vmax=2,
        interpolation="nearest",
    )
    handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in (SECOND, PALE, ACCENT)]
    axis.legend(
        handles,
        ["stream bos", "codes", "stream eos"],
        ncols=3,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        frameon=False,
    )
    axis.set(xlabel="column", ylabel="codebook", title=title, yticks=range(delayed.shape[0]))
    return _finish(figure)


def lines_by_group(
    x: Sequence[float],
    groups: Mapping[str, Sequence[float]],
    xlabel: str,
    ylabel: str,
    title: str = "",
) -> Figure:
    """One line for each group over the same x."""
    figure, axis = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
    for (name, values), colour in zip(
        groups.items(), plt.cm.viridis(np.linspace(0.1, 0.8, len(groups))), strict=True
    ):
        axis.plot(x, values, "o-", color=colour, label=name, linewidth=1.5, markersize=4)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title, xticks=x)
    axis.legend(frameon=False)
    return _finish(figure)


def curves(
    rows: Sequence[Mapping[str, float]], x: str, names: Sequence[str], ylabel: str, title: str = ""
) -> Figure:
    """The columns `names` of a log over its column `x`; rows without a column are left out of its curve."""
    figure, axis = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    for name, colour in zip(names, plt.cm.viridis(np.linspace(0.1, 0.8, len(names))), strict=True):
        points = [(row[x], row[name]) for row in rows if name in row]
        axis.plot(*zip(*points, strict=True), color=colour, label=name, linewidth=1.5)
    axis.set(xlabel=x, ylabel=ylabel, title=title)
    axis.grid(color=PALE)
    axis.legend(frameon=False)
    return _finish(figure)


def intervals(
    rows: Mapping[str, tuple[float, float, float]], xlabel: str, title: str = ""
) -> Figure:
    """Name -> (estimate, low, high), drawn as points with whiskers, the first on top."""
    figure, axis = plt.subplots(figsize=(7.5, 0.6 + 0.42 * len(rows)), layout="constrained")
    for place, (estimate, low, high) in enumerate(rows.values()):
        axis.plot([low, high], [place, place], color=SECOND, linewidth=2)
        axis.plot([estimate], [place], "o", color=ACCENT)
        axis.annotate(
            f"{estimate:.1f}",
            (estimate, place),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axis.set(yticks=range(len(rows)), yticklabels=list(rows), xlabel=xlabel, title=title)
    axis.set_ylim(len(rows) - 0.5, -0.7)
    axis.set_xlim(left=0)
    axis.grid(axis="x", color=PALE)
    return _finish(figure)


def histogram(
    groups: Mapping[str, Sequence[float]], xlabel: str, title: str = "", bins: int = 20
) -> Figure:
    """The distributions of several groups, side by side on common bins."""
    figure, axis = plt.subplots(figsize=(7.5, 2.8), layout="constrained")
    colours = plt.cm.viridis(np.linspace(0.1, 0.8, len(groups)))
    axis.hist(list(groups.values()), bins=bins, label=list(groups), color=colours)
    axis.set(xlabel=xlabel, ylabel="utterances", title=title)
    axis.legend(frameon=False)
    return _finish(figure)
