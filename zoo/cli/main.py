"""The commands of `zoo`; those with subcommands have modules of their own, beside this one.

Nothing heavy is imported at the top: `zoo --help`, `zoo show` and every refusal of a bad recipe answer at once.
Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

import contextlib
import errno
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import zoo
from zoo.address_space import watch_imports
from zoo.child import import_nothing_from_here
from zoo.cli import bench, docs, folders, study
from zoo.cli.app import App
from zoo.cli.options import AsJson, Kind, Override, Plugins, RecipeFile, RunFolder, load, load_run
from zoo.errors import RecipeError, ZooError
from zoo.terminal import err, out, out_styled, tolerate_encoding

app = App(
    help="Attention architectures as YAML recipes: show what they cost, train them, generate from them.",
    epilog="A first run: zoo train zoo:quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = App(help="Prepare the tokens of a recipe, and look at them.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(bench.app, name="bench")
app.add_typer(study.app, name="study")
app.add_typer(docs.app, name="docs")

REFUSALS = {  # what the system may say to any command, and is no bug
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EROFS), "cannot be written"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE), "cannot be read or written"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "cannot be opened"),
}
Version = Annotated[
    bool,
    typer.Option(
        "--version", callback=lambda wanted: _version(wanted), is_eager=True, help="Print the version and exit."
    ),
]
ShowKernels = Annotated[
    bool, typer.Option("--kernels", help="Say which implementation serves each layer on this machine, and why.")
]


def _report_broken_kinds() -> None:
    """Name the parts of other packages that cannot be used; the rest works."""
    from zoo.cli.parts_text import broken

    for why in broken():
        err(f"note: {why}")


app.command()(folders.init)
app.command()(folders.recipes)


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Override = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="The run's folder. Default: runs/ and the recipe's name.", show_default=False),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(min=1, help="Train on so many GPUs of this machine, a process each.", show_default="1"),
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Train a recipe's model, or continue where its run stopped."""
    loaded = load(recipe, overrides)
    if devices is not None and devices > 1:
        from zoo.training.processes import launch

        options = [word for override in overrides or [] for word in ("--set", override)]
        options += [word for module in plugins or [] for word in ("--plugin", module)]
        options += ["--run-dir", str(run_dir)] if run_dir else []
        launch(devices, ["train", str(recipe), *options])
    from zoo import training

    training.train(loaded, run_dir or Path("runs") / loaded.name)


@app.command()
def show(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE_OR_RUN", help="A recipe or a run folder.", show_default=False)
    ],
    overrides: Override = None,
    json: AsJson = False,
    kernels: ShowKernels = False,
    pattern: Annotated[
        str | None, typer.Option(metavar="layer=N", help="Draw which keys each query sees in a layer, counted from 0.")
    ] = None,
    seq_len: Annotated[int | None, typer.Option(help="With --pattern: tokens of the map.", show_default="256")] = None,
    text: Annotated[Path | None, typer.Option(help="With --pattern and a run: what the model reads.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="With --pattern: .svg, .png or .pdf.")] = None,
    plugins: Plugins = None,
) -> None:
    """Show the layers, parameters, FLOPs and cache of a recipe or a run; or draw a layer's attention map."""
    if pattern is not None:
        from zoo.report.patterns import show_pattern

        length = 256 if seq_len is None else seq_len
        out(show_pattern(recipe, overrides or [], pattern, length, text, output), end="")
        return
    for option, value in (("--seq-len", seq_len), ("--text", text), ("--output", output)):
        if value is not None:
            raise typer.BadParameter(f"is for --pattern layer=N, which is missing; found {value}.", param_hint=option)
    from zoo.report import show as room

    loaded = load_run(recipe, overrides) if recipe.is_dir() else load(recipe, overrides)
    if kernels:
        from zoo.cli import serving

        out(serving.as_text(loaded), end="")
        return
    run: Any = None
    if recipe.is_dir():
        from zoo.runs import listing as run_list

        if run_list.is_run(recipe):
            run = run_list.as_dict(recipe) if json else run_list.sentence(recipe)
    out_styled((room.as_json if json else room.as_text)(loaded, run=run), end="")


app.command()(folders.runs)


@app.command()
def compare(
    sources: Annotated[list[str], typer.Argument(metavar="RECIPE_OR_RUN...", help="Recipes, or run folders.")],
    overrides: Override = None,
    seq_len: Annotated[list[int] | None, typer.Option(min=1, help="State costs at this length. Repeatable.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a self-contained page.")] = None,
    json: AsJson = False,
    maps: Annotated[bool, typer.Option(help="Draw attention maps on the page (takes seconds: imports torch).")] = True,
    train: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="First train each recipe so long, e.g. 200ba, on the same rows."),
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="Where --train keeps its run folders.")] = Path("runs/compare"),
    measure: Annotated[bool, typer.Option("--measure", help="Measure speed and memory on this machine.")] = False,
    short: Annotated[bool, typer.Option("--short", help="Print one line for each instead of the whole table.")] = False,
    plugins: Plugins = None,
) -> None:
    """Compare 2 to 10 architectures: layers, parameters, FLOPs, caches, reach; of runs also losses and speed."""
    if short and json:
        raise typer.BadParameter("is for the table; --json prints everything.", param_hint="--short")
    from zoo.report.compare import Request, compare

    request = Request(sources, overrides or [], seq_len or [], html, json, maps, train, runs_dir, measure, short)
    out_styled(compare(request), end="")


