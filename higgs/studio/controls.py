"""Widgets of the explore notebook. Their state is in the widgets alone, so that using them changes no file of Git.

A text of a person is shown escaped, in an HTML widget, which knows no mathematics.
"""

import html
from collections.abc import Callable, Sequence
from pathlib import Path

import ipywidgets as w

from higgs.config import SamplingConfig
from higgs.data.voices import read_voices
from higgs.studio.speaking import Sample, Studio, grid, ranking

SHOWN = 30  # of the samples, the newest
FIELD = {"style": {"description_width": "7em"}}
WIDE, SHORT = FIELD | {"layout": w.Layout(width="46em", max_width="100%")}, {"layout": w.Layout(width="16em")}
# Behind dark text: from no word errors to WORST percent and more.
GOOD, BAD, UNKNOWN, WORST = (214, 236, 214), (246, 196, 184), "#e4e7ea", 50


def escaped(text: object) -> str:
    return html.escape(str(text))


def colour(wer: float | None) -> str:
    """Percent -> what a cell of the map has behind its number."""
    if wer is None:
        return UNKNOWN
    share = min(wer, WORST) / WORST
    return "#" + "".join(f"{round(good + share * (bad - good)):02x}" for good, bad in zip(GOOD, BAD, strict=True))


def numbers(text: str, kind: type, what: str) -> list:
    """ "0.2, 0.6" -> [0.2, 0.6]. ValueError names the field."""
    try:
        return [kind(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise ValueError(f"{what}: expected numbers with commas between, got {text!r:.60}") from error


class Action:
    """A button that runs `act`, and a line that says how it went; an error is shown and changes nothing else."""

    def __init__(self, label: str, act: Callable[[], str | None]):
        self.act = act
        self.button = w.Button(description=label, button_style="primary")
        self.status = w.HTML()
        self.button.on_click(self._run)
        self.view = w.HBox([self.button, self.status])

    def _run(self, _: w.Button) -> None:
        self.button.disabled, self.status.value = True, "working ..."
        try:
            self.status.value = escaped(self.act() or "")
        except Exception as error:  # a notebook shows none that a button raises
            kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
            self.status.value = f"<b>{escaped(f'{kind}{error}')}</b>"
        finally:
            self.button.disabled = False


class Controls:
    """All panes over one studio. `speak`, `sweep`, `clone` and `talk` are actions; `view` is what a cell shows."""

    def __init__(self, studio: Studio, voice: str, text: str, lines: Sequence[tuple[str, str]] = ()):
        self.studio = studio
        own = studio.engine.generation.sampling
        self.voice = w.Dropdown(options=self.voice_names(), value=voice, description="voice", **FIELD)
        self.text = w.Textarea(value=text, description="text", **WIDE, rows=3)
        self.scene = w.Text(placeholder="a description of the scene, or nothing", description="scene", **WIDE)
        self.temperature = w.FloatSlider(own.temperature, min=0, max=2, step=0.05, description="temperature", **FIELD)
        most = studio.engine.model.config.code_vocab_size
        self.top_k = w.BoundedIntText(own.top_k or 0, min=0, max=most, description="top-k", **FIELD)
        self.seed = w.BoundedIntText(own.seed, min=0, max=2**31 - 1, description="seed", **FIELD)
        self.number = w.BoundedIntText(1, min=1, max=16, description="best of", **FIELD)
        self.speak = Action("Speak", self._speak)
        self.made = w.VBox()
        self._entries: dict[Path, w.HTML] = {}
        self._make_sweep()
        self._make_clone()
        self._make_dialogue(lines)
        self.show()

    def voice_names(self) -> list[str]:
        return [*self.studio.uploads, *read_voices(self.studio.voices)[0]]

    @property
    def sampling(self) -> SamplingConfig:
        chosen = {"temperature": self.temperature.value, "top_k": self.top_k.value, "seed": self.seed.value}
        return self.studio.engine.generation.sampling.override(**chosen)

    @property
    def view(self) -> w.Widget:
        draw = w.HBox([self.temperature, self.top_k, self.seed, self.number], layout=w.Layout(flex_flow="row wrap"))
        panes = {
            "One sentence": [self.voice, self.text, self.scene, draw, self.speak.view],
            "A map of settings": [*self.sweep_fields, self.sweep.view, self.map, self.player],
            "A voice of your own": [self.upload, self.transcript, self.clone.view],
            "A dialogue": [self.lines, self.add_line, self.talk.view],
        }
        tabs = w.Tab([w.VBox(children) for children in panes.values()], titles=list(panes))
        return w.VBox([tabs, w.HTML("<b>What was made, the newest first</b>"), self.made])

    def show(self) -> None:
        """The newest samples in the list; players of those that are there already are not sent again."""
        newest = reversed(self.studio.samples[-SHOWN:])
        self._entries = {s.path: self._entries.get(s.path) or w.HTML(s.page()) for s in newest}
        self.made.children = list(self._entries.values())

    def _speak(self) -> str:
        settings = [self.sampling.override(seed=self.seed.value + n) for n in range(self.number.value)]
        new = self.studio.speak(self.text.value, self.voice.value, settings, self.scene.value)
        self.show()
        best = min(new, key=ranking)
        return f"{best.path}" if len(new) == 1 else f"the best of {len(new)} by WER: {best.path}"

    def _make_sweep(self) -> None:
        own = self.studio.engine.generation.sampling
        self.temperatures = w.Text(f"{own.temperature:g}, 0.6, 1", description="temperature", **FIELD)
        self.top_ks = w.Text(f"{own.top_k or 0}, 200", description="top-k", **FIELD)
        self.seeds = w.Text("0, 1", description="seeds", **FIELD)
        self.sweep_fields = [self.temperatures, self.top_ks, self.seeds]
        self.sweep = Action("Speak all of them", self._sweep)
        self.map, self.player = w.GridBox(), w.HTML()

    def _sweep(self) -> str:
        """A row for each temperature and top-k, a column for each seed; a cell shows the WER, and plays."""
        temperatures = numbers(self.temperatures.value, float, "temperature")
        top_ks, seeds = numbers(self.top_ks.value, int, "top-k"), numbers(self.seeds.value, int, "seeds")
        settings = grid(self.sampling, temperatures, top_ks, seeds)
        scene = self.scene.value
        new = self.studio.speak(self.text.value, self.voice.value, settings, scene, naturalness=False)
        width = len(dict.fromkeys(seeds))
        cells: list[w.Widget] = []
        for place, sample in enumerate(new):
            if place % width == 0:
                cells.append(w.HTML(f"{sample.sampling.temperature:g}, top-k {sample.sampling.top_k or 'off'}"))
            cells.append(self._cell(sample))
        self.map.children = [w.HTML("WER, %"), *(w.HTML(f"seed {seed}") for seed in dict.fromkeys(seeds)), *cells]
        self.map.layout.grid_template_columns = f"9em repeat({width}, 5em)"
        self.show()
        return f"{len(new)} samples: click a cell to hear it"

    def _cell(self, sample: Sample) -> w.Button:
        label = "?" if sample.wer is None else f"{sample.wer:.0f}"
        cell = w.Button(description=label, layout=w.Layout(width="4.6em"), tooltip=sample.path.name)
        cell.style.button_color, cell.style.text_color = colour(sample.wer), "#1c2024"
        cell.on_click(lambda _: setattr(self.player, "value", sample.page(autoplay=True)))
        return cell

    def _make_clone(self) -> None:
        self.upload = w.FileUpload(accept="audio/*", multiple=False, description="a recording")
        advice = "what is said in it; left empty, the recogniser fills it in"
        self.transcript = w.Textarea(placeholder=advice, description="transcript", rows=2, **WIDE)
        self.clone = Action("Use this voice", self._clone)

    def _clone(self) -> str:
        if not self.upload.value:
            raise ValueError("choose a recording of 3 to 30 s first: one person who speaks, and has agreed")
        content = bytes(self.upload.value[0]["content"])
        voice, findings = self.studio.add_recording(content, self.transcript.value)
        self.transcript.value = voice.transcript
        for field in [self.voice, *(line.children[0] for line in self.lines.children)]:
            chosen = field.value
            field.options = self.voice_names()
            field.value = chosen
        self.voice.value = voice.name
        return "; ".join([f"{voice.name} is chosen in the first pane", *findings])

    def _make_dialogue(self, lines: Sequence[tuple[str, str]]) -> None:
        self.lines = w.VBox([self._line(*line) for line in lines])
        self.add_line = w.Button(description="Add a line")
        self.add_line.on_click(lambda _: self.append_line())
        self.talk = Action("Speak the dialogue", self._talk)

    def _line(self, voice: str, text: str) -> w.HBox:
        fields = w.Dropdown(options=self.voice_names(), value=voice, **SHORT), w.Text(text, **WIDE)
        return w.HBox(fields)

    def append_line(self) -> None:
        self.lines.children = (*self.lines.children, self._line(self.voice.value, ""))

    def _talk(self) -> str:
        """Each voice of the table is a speaker; lines without text are left out."""
        turns = [(row.children[0].value, row.children[1].value.strip()) for row in self.lines.children]
        turns = [line for line in turns if line[1]]
        if tagged := next((text for _, text in turns if "[SPEAKER" in text.upper()), None):
            raise ValueError(f"a line is one speaker's, without tags, got {tagged!r:.60}")
        cast = {voice: number for number, voice in enumerate(dict.fromkeys(voice for voice, _ in turns))}
        text = "\n".join(f"[SPEAKER{cast[voice]}] {line}" for voice, line in turns)
        (sample,) = self.studio.speak(text, {n: voice for voice, n in cast.items()}, [self.sampling], self.scene.value)
        self.show()
        return str(sample.path)
