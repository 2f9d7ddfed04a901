"""Figures, the only place that imports matplotlib. Functions return figures; equal data give equal bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor
from torch.nn.functional import pad

from higgs.audio import log_mel

INK, ACCENT, SECOND, PALE = "#1f2933", "#c8553d", "#3d6ec8", "#d9dee4"

plt.rcParams.update({"figure.dpi": 110, "savefig.bbox": "tight", "font.size": 10, "svg.hashsalt": "higgs"})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
plt.rcParams.update({"axes.edgecolor": INK, "axes.titlesize": 10, "axes.titlelocation": "left"})
plt.rcParams["text.parse_math"] = False  # what people write is text: "$5 or $10" is no formula


def _finish(figure: Figure) -> Figure:
    # A closed figure is shown once, as the value of its cell, and not a second time by the inline backend.
    plt.close(figure)
    return figure


def _decibels(waveform: Tensor, sample_rate: int) -> np.ndarray:
    """[L] -> mel spectrogram [bands, frames] in dB, of what is shorter than a window with silence after it."""
    waveform = pad(waveform.detach().cpu(), (0, max(0, 1024 - len(waveform))))
    return log_mel(waveform, sample_rate).numpy() / np.log(10) * 20


def _show_mel(axis: Axes, mel: np.ndarray, top: float, **more: Any) -> AxesImage:
    """[bands, frames] in dB, down to 80 dB below `top`."""
    return axis.imshow(mel, origin="lower", aspect="auto", cmap="magma", vmin=top - 80, vmax=top, **more)


def mel_comparison(waveforms: Mapping[str, Tensor], sample_rate: int = 24_000) -> Figure:
    """Mel spectrograms one above the other on one scale of time and level; names become titles."""
    mels = {name: _decibels(w, sample_rate) for name, w in waveforms.items()}
    top = max(mel.max() for mel in mels.values())
    size = (9, 1.9 * len(mels))
    figure, axes = plt.subplots(len(mels), 1, figsize=size, sharex=True, squeeze=False, layout="constrained")
    for axis, (name, mel) in zip(axes[:, 0], mels.items(), strict=True):
        image = _show_mel(axis, mel, top, extent=(0, mel.shape[1] / 100, 0, mel.shape[0]))
        axis.set(title=name, ylabel="mel band")
    axes[-1, 0].set_xlabel("seconds")
    figure.colorbar(image, ax=axes[:, 0], label="dB", shrink=0.8)
    return _finish(figure)


def _show_codes(codes: Tensor, title: str, xlabel: str, cmap: Any, most: int, **more: Any) -> tuple[Figure, Axes]:
    """[K, T] as colours from 0 to `most`."""
    figure, axis = plt.subplots(figsize=(9, 1.9), layout="constrained")
    style = {"aspect": "auto", "interpolation": "nearest", "vmin": 0, "vmax": most} | more
    axis.imshow(codes.cpu().numpy(), cmap=cmap, **style)
    axis.set(xlabel=xlabel, ylabel="codebook", title=title, yticks=range(len(codes)))
    return figure, axis


def codes_map(codes: Tensor, codebook_size: int, frame_rate: float, title: str = "") -> Figure:
    """Codes [K, T] as colours over time."""
    num_codebooks, frames = codes.shape
    extent = (0, frames / frame_rate, num_codebooks - 0.5, -0.5)
    figure, axis = _show_codes(codes, title, "seconds", "viridis", codebook_size - 1, extent=extent)
    figure.colorbar(axis.images[0], ax=axis, label="code")
    return _finish(figure)


def delay_picture(delayed: Tensor, codebook_size: int, title: str = "") -> Figure:
    """A delayed segment [K, S]: stream bos, codes, stream eos."""
    kinds = (delayed >= codebook_size).int() + (delayed > codebook_size).int()
    figure, axis = _show_codes(kinds, title, "step", ListedColormap([PALE, SECOND, ACCENT]), 2)
    handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in (SECOND, PALE, ACCENT)]
    place = {"ncols": 3, "loc": "lower right", "bbox_to_anchor": (1, 1), "frameon": False}
    axis.legend(handles, ["stream bos", "codes", "stream eos"], **place)
    return _finish(figure)


def curves(rows: Sequence[Mapping[str, float]], x: str, names: Sequence[str], ylabel: str, title: str = "") -> Figure:
    """The columns `names` of a log over its column `x`; rows without a value are left out of its curve."""
    figure, axis = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    for name, colour in zip(names, plt.cm.viridis(np.linspace(0.1, 0.8, len(names))), strict=True):
        points = [(row[x], row[name]) for row in rows if row.get(name) is not None]
        marker = "o-" if len(points) < 20 else "-"
        line = np.array(points, dtype=float).reshape(-1, 2).T
        axis.plot(*line, marker, color=colour, label=name, linewidth=1.5, markersize=4)
    axis.set(xlabel=x, ylabel=ylabel, title=title)
    axis.grid(color=PALE)
    axis.legend(frameon=False)
    return _finish(figure)


def colours_map(colours: Tensor, frame_rate: float, title: str = "") -> Figure:
    """Colours [K, T, 3] in 0 ... 1, one for each code, over time."""
    num_codebooks, frames, _ = colours.shape
    extent = (0, frames / frame_rate, num_codebooks - 0.5, -0.5)
    figure, _ = _show_codes(colours, title, "seconds", None, 1, extent=extent)
    return _finish(figure)


def alignment_map(weights: Tensor, tokens: Sequence[str], path: Sequence[int], frame_rate: float) -> Figure:
    """What each frame attends to [T, N], a line for each of N tokens, and the token of each frame."""
    frames, size = weights.shape
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.16 * size), layout="constrained")
    extent = (0, frames / frame_rate, size - 0.5, -0.5)
    axis.imshow(weights.T.numpy(), cmap="Blues", aspect="auto", interpolation="nearest", vmin=0, extent=extent)
    axis.plot((np.arange(frames) + 0.5) / frame_rate, path, color=ACCENT, linewidth=1.2, drawstyle="steps-mid")
    axis.set(xlabel="seconds", ylabel="token of the text", yticks=range(size))
    axis.set_yticklabels([token.replace(" ", "␣") for token in tokens], fontsize=8)
    return _finish(figure)


def step_maps(panels: Mapping[str, Tensor]) -> Figure:
    """Name -> values [K, C] over codebooks and steps 1 ... C, NaN left out; each with a scale of its own."""
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 1.9 * len(panels)), squeeze=False, layout="constrained")
    for axis, (name, values) in zip(axes[:, 0], panels.items(), strict=True):
        extent = (0.5, values.shape[1] + 0.5, len(values) - 0.5, -0.5)
        image = axis.imshow(values.numpy(), cmap="viridis", aspect="auto", interpolation="nearest", extent=extent)
        axis.set(xlabel="step", ylabel="codebook", title=name, yticks=range(len(values)))
        figure.colorbar(image, ax=axis)
    return _finish(figure)
