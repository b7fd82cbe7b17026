"""Commands that take a trained model: generate, eval, export, import, convert. torch is imported when they run."""

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.options import Plugins, RunFolder
from zoo.terminal import err, out, out_styled


def generate(
    run: RunFolder,
    stdin: Annotated[str | None, typer.Argument(metavar="[-]", help="- reads the prompt from standard input.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A prompt. Repeatable.")] = None,
    prompt_file: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="A file whose text is a prompt. Repeatable.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Generate at most N tokens for each prompt.")] = 256,
    temperature: Annotated[float, typer.Option(help="Divides the logits; 0: always the most likely token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k most likely tokens.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Draw among the most likely tokens that together hold this share of the probability."),
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Draw among tokens at least X times as likely as the most likely one.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: tokens that are in the text already become less likely.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the random draws.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Stop before this text. Repeatable.")] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Print each prompt before its text.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each prompt, at the end.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print speed and cache size on standard error.")] = False,
    device: Annotated[str, typer.Option(help="cuda, cpu, ...; auto: a GPU if there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32; auto: bf16 on a GPU, fp32 on a CPU.")] = "auto",
    plugins: Plugins = None,
) -> None:
    """Continue prompts with a trained model: the text on standard output, everything else on standard error."""
    if stdin not in (None, "-"):
        raise typer.BadParameter(f"must be - for standard input; found {stdin!r}. Prompts: --prompt", param_hint="[-]")
    from zoo.inference.command import Request, generate_command

    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    sampling["repetition_penalty"] = repetition_penalty
    files = [*(prompt_file or []), *([stdin] if stdin else [])]
    output = {"echo": echo, "json": json, "stats": stats}
    generate_command(Request(run, prompt or [], files, max_tokens, stop or [], device, dtype, sampling, **output))


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
    seed: Annotated[int | None, typer.Option(min=0, help="Seed for making or sampling rows. Default: 0.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Score tasks anew that have a result in eval.json.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Write the results to this file instead of eval.json in the folder."
        ),
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


def export(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.", show_default=False)],
    format: Annotated[str, typer.Option(metavar="hf|safetensors", help="For transformers, or weights only.")] = "hf",
    dtype: Annotated[str, typer.Option(help="The dtype of the weights: fp32, bf16 or fp16.")] = "fp32",
    family: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="FAMILY",
            help="With hf: write a llama, mistral, qwen3, ... model, which loads without code of the zoo.",
        ),
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Write a trained model for other libraries, as safetensors."""
    from zoo.export.writing import export_command

    out(export_command(run, folder, format, dtype, family))


def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A local transformers folder.", show_default=False)],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A new run folder.", show_default=False)],
    ignore: Annotated[
        list[str] | None,
        typer.Option("--ignore", metavar="KEY", help="Ignore this key of config.json. Repeatable."),
    ] = None,
    end_of_document: Annotated[
        str | None,
        typer.Option(metavar="TOKEN", help="The token that ends a document. Default: the tokenizer's end of sequence."),
    ] = None,
) -> None:
    """Make a run folder from a transformers folder: Llama, Mistral, Qwen, Gemma, OLMo and others."""
    from zoo.interop.importing import import_command

    text, notes = import_command(folder, run, ignore or [], end_of_document)
    out(text)
    for note in notes:
        err(f"note: {note}")


def convert(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A new run folder.", show_default=False)],
    layers: Annotated[str | None, typer.Option(metavar="SCHEDULE", help="The new schedule of blocks.")] = None,
    blocks: Annotated[Path | None, typer.Option(metavar="FILE", help="A YAML file of new blocks by name.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A YAML file with a data section, to measure losses on.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")] = 16,
    plugins: Plugins = None,
) -> None:
    """Replace the attention blocks of a trained model; the new blocks start from its weights where they can."""
    from zoo.interop.converting import convert_command

    out(convert_command(run, folder, layers, blocks, data, rows))
