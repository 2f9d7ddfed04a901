"""Higgs Audio V2: codec, model, serving, training and evaluation. Public names are imported on first use."""

import importlib
import warnings

# Said by tqdm, in red, when a notebook imports a library that uses it, in an environment without ipywidgets.
warnings.filterwarnings("ignore", message="IProgress not found")

_MODULES = {
    "AudioTokenizer": "higgs.codec.tokenizer",
    "HiggsAudio": "higgs.model.higgs_audio",
    "Engine": "higgs.serve.engine",
    "SamplingConfig": "higgs.config",
    "ChatMLSample": "higgs.data.chatml",
    "Message": "higgs.data.chatml",
    "AudioContent": "higgs.data.chatml",
    "TextContent": "higgs.data.chatml",
}

__all__ = list(_MODULES)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str):
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("higgs")
    if name not in _MODULES:
        raise AttributeError(f"module 'higgs' has no {name!r}; it has {', '.join(_MODULES)}")
    return getattr(importlib.import_module(_MODULES[name]), name)
