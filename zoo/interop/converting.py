"""`zoo convert RUN OUT --layers SCHEDULE --blocks FILE`: the same model with other attention blocks in its layers.

Every layer takes over what it can (zoo/interop/retrofit.py); all other weights stay.  How far each new layer is from
the old one is measured on held-out rows of the run.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.errors import Problem, RecipeError, shorten, unknown
from zoo.interop.errors import InteropError
from zoo.new_folder import check_new_folder, new_folder

ROWS = 16  # held-out rows that moments, errors and losses are taken from
RANDOM_ROW = 256  # tokens of a row that is drawn where there is no text
# Fields that keep what the old layer computes, set where the blocks' file does not say otherwise.
KEEPING = {"gate_bias": True, "latent_norm": False}


@dataclass
class LayerReport:
    """One converted layer.  error: of attention's output, |new - old| / |old|, given the old layer's inputs."""

    index: int
    before: str
    after: str
    error: float
    notes: list[str]


@dataclass
class Converted:
    """What a conversion made.  loss_before, loss_after: nats a token on held-out rows; None on random tokens."""

    run: Path
    layers: list[LayerReport]
    loss_before: float | None
    loss_after: float | None
    measured_on: str
    notes: list[str] = field(default_factory=list)


def convert(
    run: str | Path,
    out: str | Path,
    layers: str | list | None,
    blocks: str | Path | None = None,
    *,
    data: str | Path | None = None,
    rows: int = ROWS,
) -> Converted:
    """Write a run folder whose model has the layers of another schedule, and the weights of `run`.

    layers: the schedule, of as many layers as before; None: that of the file.  blocks: a YAML file with blocks by name,
    or with the keys `blocks` and `layers`; blocks of the run can be named as well.  data: a file with a `data` section,
    whose held-out rows are used in place of the run's.  rows: how many.
    Raises InteropError for a schedule or blocks that cannot take over the weights, naming layer and field; LoadError if
    the run cannot be loaded.  Then nothing is written.
    """
    from zoo.interop.importing import write_run
    from zoo.runs.weights import load, load_tokenizer

    run, out = Path(run), Path(out)
    _check_recipe(run)
    model = load(run)
    new = new_model(model.config, *_read(blocks, layers))
    check_new_folder(out, InteropError)
    tokens, measured_on = _tokens(run, model, data, rows)
    made, report = _converted(model, new, tokens)
    tokenizer = load_tokenizer(run)
    recipe = _recipe(run, out, new, tokenizer)
    converted = Converted(out, report, *_losses(model, made, tokens), measured_on)
    with new_folder(out, InteropError):
        write_run(out, recipe, made.state_dict(), tokenizer)
    return converted


def _check_recipe(run: Path) -> None:
    """Raise InteropError if a run that was trained here lacks its recipe.

    Imported folders, and a model.yaml with its weights, have none of the other files of a training.
    """
    from zoo.files import present
    from zoo.runs.folder import RunFolder

    folder = RunFolder(run)
    left = [path for path in folder.traces() if path != folder.weights]
    if left and not present(folder.recipe, InteropError):
        raise InteropError(
            f"{folder.recipe}: no such file, but the folder holds {left[0].name} of a run, so its data, tokenizer and "
            f"training are not known; bring it back, or convert a folder that holds only model.yaml, the weights and "
            f"the tokenizer's files"
        )


def _read(file: str | Path | None, layers: str | list | None) -> tuple[dict[str, Any], Any, Any]:
    """Blocks by name, the schedule, and a mapping (zoo.recipe.yaml_reader.Node) with `blocks` and their places."""
    from zoo.recipe.yaml_reader import Node, read_mapping

    blocks: Any = {}
    root = None
    if file is not None:
        place = str(file)
        root = read_mapping(file)
        blocks = root.plain()
        named = blocks.get("blocks")
        if "blocks" in blocks and not (isinstance(named, dict) and "kind" in named):  # else a block of that name
            if extra := set(blocks) - {"blocks", "layers"}:
                raise InteropError(f"{place}: {unknown('key', min(extra), ('blocks', 'layers'))}")
            layers, blocks = blocks.get("layers") if layers is None else layers, named
        else:
            root = Node({"blocks": root}, root.place)
        if not isinstance(blocks, dict) or not all(isinstance(block, dict) for block in blocks.values()):
            raise InteropError(f"{place}: must be blocks by name, each a mapping with a kind; found {shorten(blocks)}")
    if layers is None:
        raise InteropError("--layers: give the schedule, or `layers` in the file of --blocks")
    return blocks, layers, root


def new_model(old: Any, blocks: Mapping[str, Any], layers: Any, root: Any = None) -> Any:
    """The `model` section (zoo.recipe.ModelConfig) with other blocks and another schedule, all else as in `old`.

    Blocks of the old model keep their names.  root: of the file with `blocks` (zoo.recipe.yaml_reader.Node).
    Raises RecipeError with the places of what is not valid in a block, InteropError for the schedule.
    """
    from pydantic import ValidationError

    from zoo.recipe import ModelConfig
    from zoo.recipe.schedule import ScheduleError, expand, parse

    section = old.model_dump(mode="json")
    n_layers = len(old.expanded())
    known = section["blocks"] | {name: _keeping(block) for name, block in blocks.items()}
    try:
        used = {use.name for use in expand(parse(layers), n_layers)}
        missing = sorted(used - set(known))
        if missing:
            raise InteropError(f"--layers: {unknown('block', missing[0], sorted(known))}")
        chosen = {name: known[name] for name in known if name in used} | _of_modules(old, section, known)
        section |= {"blocks": chosen, "layers": layers, "n_layers": n_layers}
        return ModelConfig.model_validate_json(json.dumps(section), strict=True)
    except ScheduleError as error:
        raise InteropError("\n".join(f"--layers: {why}" for _, why in error.found)) from error
    except ValidationError as error:
        raise _refusal(error, section, root) from error


def _refusal(error: Any, section: dict[str, Any], root: Any) -> RecipeError:
    """What is not valid in the new section: in blocks of the file with its place, the rest in the whole model."""
    from zoo.recipe.checking import locate, translate
    from zoo.recipe.schema import known_keys, schema_definitions

    definitions = schema_definitions()
    found = translate(error, section, lambda at: known_keys(("model", *at), {"model": section}, definitions))
    written = root.value["blocks"].value if root is not None else {}
    return RecipeError(
        [
            locate((path, at, why), root)
            if path[:1] == ("blocks",) and path[1:2] and path[1] in written
            else Problem(why, key="--layers" if path == ("layers",) else ".".join(map(str, ("model", *path))))
            for path, at, why in found
        ]
    )


def _of_modules(old: Any, section: dict[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The block that the modules of `multi_token` keep, under a name of its own; the section then states it."""
    if old.multi_token is None:
        return {}
    layer = old.multi_token_layers()[0]
    name = next(name for n in range(1, len(known) + 2) if (name := f"multi_token{n}") not in known)
    section["multi_token"] |= {"block": f"{name}.{layer.part}" if layer.part else name}
    return {name: layer.config.model_dump(mode="json")}


