"""The command line: `higgs COMMAND`, or `python -m higgs COMMAND`.

Exit status: 0; 1 with one line that says what went wrong; 2 for wrong options; 130 when interrupted. Commands import
when they run, so that help answers at once.
"""

import sys
from typing import Annotated

import typer

import higgs
from higgs.cli import compare, finetune, inspect, listen, serve, speak, tokenize, voices

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
for command in (speak.speak, serve.serve, inspect.inspect, compare.compare, listen.listen, finetune.finetune):
    app.command()(command)
for command in (tokenize.tokenize, tokenize.corpus):
    app.command()(command)
app.add_typer(tokenize.parts, name="parts")
app.add_typer(voices.app, name="voices")


def show_version(wanted: bool) -> None:
    if wanted:
        print(higgs.__version__)
        raise typer.Exit()


SHOW_VERSION = typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")


@app.callback()
def top(version: Annotated[bool, SHOW_VERSION] = False) -> None:
    """Higgs Audio V2, text to speech."""


def main() -> int:
    """Runs the command that `sys.argv` names -> its exit status."""
    try:
        app(prog_name="higgs")
    except SystemExit as end:
        if end.code == 130:
            print("stopped", file=sys.stderr)
        return end.code
    except (ValueError, OSError, LookupError, RuntimeError, ImportError, FloatingPointError, MemoryError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        notes = [note for note in getattr(error, "__notes__", []) if note not in str(error)]
        first = str(message) or type(error).__name__  # Python's own MemoryError says nothing
        print("Error:", *"; ".join([first, *notes]).split(), file=sys.stderr)
        return 1
    return 0