@app.command()
def generate(
    run: RunFolder,
    stdin: Annotated[str | None, typer.Argument(metavar="[-]", help="-: the prompt is standard input.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A prompt. Repeatable.")] = None,
    prompt_file: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Its text is a prompt. Repeatable.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate for each prompt.")] = 256,
    temperature: Annotated[float, typer.Option(help="0: always the most likely token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Among those that make up this share of probability.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Among those this many times as likely as the likeliest.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: less of what is there already.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Another seed, another text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this text. Repeatable.")] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Print each prompt before its text.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a prompt, at the end.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Say speed and bytes of the cache on standard error.")] = False,
    device: Annotated[str, typer.Option(help="cuda, cpu, ...; auto: a GPU if there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32; auto: bf16 on a GPU, fp32 on a CPU.")] = "auto",
    plugins: Plugins = None,
) -> None:
    """Continue prompts with a trained model: text on standard output as it comes, everything else on standard error."""
    if stdin not in (None, "-"):
        raise typer.BadParameter(f"must be - for standard input; found {stdin!r}. Prompts: --prompt", param_hint="[-]")
    from zoo.inference.command import Request, generate_command

    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    sampling["repetition_penalty"] = repetition_penalty
    files = [*(prompt_file or []), *([stdin] if stdin else [])]
    output = {"echo": echo, "json": json, "stats": stats}
    generate_command(Request(run, prompt or [], files, max_tokens, stop or [], device, dtype, sampling, **output))


@app.command(name="eval")
def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN...", help="Run folders, or local transformers folders.", show_default=False),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Tasks and groups, separated by commas; see --list.")
    ] = None,
    list_tasks: Annotated[bool, typer.Option("--list", help="List the tasks, and what each measures.")] = False,
    seq_len: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="Lengths of the rows, separated by commas.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Held-out text: a YAML file with a data section. Scores perplexity."),
    ] = None,
    harness: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Tasks of lm-evaluation-harness, separated by commas.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of each task. Default: the task's own.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of rows that are made or drawn. Default: 0.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Score again what eval.json has a result for.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Instead of eval.json in the folder.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw needles and loss by position: .svg, .png or .pdf.")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda, cpu, ...; auto: a GPU if there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32; auto: bf16 on a GPU, fp32 on a CPU.")] = "auto",
    plugins: Plugins = None,
) -> None:
    """Score trained models on tasks: recall, long context, common sense, loss by position."""
    from zoo.evaluation.command import Request, eval_command, list_command

    if list_tasks:
        out_styled(list_command(json), end="")
        return
    wanted = Request(models or [], tasks, harness, seq_len, data, rows, seed, device, dtype, again, json, output, plot)
    out_styled(eval_command(wanted), end="")


