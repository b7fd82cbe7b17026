"""`zoo bench ...` on the command line. Imports torch only when a command runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.app import App
from zoo.cli.options import Plugins
from zoo.json_text import json_text
from zoo.terminal import err, out

app = App(help="Measure speed on this machine.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


def _writable(path: Path | None) -> Path | None:
    """Told before minutes of measuring, not after them."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise typer.BadParameter(f"{path}: {'is a folder' if path.is_dir() else f'no such folder: {path.parent}'}")
    return path


def _plottable(path: Path | None) -> Path | None:
    if path is not None and path.suffix not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter(f"must end in .png, .svg or .pdf; found {str(path)!r}")
    return _writable(path)


JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", callback=_writable, help="Write the report as JSON.")
]
PlotFile = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", callback=_plottable, help="Plot the report: .png, .svg or .pdf."),
]


@app.command()
def kernels(
    config: Annotated[
        list[str] | None,
        typer.Option(
            help="P, P64, P4, A64, A64q4, A, or pair (a pair of ansa layers); repeatable.",
            show_default="A64, A, pair",
        ),
    ] = None,
    seq_len: Annotated[
        list[int] | None,
        typer.Option(min=256, help="Tokens of the row; repeatable.", show_default="8192, 32768, 65536"),
    ] = None,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers",
            help="Time torch's flash and flex attention as well, and fla, SF-NSA and X-NSA if they can be imported.",
        ),
    ] = False,
    graph: Annotated[bool, typer.Option("--graph", help="Also time everything but peers as CUDA graphs.")] = False,
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
) -> None:
    """Time every attention operation on the GPU, forward and backward, and print the tables as Markdown."""
    from zoo.bench.kernels import CONFIGS, measure
    from zoo.bench.report import as_markdown, plot

    configs, lengths = config or ["A64", "A", "pair"], seq_len or [8192, 32768, 65536]
    for name in configs:
        if name not in CONFIGS:
            raise typer.BadParameter(f"must be one of {', '.join(CONFIGS)}; found {name!r}.", param_hint="--config")
    command = ["zoo bench kernels", *(f"--config {name}" for name in configs), *(f"--seq-len {n}" for n in lengths)]
    command += ["--peers"] * peers + ["--graph"] * graph
    settings: dict[str, Any] = {
        "peers": peers,
        "graph": graph,
        "command": " ".join(command),
        "say": err,
        "save": _saver(json_file),
    }
    report = measure(configs, lengths, **settings)
    if plot_file:
        plot(report, plot_file)
    out(as_markdown(report))


@app.command()
def decode(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipes; weights are random.")],
    context: Annotated[str, typer.Option(metavar="N,N,...", help="Tokens of the prompt.")] = "8192,32768,131072",
    batch: Annotated[str, typer.Option(metavar="N,N,...", help="Rows that are decoded together.")] = "1,8,32",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of every recipe. Repeatable.")
    ] = None,
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
    plugins: Plugins = None,
) -> None:
    """Measure time and memory of prefill and decoding with a cache, and print the tables as Markdown."""
    contexts, batches = _numbers("--context", context), _numbers("--batch", batch)
    from zoo.bench.decode import measure
    from zoo.bench.decode_report import as_markdown, plot

    command = ["zoo bench decode", *map(str, recipes), f"--context {context}", f"--batch {batch}"]
    command += [f"--set {override}" for override in overrides or []] + _with(plugins)
    settings: dict[str, Any] = {
        "overrides": overrides or [],
        "command": " ".join(command),
        "say": err,
        "save": _saver(json_file),
    }
    report = measure(map(str, recipes), contexts, batches, **settings)
    if plot_file:
        plot(report, plot_file)
    out(as_markdown(report))


