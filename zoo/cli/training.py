"""Commands that train, and those that prepare what is read: train, data prepare, data show."""

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.app import App
from zoo.cli.options import Override, Plugins, RecipeFile, load
from zoo.errors import AlreadyTold
from zoo.terminal import out

data_app = App(help="Prepare the tokens of a recipe, and look at them.", no_args_is_help=True)


def train(
    recipe: RecipeFile,
    overrides: Override = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="The run's folder. Default: runs/ and the recipe's name.", show_default=False),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(min=1, help="Train on N GPUs of this machine, one process each.", show_default="1"),
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Train a recipe's model, or continue where its run stopped."""
    loaded = load(recipe, overrides)
    folder = run_dir or Path("runs") / loaded.name
    if devices is not None and devices > 1:
        from zoo.runs.folder import RunFolder
        from zoo.training.launching import launch

        RunFolder(folder).refuse_if_held()  # the first process would, and the others wait for it
        options = [word for override in overrides or [] for word in ("--set", override)]
        options += [word for module in plugins or [] for word in ("--plugin", module)]
        options += [f"--run-dir={run_dir}"] if run_dir else []
        raise AlreadyTold(launch(devices, ["train", *options, "--", str(recipe)]))
    from zoo import training

    training.train(loaded, folder)


@data_app.command()
def prepare(recipe: RecipeFile, overrides: Override = None, plugins: Plugins = None) -> None:
    """Tokenise a recipe's data and pack it into shards, which later runs reuse."""
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