def _keeping(block: dict[str, Any]) -> dict[str, Any]:
    """The block with the fields of KEEPING that its kind has and the file does not state."""
    from zoo.blocks import registry

    try:
        fields = registry.config_class(block["kind"]).model_fields
    except (KeyError, ValueError, TypeError):  # reported when the block is read
        return block
    kept = {name: value for name, value in KEEPING.items() if name in fields}
    if block["kind"] == "attention":
        patterns, projection = block.get("patterns"), block.get("projection")
        if not (isinstance(patterns, list) and len(patterns) > 1):
            kept.pop("gate_bias")
        if isinstance(projection, dict) and projection.get("kind") in ("mla", "gla"):
            block = {**block, "projection": {"latent_norm": KEEPING["latent_norm"], **projection}}
    return {**block, **{name: value for name, value in kept.items() if name not in block}}


def _tokens(run: Path, model: Any, data: str | Path | None, rows: int) -> tuple[list[tuple], str]:
    """Rows as (tokens, labels, document starts), each [1, T], and what they are; labels None for random tokens."""
    import torch

    held_out = _held_out(run, model, data)
    if held_out is not None:
        from itertools import islice

        found = []
        step = max(1, held_out.prepared.rows(held_out.split) // rows)  # neighbours are of one document
        for row in islice(held_out.rows(), 0, rows * step, step):
            tokens_1T, labels_1T = torch.tensor(row.inputs)[None], torch.tensor(row.labels)[None]
            starts_1T = torch.zeros_like(tokens_1T, dtype=torch.bool)
            starts_1T[0, torch.tensor(row.starts, dtype=torch.long)] = True
            found.append((tokens_1T, labels_1T, starts_1T))
        if found:
            return found, f"{len(found)} held-out rows of {data or run}"
    generator, size = torch.Generator().manual_seed(0), (1, min(RANDOM_ROW, model.config.max_seq_len))
    drawn = [torch.randint(0, model.config.vocab_size, size, generator=generator) for _ in range(rows)]
    return [(tokens_1T, None, None) for tokens_1T in drawn], f"{rows} rows of random tokens; --data FILE names text"


def _held_out(run: Path, model: Any, data: str | Path | None) -> Any:
    """Held-out rows of the file, else of the data that the run was trained on; None if it was not trained here."""
    from zoo.evaluation.held_out import HeldOut, data_section
    from zoo.recipe import load_recipe
    from zoo.runs.folder import RunFolder

    sizes = {"max_seq_len": model.config.max_seq_len, "vocab_size": model.config.vocab_size}
    if data is not None:
        from zoo.data.tokenizers import Bytes
        from zoo.runs.weights import load_tokenizer

        tokenizer = load_tokenizer(run)
        section = data_section(Path(data), None if tokenizer is None else run, isinstance(tokenizer, Bytes))
        return HeldOut(section, **sizes, seed=0, name=str(data))
    folder = RunFolder(run)
    if not any(path != folder.weights for path in folder.traces()):
        return None
    recipe = load_recipe(folder.recipe, of_run=True)
    return HeldOut(recipe.data, **sizes, seed=recipe.seed)


def _converted(model: Any, config: Any, rows: list[tuple]) -> tuple[Any, list[LayerReport]]:
    """The converted decoder, and a report for each layer."""
    from zoo.interop.retrofit import retrofit
    from zoo.model import build_model

    made = build_model(config).eval()
    moments = _moments(model, rows)
    olds, news = model.config.expanded(), config.expanded()
    notes: list[list[str]] = []
    state = {n: t for n, t in model.state_dict().items() if not (n.startswith("layers.") and ".attention." in n)}
    for old, new, moment_CC in zip(olds, news, moments, strict=True):
        place = f"layers.{old.index}.attention."
        before, fresh = (_inside(m.state_dict(), place) for m in (model, made))
        try:
            found = retrofit(old.mixer, new.mixer, before, fresh, moment_CC)
        except InteropError as error:
            raise InteropError(f"layer {old.index}: {old.block} to {new.block}: {error}") from error
        state |= {place + name: tensor.float() for name, tensor in found.state.items()}
        notes.append(found.notes)
    made.load_state_dict(state)
    errors = _errors(model, made, rows)
    return made, [
        LayerReport(old.index, old.block, new.block, error, said)
        for old, new, error, said in zip(olds, news, errors, notes, strict=True)
    ]


def _inside(state: Mapping[str, Any], place: str) -> dict[str, Any]:
    return {name.removeprefix(place): tensor for name, tensor in state.items() if name.startswith(place)}


def _watched(model: Any, rows: list[tuple], watch: Any) -> None:
    """Run the model over the rows; watch(layer, x_BTC, context, y_BTC) sees every attention."""
    import torch

    hooks = [
        layer.attention.register_forward_hook(lambda _, args, y, index=index: watch(index, *args, y))
        for index, layer in enumerate(model.layers)
    ]
    try:
        with torch.no_grad():
            for tokens_1T, _, starts_1T in rows:
                model.hidden(tokens_1T, starts_1T)
    finally:
        for hook in hooks:
            hook.remove()


def _moments(model: Any, rows: list[tuple]) -> list[Any]:
    """The second moment [C, C] of each attention's inputs, float64."""
    import torch

    width = model.config.d_model
    moments = [torch.zeros(width, width, dtype=torch.float64) for _ in model.layers]

    def add(index: int, x_BTC: Any, context: Any, y_BTC: Any) -> None:
        x_NC = x_BTC.flatten(0, 1).double()
        moments[index] += x_NC.T @ x_NC

    _watched(model, rows, add)
    n_tokens = sum(tokens_1T.numel() for tokens_1T, *_ in rows)
    return [moment / n_tokens for moment in moments]


def _errors(model: Any, made: Any, rows: list[tuple]) -> list[float]:
    """|new - old| / |old| of each attention's output, both given the old one's inputs."""
    sums = [[0.0, 0.0] for _ in model.layers]

    context_of_made = None  # layers of either model may share keys and values through theirs

    def compare(index: int, x_BTC: Any, context: Any, y_BTC: Any) -> None:
        nonlocal context_of_made
        if index == 0:
            context_of_made = context.for_another_model()
        found_BTC = made.layers[index].attention(x_BTC, context_of_made)
        sums[index][0] += float((found_BTC - y_BTC).double().square().sum())
        sums[index][1] += float(y_BTC.double().square().sum())

    _watched(model, rows, compare)
    return [(wrong / size) ** 0.5 if size else 0.0 for wrong, size in sums]


def _losses(model: Any, made: Any, rows: list[tuple]) -> tuple[float | None, float | None]:
    import torch

    if rows[0][1] is None:
        return None, None
    n_targets = sum(int((labels != -100).sum()) for _, labels, _ in rows)
    with torch.no_grad():
        sums = [sum(float(m.loss(*row, reduction="sum")) for row in rows) for m in (model, made)]
    return sums[0] / max(n_targets, 1), sums[1] / max(n_targets, 1)


def _recipe(run: Path, out: Path, model: Any, tokenizer: Any) -> Any:
    """The run's recipe with the new model, whose training starts from the new weights."""
    from zoo.data.places import absolute
    from zoo.files import present
    from zoo.interop.importing import recipe_name, recipe_of
    from zoo.recipe import Recipe, load_recipe

    summary = f"Converted from {run}."
    if not present(run / "recipe.yaml"):
        return recipe_of(out, model, summary, tokenizer)
    recipe = load_recipe(run / "recipe.yaml", of_run=True)
    changed = {"name": recipe_name(out), "summary": summary, "model": model}
    train = recipe.train.model_copy(update={"init_from": absolute(str(out))})
    return Recipe.model_validate(recipe.model_copy(update={**changed, "train": train}))


def convert_command(run: Path, out: Path, layers: str | None, blocks: Path | None, data: Path | None, rows: int) -> str:
    """`zoo convert`: convert, and say how far each layer is from the one before."""
    made = convert(run, out, layers, blocks, data=data, rows=rows)
    return "\n".join(_lines(made))


def _lines(made: Converted) -> Iterator[str]:
    widths = [
        max(len(word) for word in column) for column in zip(*((r.before, r.after) for r in made.layers), strict=True)
    ]
    yield f"{'layer':5}  {'from':{widths[0]}}  {'to':{widths[1]}}  error of attention's output"
    for each in made.layers:
        yield f"{each.index:5}  {each.before:{widths[0]}}  {each.after:{widths[1]}}  {each.error:.4f}"
    said: dict[str, list[int]] = {}
    for each in made.layers:
        for note in each.notes:
            said.setdefault(note, []).append(each.index)
    for note, indices in said.items():
        yield f"layer{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}: {note}"
    yield f"measured on {made.measured_on}"
    if made.loss_before is not None:
        yield f"loss {made.loss_before:.4f} before, {made.loss_after:.4f} after"
    yield f"wrote {made.run}"
    yield f"train it: zoo train {made.run}/recipe.yaml --run-dir NEW   (its train.init_from names these weights)"
