"""Figures of a part, from the process that measures them to the one that keeps them: a line of JSON for each.

A figure is sent as soon as it is known, and again when it is known better. So whatever ends a part, what it had found
is kept.
"""

import json
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any, TextIO

import torch

from benchmarks.timing import Measure, Times, scaled

NOT_AVAILABLE = "not available"
MAX_REASON = 300  # characters


class Report:
    """Writes to what was stdout; from then on, what anything prints goes to stderr."""

    def __init__(self, sink: TextIO | None = None) -> None:
        if sink is None:
            sink = os.fdopen(os.dup(1), "w", encoding="utf-8")  # not inherited: it ends with this process
            os.dup2(2, 1)
            sys.stdout = sys.stderr
        self.sink = sink

    def figure(self, name: str, value: float | str, unit: str = "", **more: Any) -> None:
        self.sink.write(json.dumps({"name": name, "value": value, "unit": unit} | more) + "\n")
        self.sink.flush()

    def missing(self, name: str, error: BaseException) -> None:
        """A measurement that raised, with the first line of what it said."""
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}"[:MAX_REASON]
        self.figure(name, f"{NOT_AVAILABLE}: {reason}")
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()

    def attempt(self, name: str, action: Callable[[], Any]) -> Any:
        """-> what it gives; None where it raises, which is reported and takes nothing else along."""
        try:
            return action()
        except Exception as error:  # anything may be missing or broken in what has never run
            self.missing(name, error)
            return None

    def in_turns(self, measures: dict[str, Measure], repeats: int, unit: str, factor: float = 1000) -> None:
        """Medians of the wall times times `factor`, reported after every round; the first round is a warm-up.

        What fails in a later round keeps its medians, and the failure is a figure of its own.
        """
        times: dict[str, list[float]] = {name: [] for name in measures}
        for repeat in range(repeats + 1):
            for name in list(times):
                figure = f"{name}, round {repeat}" if times[name] else name
                taken: Times | None = self.attempt(figure, measures[name])
                if taken is None:
                    del times[name]
                elif repeat:
                    times[name].append(scaled(taken, factor)[0])
                    low, high = min(times[name]), max(times[name])
                    self.figure(name, statistics.median(times[name]), unit, low=low, high=high, n=len(times[name]))
