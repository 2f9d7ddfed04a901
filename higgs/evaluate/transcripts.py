"""Does a recording say what its transcript says?"""

import sys
from typing import Any

from higgs.audio import load_audio
from higgs.evaluate.metrics.error_rates import word_errors

MISHEARD = 0.3  # the share of wrong words from which a transcript is doubted


def recogniser() -> Any:
    """The judge that hears transcripts, or None, and a word on how to install it."""
    from higgs.evaluate.judges.registry import make_judge

    try:
        return make_judge("moonshine-tiny-en-float32", ["en"])
    except RuntimeError as error:
        sys.stderr.write(f"transcripts are not checked: {error}\n")
        return None


def misheard(judge: Any, voice: Any) -> list[str]:
    """A warning where the recogniser, which knows English, hears something else than the transcript says."""
    heard = judge.transcribe(*load_audio(voice.audio))
    if word_errors(voice.transcript, heard).rate <= MISHEARD:
        return []
    return [
        f"warning: the transcript says {voice.transcript!r}, a recogniser of English heard {heard!r}"
    ]
