"""`python -m higgs serve`: the options of the server, and its start."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Option:
    """One option with a number: its default, and what it says."""

    name: str
    default: int | float
    help: str


LIMITS = (
    Option("--max-batch", 8, "requests that are spoken at the same time"),
    Option("--max-waiting", 32, "requests that may wait for that; more get 429"),
    Option("--max-positions", 2048, "prompt and columns of a request together"),
    Option("--max-new-tokens", 1024, "columns of a request, 25 for each second"),
    Option("--max-characters", 1000, "of a text"),
    Option("--max-seconds", 120.0, "from a request to its end"),
)
SAMPLING = (
    Option("--temperature", 0.4, "0 is greedy"),
    Option("--top-k", 20, "likeliest codes that are looked at"),
    Option("--top-p", 1.0, "share of the chances that is looked at"),
    Option("--seed", 0, "of a request that names none"),
)


def add_options(parser: argparse.ArgumentParser, voices: Path) -> None:
    parser.add_argument(
        "--checkpoint",
        default="nano",
        help="nano, organisation/name@revision, or a folder with model/ and codec/ (default: %(default)s)",
    )
    parser.add_argument(
        "--model-name",
        metavar="NAME",
        help="what requests call the model (default: the checkpoint's name)",
    )
    parser.add_argument("--voices", type=Path, default=voices, help="default: %(default)s")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="who may come: 0.0.0.0 is everyone, and there are no keys (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="default: what the checkpoint is meant for"
    )
    parser.add_argument(
        "--compile", action="store_true", help="the step through torch.compile: a slower start"
    )
    parser.add_argument(
        "--int8", action="store_true", help="a byte for each weight of the step; with bfloat16"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU for each operation")
    parser.add_argument("--no-guards", action="store_true", help="let speech run on")
    limits = parser.add_argument_group("limits")
    sampling = parser.add_argument_group("sampling", "For requests that do not say.")
    for group, options in ((limits, LIMITS), (sampling, SAMPLING)):
        for option in options:
            kind = type(option.default)
            told = f"{option.help} (default: %(default)s)"
            group.add_argument(option.name, type=kind, default=option.default, help=told, metavar="N")  # fmt: skip


def start(arguments: argparse.Namespace) -> None:
    """Serves speech over HTTP, in the form of OpenAI's interface, until it is interrupted."""
    import torch

    from higgs.checkpoint.preset import Checkpoint
    from higgs.config import SamplingConfig
    from higgs.serve.engine import Engine, EngineConfig
    from higgs.serve.http.app import ServerConfig, serve

    checkpoint = Checkpoint.parse(arguments.checkpoint)
    for option in LIMITS:
        name = option.name.removeprefix("--").replace("-", "_")
        if not getattr(arguments, name) > 0:
            raise ValueError(f"{option.name} must be positive, got {getattr(arguments, name)}")
    sampling = SamplingConfig(
        arguments.temperature, arguments.top_k, arguments.top_p, seed=arguments.seed
    )
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    engine = EngineConfig(
        max_batch=arguments.max_batch,
        max_positions=arguments.max_positions,
        max_waiting=arguments.max_waiting,
        compile=arguments.compile,
        int8=arguments.int8,
    )
    if arguments.no_guards:
        engine = replace(engine, guards=None)
    config = ServerConfig(
        arguments.model_name or checkpoint.name,
        arguments.voices,
        sampling,
        arguments.max_new_tokens,
        arguments.max_characters,
        arguments.max_seconds,
    )
    loaded = Engine.from_pretrained(
        checkpoint.model,
        checkpoint.codec,
        checkpoint.device,
        arguments.dtype or checkpoint.dtype,
        engine,
    )
    serve(loaded, config, arguments.host, arguments.port)
