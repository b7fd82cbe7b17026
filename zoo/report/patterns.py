"""`zoo show RECIPE_OR_RUN --pattern layer=3`: the attention map of one layer as a picture."""

import re
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import Problem, RecipeError
from zoo.files import FileError, read_text
from zoo.recipe import LayerConfig, Recipe, load_recipe
from zoo.report.compare import check_folder
from zoo.report.show import description

LONGEST = 2048  # tokens of a map: the weights of all heads, T x T each, are held at once


def show_pattern(
    source: Path, overrides: Sequence[str], pattern: str, seq_len: int, text: Path | None, output: Path | None
) -> str:
    """Draw the map of a layer into `output` (default: the recipe's name, the layer, .svg); returns what was written.

    source: a recipe, whose selection then chooses by random weights, or a run folder, whose trained model reads `text`
    (a file; default: random tokens).  pattern: `layer=N`, counted from 0.
    Raises RecipeError for a layer or a length that there is not, LoadError for a run that cannot be loaded.
    """
    is_run = source.is_dir()
    recipe = load_recipe(source / "recipe.yaml" if is_run else source, [] if is_run else overrides, of_run=is_run)
    layer = _layer(recipe, pattern)
    if not 1 <= seq_len <= LONGEST:
        raise _refusal("--seq-len", f"must be from 1 to {LONGEST}; found {seq_len}")
    if is_run and overrides:
        raise _refusal("--set", f"a run is shown as it was trained; found {overrides[0]}")
    if text is not None and not is_run:
        raise _refusal("--text", "needs a run folder, whose trained model reads it; found a recipe")
    output = output or Path(f"{recipe.name}-layer{layer.index}.svg")
    check_folder(output, "--output")
    from zoo.report import maps

    found = _of_run(source, recipe, layer, seq_len, text) if is_run else _of_recipe(recipe, layer, seq_len)
    about = description(layer.config, layer.part, recipe.model.d_model)
    maps.save(maps.draw(found, f"{recipe.name}, layer {layer.index}: {layer.block} ({about})"), output)
    shares = ", ".join(f"{kind} {float(seen.mean()):.1%}" for kind, seen in found.items())
    return f"{output}: layer {layer.index}, {layer.block}: {about}; share of all query-key pairs: {shares}\n"


def _refusal(key: str, why: str) -> RecipeError:
    return RecipeError([Problem(why, key=key)])


def _layer(recipe: Recipe, pattern: str) -> LayerConfig:
    layers = recipe.model.expanded()
    match = re.fullmatch(r"layer=(\d{1,6})", pattern)
    if match is None or int(match[1]) >= len(layers):
        raise _refusal("--pattern", f"must be layer=0 to layer={len(layers) - 1}; found {pattern!r}")
    return layers[int(match[1])]


def _of_recipe(recipe: Recipe, layer: LayerConfig, seq_len: int):
    from zoo.report.maps import random_visibility

    return random_visibility(layer.mixer, None, recipe.model.d_model, seq_len, recipe.seed)


def _of_run(run: Path, recipe: Recipe, layer: LayerConfig, seq_len: int, text: Path | None):
    """The layer of the trained model on what reaches it when the model reads the tokens; in float64, so that a key
    that is hardly attended to still counts as seen."""
    import torch

    from zoo.report.maps import visibility
    from zoo.runs.weights import load

    model = load(run)
    tokens_BT = torch.tensor([_tokens(run, recipe, seq_len, text)])
    caught = {}

    def catch(module, arguments) -> None:
        caught["x"], caught["context"] = arguments[:2]

    block = model.layers[layer.index].attention
    handle = block.register_forward_pre_hook(catch)
    with torch.no_grad():
        model.hidden(tokens_BT)
    handle.remove()
    return visibility(block.double(), caught["x"].double(), caught["context"])


def _tokens(run: Path, recipe: Recipe, seq_len: int, text: Path | None) -> list[int]:
    """The first seq_len tokens of a text, by the run's own tokenizer; without a text, random ones by the seed."""
    if text is None:
        import torch

        generator = torch.Generator().manual_seed(recipe.seed)
        return torch.randint(recipe.model.vocab_size, (seq_len,), generator=generator).tolist()
    from zoo.runs.weights import load_tokenizer

    tokenizer = load_tokenizer(run)
    if tokenizer is None:
        raise _refusal("--text", f"the run's data are token numbers without a tokenizer; found {text}")
    try:
        tokens = tokenizer.encode(read_text(text))[:seq_len].tolist()
    except FileError as error:
        raise _refusal("--text", str(error)) from error
    if not tokens:
        raise _refusal("--text", f"{text}: has no tokens")
    return tokens
