"""What `zoo cost` prints. No torch."""

from dataclasses import asdict

from zoo.counting.run_cost import GPUS, USABLE, Gpu, StepSize, step_size
from zoo.errors import Problem, RecipeError, unknown
from zoo.json_text import json_text
from zoo.recipe import Recipe
from zoo.report.rows import binary
from zoo.tables import Table, Text, rendered


def size(recipe: Recipe, gpu_name: str, seq_len: int | None, rows: int) -> tuple[Gpu, int, StepSize, StepSize]:
    """(gpu, seq_len, as the recipe says, with checkpointing the other way).

    Raises RecipeError for a GPU that is not known.
    """
    gpu = GPUS.get(gpu_name.lower())
    if gpu is None:
        raise RecipeError([Problem(unknown("GPU", gpu_name, GPUS), key="--gpu")])
    seq_len = seq_len or recipe.seq_len
    found = step_size(recipe, seq_len, rows, gpu)
    return gpu, seq_len, found, step_size(recipe, seq_len, rows, gpu, not found.checkpointing)


def as_json(recipe: Recipe, gpu_name: str, seq_len: int | None, rows: int) -> str:
    """The sizes with and without activation checkpointing, as JSON text."""
    gpu, seq_len, *both = size(recipe, gpu_name, seq_len, rows)
    sizes = {
        ("checkpointing" if found.checkpointing else "plain"): {
            **asdict(found), "least_s": found.least_s, "fits": found.fits(gpu)
        }
        for found in both
    }  # fmt: skip
    return json_text({"name": recipe.name, "gpu": asdict(gpu), "seq_len": seq_len, "rows": rows, **sizes})


def as_text(recipe: Recipe, gpu_name: str, seq_len: int | None, rows: int, width: int | None = None) -> str:
    """A table of memory by part and of the step's time, with and without activation checkpointing."""
    gpu, seq_len, found, other = size(recipe, gpu_name, seq_len, rows)
    both = sorted((found, other), key=lambda one: one.checkpointing)
    title = f"{recipe.name} on one {gpu.name}: {rows} x {seq_len:,} tokens forward and backward, one AdamW step"
    table = Table("", *("checkpointing" if one.checkpointing else "no checkpointing" for one in both))
    for column in table.columns[1:]:
        column.justify = "right"
    parts = ("weights", "copies", "gradients", "optimiser", "activations", "loss", "peak")
    names = {"weights": "weights, float32", "copies": "weights cast to bf16", "optimiser": "AdamW averages",
             "loss": "last norm and loss", "peak": "peak (estimate)"}  # fmt: skip
    for part in parts:
        table.add_row(names.get(part, part), *(binary(getattr(one, part)) for one in both))
    table.add_row("fits", *(_verdict(one, gpu) for one in both))
    table.add_row("least time, arithmetic", *(f"{one.compute_s * 1000:,.1f} ms" for one in both))
    table.add_row("least time, memory traffic", *(f"{one.memory_s * 1000:,.1f} ms" for one in both))
    table.add_row("most tokens/s", *(f"{one.tokens / one.least_s:,.0f}" for one in both))
    notes = [
        f"The recipe sets activation_checkpointing: {str(found.checkpointing).lower()}. The peak is at the start of "
        "the backward pass or in the optimiser's step, so the parts do not add up to it. "
        + ("Gradients of earlier micro-batches are kept during the backward pass." if found.accumulates else ""),
        f"A step fits if it takes at most {USABLE:.0%} of {binary(gpu.memory_bytes)}. Times are lower bounds from the "
        "GPU's data sheet, not predictions.",
    ]
    if found.frozen:
        notes.append(f"{found.frozen:,} parameters are frozen (train.freeze): no gradient, no averages, no step.")
    notes += [f"Activations of {kind} are not counted: it is no point of the grid." for kind in found.unknown]
    return rendered([Text(title, style="bold"), Text(), table, Text(), *map(Text, notes)], width)


def _verdict(one: StepSize, gpu: Gpu) -> str:
    return "yes" if one.fits(gpu) else f"no: {binary(one.peak - USABLE * gpu.memory_bytes)} too much"
