"""`zoo bench ...` on the command line. Imports torch only when a command runs."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def kernels(
    config: Annotated[
        list[str] | None,
        typer.Option(help="P, P4, A64, A64q4, A, or pair (a pair of ansa layers); repeatable.  [default: A64 A pair]"),
    ] = None,
    seq_len: Annotated[
        list[int] | None, typer.Option(min=256, help="Tokens of the row; repeatable.  [default: 8192 32768 65536]")
    ] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Time torch's flash and flex attention as well.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Plot time against tokens.")] = None,
) -> None:
    """Time every attention operation on the GPU, forward and backward, and print the tables as Markdown."""
    from zoo.bench.kernels import measure
    from zoo.bench.report import as_markdown, plot

    configs, lengths = config or ["A64", "A", "pair"], seq_len or [8192, 32768, 65536]
    command = ["zoo bench kernels", *(f"--config {name}" for name in configs), *(f"--seq-len {n}" for n in lengths)]
    command += ["--peers"] * peers
    report = measure(configs, lengths, peers=peers, command=" ".join(command), say=_say)
    if json_file:
        json_file.write_text(json.dumps(report, indent=1) + "\n")
    if plot_file:
        plot(report, plot_file)
    print(as_markdown(report))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
