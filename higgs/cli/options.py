"""Options that several commands have. `None` is the checkpoint's own setting (generation_config.json)."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Option

OWN = "the checkpoint's"
FOLDER = Path("data/voices")

Checkpoint = Annotated[
    str, Option(help="nano, ORGANISATION/NAME@REVISION, or a folder or s3:// prefix with model/ and codec/")
]


Dtype = Annotated[
    Literal["float32", "bfloat16", "int8", "int4"] | None,
    Option(help="of the model's weights; int8 and int4 are rounded", show_default="what the checkpoint is meant for"),
]
OffloadText = Annotated[
    bool, Option("--offload-text", help="leave on the host what only the prompt needs: half of the weights")
]
Voices = Annotated[Path, Option(help="voice folder")]
Temperature = Annotated[float | None, Option(min=0, help="0 is greedy", show_default=OWN)]
TopK = Annotated[int | None, Option(min=0, help="draw among so many codes; 0 is all", show_default=OWN)]
TopP = Annotated[float | None, Option(min=0, max=1, help="draw among codes of this share; 1 is all", show_default=OWN)]
MaxNewTokens = Annotated[int | None, Option(min=1, help="25 are a second", show_default=OWN)]