@app.command()
def export(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.", show_default=False)],
    format: Annotated[str, typer.Option(metavar="hf|safetensors", help="For transformers; or weights alone.")] = "hf",
    dtype: Annotated[str, typer.Option(help="Of the weights: fp32, bf16 or fp16.")] = "fp32",
    family: Annotated[
        str | None,
        typer.Option("--as", metavar="FAMILY", help="With hf: as llama, mistral, qwen3, ..., without code of ours."),
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Write a trained model for other libraries, as safetensors."""
    from zoo.export.writing import export_command

    out(export_command(run, folder, format, dtype, family))


@app.command(name="import")
def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A local transformers folder.", show_default=False)],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A new run folder.", show_default=False)],
    ignore: Annotated[
        list[str] | None,
        typer.Option("--ignore", metavar="KEY", help="A key of config.json that does not matter. Repeatable."),
    ] = None,
    end_of_document: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="Ends a document. Default: the tokenizer's end of sequence.")
    ] = None,
) -> None:
    """Make a run folder of a model in the layout of transformers: Llama, Mistral, Qwen, Gemma, OLMo and others."""
    from zoo.interop.importing import import_command

    text, notes = import_command(folder, run, ignore or [], end_of_document)
    out(text)
    for note in notes:
        err(f"note: {note}")


@app.command()
def convert(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A new run folder.", show_default=False)],
    layers: Annotated[str | None, typer.Option(metavar="SCHEDULE", help="The new schedule of blocks.")] = None,
    blocks: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML: new blocks by name.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows to measure on: a YAML file with a data section.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")] = 16,
    plugins: Plugins = None,
) -> None:
    """Give the layers of a trained model other attention blocks, which take over what they can of its weights."""
    from zoo.interop.converting import convert_command

    out(convert_command(run, folder, layers, blocks, data, rows))


@app.command()
def cost(
    recipe: RecipeFile,
    overrides: Override = None,
    gpu: Annotated[str, typer.Option(help="h200, h100 or a100.")] = "h200",
    seq_len: Annotated[int | None, typer.Option(min=1, help="Tokens a row. Default: the recipe's.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a micro-batch on the GPU.")] = 1,
    json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """Estimate the memory of a training step on a GPU, the least time it can take, and whether it fits."""
    from zoo.cli import cost_text as room

    loaded = load(recipe, overrides)
    out_styled((room.as_json if json else room.as_text)(loaded, gpu, seq_len, rows), end="")


@app.command()
def blocks(name: Kind = None, json: AsJson = False, plugins: Plugins = None) -> None:
    """List the kinds of block, or the fields of one: the same as zoo parts mixers."""
    parts("mixers", name, json)


@app.command()
def parts(
    family: Annotated[str | None, typer.Argument(help="A family of parts; without it all families.")] = None,
    name: Annotated[str | None, typer.Argument(help="A kind of the family; without it all kinds.")] = None,
    json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """List the families of parts that a recipe chooses from, the kinds of one, or the fields of one kind."""
    from zoo.cli import parts_text as room

    _report_broken_kinds()
    out_styled((room.as_json if json else room.as_text)(family, name), end="")


@app.command()
def keys(
    key: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY]...", help="Keys such as train.workers; without any, all of them.", show_default=False
        ),
    ] = None,
    json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """Explain the keys of a recipe: type, bounds, default and meaning."""
    from zoo.cli import keys_text as room

    _report_broken_kinds()
    out_styled((room.as_json if json else room.as_text)(key or []), end="")


@app.command()
def schema(plugins: Plugins = None) -> None:
    """Print the JSON Schema of recipes, for editors that check while you write.

    Save it beside your recipes, zoo schema > recipe.schema.json, and begin each with the line
    # yaml-language-server: $schema=recipe.schema.json
    """
    from zoo.json_text import json_text
    from zoo.recipe.schema import recipe_schema

    _report_broken_kinds()
    out(json_text(recipe_schema()), end="")


@data_app.command()
def prepare(recipe: RecipeFile, overrides: Override = None, plugins: Plugins = None) -> None:
    """Tokenise and pack a recipe's data into shards, once; later runs find them."""
    loaded = load(recipe, overrides)
    from zoo import data

    out(data.prepare_command(loaded))


@data_app.command("show")
def show_data(
    recipe: RecipeFile,
    overrides: Override = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")] = 3,
    split: Annotated[str, typer.Option(metavar="train|validation", help="Which split.")] = "train",
    plugins: Plugins = None,
) -> None:
    """Print a few rows of a recipe's data, decoded, with the places where documents begin."""
    if split not in ("train", "validation"):
        raise typer.BadParameter(f"must be train or validation; found {split!r}.", param_hint="--split")
    loaded = load(recipe, overrides)
    from zoo import data

    out(data.show_command(loaded, rows, split))


def _version(wanted: bool) -> None:
    if wanted:
        out(f"zoo {zoo.__version__}")
        raise typer.Exit


@app.callback()
def _options(version: Version = False) -> None:
    wanted = os.environ.get("ZOO_KERNELS") or "auto"
    if wanted not in ("auto", "reference"):  # as `train.kernels`; told before anything is read or prepared
        raise typer.BadParameter(f"must be auto or reference; found {wanted!r}.", param_hint="ZOO_KERNELS")


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; a mistake of the user is one message, never a traceback."""
    try:
        app(arguments, prog_name="zoo")
    except ZooError as error:
        _tell(str(error))
        if isinstance(error, RecipeError) and error.of_keys:
            from zoo.recipe.keys import hint

            if found := hint(error.problems):
                _tell(found)
        return error.exit_code
    except SystemExit as end:  # typer's way out: 0, 2 after a usage error, 130 after Ctrl-C, 1 when the reader has gone
        if end.code == 130:
            _tell("interrupted")
        return end.code if isinstance(end.code, int) else 0
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not _has_working_directory():
            _tell("the working directory was removed; change to a folder that is there")
            return 1
        if error.errno not in REFUSALS:
            raise
        _tell(f"{error.filename or 'standard output'}: {REFUSALS[error.errno]}: {error.strerror}")
        with contextlib.suppress(OSError, ValueError):  # what was not written would fail once more when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError
        from zoo.training.failures import out_of_memory

        if (told := out_of_memory(error)) is None:
            raise
        _tell(told)
        return 1
    return 0


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _tell(message: str) -> None:
    err(message)  # does nothing if the reader has gone; the exit code still says that the command failed


def main() -> None:
    """The `zoo` command."""
    tolerate_encoding()
    import_nothing_from_here()
    watch_imports()
    code = run()
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):  # what was to be done is done; its exit code must stay
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.exit(code)
