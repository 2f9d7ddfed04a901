"""`higgs serve`: the server's options, and its start."""

from enum import StrEnum
from typing import Annotated

from typer import Option

from higgs.cli.options import FOLDER, Checkpoint, MaxNewTokens, Temperature, TopK, TopP, Voices


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


ModelName = Annotated[str | None, Option(help="what requests call the model", show_default="the checkpoint's name")]
Host = Annotated[str, Option(help="who may connect: 0.0.0.0 is everyone, and there are no keys")]
Port = Annotated[int, Option(min=0, max=65535)]
Type = Annotated[Dtype | None, Option(show_default="what the checkpoint is meant for")]
Compile = Annotated[bool, Option("--compile", help="the step by torch.compile: a slower start")]
Int8 = Annotated[bool, Option("--int8", help="a byte for each weight of the step; with bfloat16")]
Threads = Annotated[int | None, Option(min=1, help="of the CPU for each operation")]
NoGuards = Annotated[bool, Option("--no-guards", help="no run-away detection")]
MaxBatch = Annotated[int, Option(min=1, help="requests that are served at once")]
MaxWaiting = Annotated[int, Option(min=1, help="requests that may wait for that; more get 429")]
MaxPositions = Annotated[int, Option(min=1, help="prompt and audio steps of a request together")]
MaxCharacters = Annotated[int, Option(min=1, help="of a text")]
MaxSeconds = Annotated[float, Option(min=0.1, help="from a request to its end")]
Seed = Annotated[int, Option(min=0, help="of a request that names none")]


def serve(
    checkpoint: Checkpoint = "nano",
    model_name: ModelName = None,
    voices: Voices = FOLDER,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    dtype: Type = None,
    compile: Compile = False,
    int8: Int8 = False,
    threads: Threads = None,
    no_guards: NoGuards = False,
    max_batch: MaxBatch = 8,
    max_waiting: MaxWaiting = 32,
    max_positions: MaxPositions = 2048,
    max_characters: MaxCharacters = 4096,
    max_seconds: MaxSeconds = 120.0,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    max_new_tokens: MaxNewTokens = None,
    seed: Seed = 0,
) -> None:
    """Serve speech over HTTP.

    In the form of OpenAI's interface, until interrupted. Sampling settings are for requests that give none.
    """
    import torch

    from higgs.checkpoint.preset import Checkpoint
    from higgs.serve.engine import Engine, EngineConfig
    from higgs.serve.generation import GenerationConfig
    from higgs.serve.http.app import ServerConfig, serve
    from higgs.serve.runaway import RunawayConfig

    source = Checkpoint.parse(checkpoint)
    sampling = GenerationConfig.from_pretrained(source.model).sampling.override(
        temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    if threads:
        torch.set_num_threads(threads)
    runaway = None if no_guards else RunawayConfig()
    config = EngineConfig(max_batch, max_positions, max_waiting, compile=compile, int8=int8, runaway=runaway)
    engine = Engine.from_pretrained(source.model, source.codec, source.device, dtype or source.dtype, config)
    name = model_name or source.name
    limits = (max_new_tokens, max_characters, max_seconds)
    serve(engine, ServerConfig(name, voices, sampling, *limits), host, port)