@app.command()
def train(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipes; weights and tokens are random.")],
    steps: Annotated[int, typer.Option(min=1, help="Batches to time, after four warm-up batches.")] = 20,
    data: Annotated[bool, typer.Option("--data", help="Read the recipe's own rows, as zoo train does.")] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also time transformers' Llama with liger-kernel, eager and compiled.")
    ] = False,
    devices: Annotated[int, typer.Option(min=1, help="Train on N GPUs of this machine, one process each.")] = 1,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of every recipe. Repeatable.")
    ] = None,
    json_file: JsonFile = None,
    plugins: Plugins = None,
) -> None:
    """Measure the time, the memory and the parts of a training step, and print the tables as Markdown."""
    from zoo.bench.train import as_markdown, measure

    command = ["zoo bench train", *map(str, recipes), f"--steps {steps}"]
    command += ["--data"] * data + ["--peers"] * peers + [f"--devices {devices}"] * (devices > 1)
    command += [f"--set {override}" for override in overrides or []]
    command += _with(plugins)
    settings: dict[str, Any] = {"steps": steps, "data": data, "peers": peers, "devices": devices}
    settings["command"] = " ".join(command)
    report = measure(map(str, recipes), overrides or [], **settings, say=err, save=_saver(json_file))
    out(as_markdown(report))


@app.command("decode-pair")
def decode_pair(
    context: Annotated[str, typer.Option(metavar="N,N,...", help="Tokens in the cache.")] = "32768,131072",
    batch: Annotated[str, typer.Option(metavar="N,N,...", help="Rows that are decoded together.")] = "1,32",
    json_file: JsonFile = None,
) -> None:
    """Time the attention of a pair of ansa layers for one new token, and the reading of their caches for comparison."""
    contexts, batches = _numbers("--context", context), _numbers("--batch", batch)
    from zoo.bench import decode_pair as room
    from zoo.bench.kernels import machine

    rows = room.measure(contexts, batches, say=err)
    command = f"zoo bench decode-pair --context {context} --batch {batch}"
    report = {"machine": machine(), "command": command, "rows": rows}
    _saver(json_file)(report)
    out(room.as_markdown(report))


@app.command("eval")
def evaluation(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run folder, or a local transformers folder.")],
    tasks: Annotated[
        str, typer.Option(metavar="TASK,...", help="Tasks or groups, as of `zoo eval --tasks`.")
    ] = "common_sense",
    rows: Annotated[int | None, typer.Option(min=1, help="Only the first N rows of each task.")] = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also time HFLM of lm-evaluation-harness on the same rows (extra eval).")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a batch of HFLM; the zoo chooses its own.")] = 64,
    json_file: JsonFile = None,
    plugins: Plugins = None,
) -> None:
    """Measure how long the tasks of an evaluation take, and print the table as Markdown."""
    from zoo.bench.evaluation import as_markdown, measure

    command = f"zoo bench eval {model} --tasks {tasks}" + (f" --rows {rows}" if rows else "")
    command += f" --peers --batch-size {batch_size}" if peers else ""
    command = " ".join([command, *_with(plugins)])
    settings: dict[str, Any] = {"peers": peers, "rows": rows, "batch_size": batch_size, "command": command}
    report = measure(str(model), tasks, **settings, say=err, save=_saver(json_file))
    out(as_markdown(report), end="")


def _with(plugins: list[str] | None) -> list[str]:
    return [f"--plugin {module}" for module in plugins or []]


def _numbers(option: str, text: str) -> list[int]:
    """`8192,32768` as whole numbers from 1."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) >= 1 for part in parts):
        raise typer.BadParameter(f"must be whole numbers from 1, such as 1,8,32; found {text!r}.", param_hint=option)
    return list(dict.fromkeys(int(part) for part in parts))


def _saver(json_file: Path | None) -> Callable[[dict], None]:
    """What writes a report to the file; called after every part, so that a run cut short leaves what it has."""

    def save(report: dict) -> None:
        if json_file:
            json_file.write_text(json_text(report, indent=1))  # in place: it may be a pipe or /dev/stdout

    return save
