"""`higgs serve`: the server's options, and its start."""

import asyncio
import os
import subprocess
import sys
from functools import cache
from typing import Annotated, Any

from typer import Option

from higgs.cli.options import FOLDER, Checkpoint, Dtype, MaxNewTokens, OffloadText, Temperature, TopK, TopP, Voices

AllowHost = Annotated[
    list[str] | None,
    Option(help="a name under which clients call the server; again for more, * for any", show_default="--host"),
]
Cors = Annotated[
    list[str] | None, Option(help="a web page's origin that may use the server; again for more, * for any")
]


def serve(
    checkpoint: Checkpoint = "nano",
    model_name: Annotated[str | None, Option(help="model in requests", show_default="the checkpoint's name")] = None,
    voices: Voices = FOLDER,
    host: Annotated[str, Option(help="who may connect: 0.0.0.0 is everyone")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535)] = 8000,
    allow_host: AllowHost = None,
    api_key: Annotated[str | None, Option(envvar="HIGGS_API_KEY", help="sent as Authorization: Bearer KEY")] = None,
    cors: Cors = None,
    dtype: Dtype = None,
    offload_text: OffloadText = False,
    compile: Annotated[bool, Option("--compile", help="the step by torch.compile: a slower start")] = False,
    threads: Annotated[int | None, Option(min=1, help="of the CPU for each operation")] = None,
    no_guards: Annotated[bool, Option("--no-guards", help="no run-away detection")] = False,
    max_batch: Annotated[int, Option(min=1, help="requests that are served at once")] = 8,
    max_waiting: Annotated[int, Option(min=1, help="requests that may wait for that; more get 429")] = 32,
    max_positions: Annotated[int, Option(min=1, help="prompt and audio steps of a request together")] = 2048,
    max_characters: Annotated[int, Option(min=1, help="of a text")] = 4096,
    max_seconds: Annotated[float, Option(min=0.1, help="from a request to its end")] = 120.0,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    max_new_tokens: MaxNewTokens = None,
    seed: Annotated[int, Option(min=0, help="of a request that names none")] = 0,
    max_connections: Annotated[int, Option(min=1, help="open at once; more get 503")] = 1000,
    max_per_address: Annotated[int, Option(min=1, help="the same from one address other than this machine's")] = 100,
    grace_seconds: Annotated[int, Option(min=0, help="seconds for running requests at a stop")] = 10,
    open_page: Annotated[bool, Option("--open", help="show the page in a browser when the server is ready")] = False,
) -> None:
    """Serve speech over HTTP, and a page to type into at the address itself.

    In the form of OpenAI's interface, until interrupted. Sampling settings are for requests that give none.
    """
    from higgs.checkpoint.alias import Checkpoint
    from higgs.data.voice_folder import read_voices

    source = Checkpoint.parse(checkpoint)
    read_voices(voices)  # it is read again for each request
    check_address(host, port)
    import torch  # after what may be refused

    from higgs.serve.engine import Engine, EngineConfig
    from higgs.serve.generation_config import GenerationConfig
    from higgs.serve.http.access import LOOPBACK, Access, ConnectionLimits
    from higgs.serve.http.app import ServerConfig, serve
    from higgs.serve.runaway import RunawayConfig

    sampling = GenerationConfig.from_pretrained(source.model).sampling
    sampling = sampling.override(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    if threads:
        torch.set_num_threads(threads)
    runaway, dtype = None if no_guards else RunawayConfig(), dtype or source.dtype
    config = EngineConfig(max_batch, max_positions, max_waiting, compile=compile, runaway=runaway)
    engine = Engine.from_pretrained(source.model, source.codec, source.device, dtype, config, offload_text)
    config = ServerConfig(
        model_name or source.name, voices, sampling, max_new_tokens, max_characters=max_characters,
        max_seconds=max_seconds, recogniser=recogniser(), on_start=show if open_page else None,
    )  # fmt: skip
    everyone = ("*",) if host in ("0.0.0.0", "::") else (*LOOPBACK, host)
    access = Access(tuple(allow_host or everyone), api_key, tuple(cors or ()))
    serve(engine, config, access, host, port, grace_seconds, ConnectionLimits(max_connections, max_per_address))


def check_address(host: str, port: int) -> None:
    """Raises OSError where the server could not listen: loading a checkpoint takes a while."""

    async def listen() -> None:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port, start_serving=False)
        server.close()

    try:
        asyncio.run(listen())
    except OSError as error:
        why = os.strerror(error.errno) if (error.errno or 0) > 0 else error.strerror  # negative: of a name
        raise OSError(f"cannot listen on {host}, port {port}: {why}; --port 0 is any free port") from None


def recogniser() -> Any:
    """What hears recordings that clients send, loaded when it is first used; None where it is not installed."""
    from higgs.evaluate.judges.moonshine import MoonshineTiny
    from higgs.evaluate.judges.wheels import MetricModelUnavailable, wheel_file
    from higgs.evaluate.utterances import hear

    try:
        wheel_file(MoonshineTiny.WHEEL, MoonshineTiny.ENCODER)
    except MetricModelUnavailable:
        return None
    judge = cache(MoonshineTiny)
    return lambda *arguments: hear(judge(), *arguments)


def show(address: str) -> None:
    """The page in a browser, or its address where there is no screen: one of the terminal would take it over."""
    screen = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
    if screen:
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen([sys.executable, "-m", "webbrowser", address], **quiet)
    print(f"The page is at {address}" + ("" if screen else " (no browser here: open it yourself)"), flush=True)
