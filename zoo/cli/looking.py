"""Commands that only look: show, compare, cost, blocks, parts, keys, schema. None of them imports torch."""

from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.options import AsJson, Kind, Override, Plugins, RecipeFile, load, load_run
from zoo.cli.starting import collection_paused
from zoo.terminal import err, out, out_styled

ShowKernels = Annotated[
    bool, typer.Option("--kernels", help="Say which implementation serves each layer on this machine, and why.")
]


def _report_broken_kinds() -> None:
    """Name the parts of other packages that cannot be used; the rest works."""
    from zoo.cli.parts_text import broken

    for why in broken():
        err(f"note: {why}")


@collection_paused()
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
    seq_len: Annotated[
        int | None, typer.Option(help="With --pattern: length of the map in tokens.", show_default="256")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="With --pattern and a run: the file of text that the model reads.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="With --pattern: the .svg, .png or .pdf to write.")
    ] = None,
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
    loaded = load_run(recipe, overrides) if recipe.is_dir() else load(recipe, overrides)
    if kernels:
        from zoo.cli import serving

        out(serving.as_text(loaded), end="")
        return
    from zoo.report import show as room

    run: Any = None
    if recipe.is_dir():
        from zoo.runs import listing as run_list

        if run_list.is_run(recipe):
            run = run_list.as_dict(recipe) if json else run_list.sentence(recipe)
    out_styled((room.as_json if json else room.as_text)(loaded, run=run), end="")


def compare(
    sources: Annotated[list[str], typer.Argument(metavar="RECIPE_OR_RUN...", help="Recipes, or run folders.")],
    overrides: Override = None,
    seq_len: Annotated[list[int] | None, typer.Option(min=1, help="Compute costs at this length. Repeatable.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a self-contained page.")] = None,
    json: AsJson = False,
    maps: Annotated[bool, typer.Option(help="Draw attention maps on the page (takes seconds: imports torch).")] = True,
    train: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="First train each recipe for this long, e.g. 200ba, on the same rows."),
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="Where --train keeps its run folders.")] = Path("runs/compare"),
    measure: Annotated[bool, typer.Option("--measure", help="Measure speed and memory on this machine.")] = False,
    short: Annotated[
        bool, typer.Option("--short", help="Print one line for each architecture, not the table.")
    ] = False,
    plugins: Plugins = None,
) -> None:
    """Compare 2 to 10 architectures: layers, parameters, FLOPs, caches, reach; of runs also losses and speed."""
    if short and json:
        raise typer.BadParameter("is for the table; --json prints everything.", param_hint="--short")
    from zoo.report.compare import Request, compare

    request = Request(sources, overrides or [], seq_len or [], html, json, maps, train, runs_dir, measure, short)
    out_styled(compare(request), end="")


@collection_paused()
def cost(
    recipe: RecipeFile,
    overrides: Override = None,
    gpu: Annotated[str, typer.Option(help="h200, h100 or a100.")] = "h200",
    seq_len: Annotated[int | None, typer.Option(min=1, help="Tokens of a row. Default: the recipe's.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a micro-batch on the GPU.")] = 1,
    json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """Estimate the memory of a training step on a GPU, the least time it can take, and whether it fits."""
    from zoo.cli import cost_text as room

    loaded = load(recipe, overrides)
    out_styled((room.as_json if json else room.as_text)(loaded, gpu, seq_len, rows), end="")


def blocks(name: Kind = None, json: AsJson = False, plugins: Plugins = None) -> None:
    """List the kinds of block, or the fields of one: the same as zoo parts mixers."""
    parts("mixers", name, json)


@collection_paused()
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


@collection_paused()
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


@collection_paused()
def schema(plugins: Plugins = None) -> None:
    """Print the JSON Schema of recipes, for editors that check recipes while you write.

    Save it next to your recipes (zoo schema > recipe.schema.json), and begin each recipe with the line
    # yaml-language-server: $schema=recipe.schema.json
    """
    from zoo.json_text import json_text
    from zoo.recipe.schema import recipe_schema

    _report_broken_kinds()
    out(json_text(recipe_schema()), end="")
