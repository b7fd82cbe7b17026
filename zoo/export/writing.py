"""`zoo export RUN DIR`: a trained model for other libraries. Loading what is written needs no pickle."""

import shutil
from pathlib import Path

from zoo.errors import ZooError, unknown
from zoo.interop.native import native_config, native_tensors, write_native_config
from zoo.new_folder import check_new_folder, new_folder

FORMATS = ("hf", "safetensors")


class ExportError(ZooError):
    """A folder or format that nothing can be written to."""

    exit_code = 2


def export(
    run: str | Path, folder: str | Path, format: str = "hf", dtype: str = "fp32", family: str | None = None
) -> list[Path]:
    """Write the model of a run folder into a new folder, and return the files.

    format: hf, for `transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`, with
    the tokenizer; or safetensors, the weights alone under the zoo's names.  dtype: of the weights: fp32, bf16 or fp16.
    family: with hf, the format of this `model_type` of transformers, such as llama, which needs no code of ours.
    Raises LoadError if the run cannot be loaded, ExportError if the folder has files or an option is unknown,
    InteropError if the family has no such model.
    """
    folder = Path(folder)
    if format not in FORMATS:
        raise ExportError(unknown("format", format, FORMATS))
    if family is not None and format != "hf":
        raise ExportError(f"--as {family}: needs --format hf; found {format}")
    check_new_folder(folder, ExportError)
    from zoo.inference.placing import DTYPES, load_for_generation
    from zoo.runs.weights import load_tokenizer

    if dtype not in DTYPES:
        raise ExportError(unknown("dtype", dtype, DTYPES))
    native = None if family is None else native_config(family, run)
    model = load_for_generation(run, "cpu", dtype)
    tokenizer = load_tokenizer(run) if format == "hf" else None
    with new_folder(folder, ExportError):
        prefix = "decoder." if format == "hf" else ""
        state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
        _write_weights(state if native is None else native_tensors(native[0], model), folder)
        if native is not None:
            write_native_config(native[1], _ends(tokenizer), folder, dtype)
        elif format == "hf":
            _write_config(model.config, tokenizer, folder, dtype)
        if format == "hf":
            _write_tokenizer(model.config, tokenizer, folder)
    return sorted(folder.iterdir())


def _write_weights(state: dict, folder: Path) -> None:
    from safetensors.torch import save_file

    state = {name: tensor.contiguous() for name, tensor in state.items()}
    path = folder / "model.safetensors"
    path.touch()
    mode = path.stat().st_mode  # as the umask says; safetensors lets only the owner read
    save_file(state, path, metadata={"format": "pt"})
    path.chmod(mode)


def _ends(tokenizer) -> dict[str, int]:
    """A text begins after the end of the one before, also that of an empty prompt."""
    return {} if tokenizer is None else dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.end_of_document)


def _write_config(config, tokenizer, folder: Path, dtype: str) -> None:
    """config.json and the modelling module."""
    from zoo.export import modeling_zoo
    from zoo.inference.placing import DTYPES

    made = modeling_zoo.ZooConfig(
        config.model_dump(mode="json"),
        architectures=["ZooForCausalLM"],
        auto_map={"AutoConfig": "modeling_zoo.ZooConfig", "AutoModelForCausalLM": "modeling_zoo.ZooForCausalLM"},
        dtype=DTYPES[dtype],
        **_ends(tokenizer),
    )
    made.to_json_file(folder / "config.json")  # save_pretrained adds our module, if this process has loaded an export
    shutil.copyfile(modeling_zoo.__file__, folder / "modeling_zoo.py")


def _write_tokenizer(config, tokenizer, folder: Path) -> None:
    """generation_config.json, and the tokenizer's files if there is one."""
    from transformers import GenerationConfig

    from zoo.export.tokenizer_files import save_tokenizer

    settings = {}
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder, config.max_seq_len)
        unknown_tokens = list(range(tokenizer.vocab_size, config.vocab_size))  # never drawn by the zoo either
        settings = {"pad_token_id": tokenizer.end_of_document, "suppress_tokens": unknown_tokens or None}
    GenerationConfig(**_ends(tokenizer), **settings).save_pretrained(folder)


def export_command(run: Path, folder: Path, format: str, dtype: str, family: str | None = None) -> str:
    """`zoo export`: write, and say what was written and how it is loaded."""
    from zoo.interop.registry import family_to_write
    from zoo.runs.weights import Stored

    files = export(run, folder, format, dtype, family)
    sizes = ", ".join(f"{path.name} ({path.stat().st_size:,} bytes)" for path in files)
    lines = [f"wrote {folder}: {sizes}"]
    if format == "hf":
        trust = "" if family else ", trust_remote_code=True"
        call = f'AutoModelForCausalLM.from_pretrained("{folder}"{trust})'
        lines.append(f"load it:   transformers.{call}")
    if family and Stored.of(run).model.multi_token and not family_to_write(family).multi_token:
        lines.append(f"left out:  the modules of model.multi_token, which {family} does not have")
    return "\n".join(lines)
