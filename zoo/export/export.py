"""`zoo export RUN DIR`: a trained model for other libraries. Loading what is written needs no pickle."""

import shutil
from pathlib import Path

from zoo.errors import ZooError, unknown
from zoo.new_folder import check_new_folder, new_folder

FORMATS = ("hf", "safetensors")


class ExportError(ZooError):
    """A folder or format that nothing can be written to."""

    exit_code = 2


def export(run: str | Path, folder: str | Path, format: str = "hf", dtype: str = "fp32") -> list[Path]:
    """Write the model of a run folder into a new folder, and return the files.

    format: hf, for `transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`, with
    the tokenizer; or safetensors, the weights alone under the zoo's names.  dtype: of the weights: fp32, bf16 or fp16.
    Raises LoadError if the run cannot be loaded, ExportError if the folder has files or an option is unknown.
    """
    folder = Path(folder)
    if format not in FORMATS:
        raise ExportError(unknown("format", format, FORMATS))
    check_new_folder(folder, ExportError)
    from zoo.inference.loading import DTYPES, load_for_generation
    from zoo.loading import load_tokenizer

    if dtype not in DTYPES:
        raise ExportError(unknown("dtype", dtype, DTYPES))
    model = load_for_generation(run, "cpu", dtype)
    tokenizer = load_tokenizer(run) if format == "hf" else None
    with new_folder(folder, ExportError):
        _write_weights(model, folder, prefix="decoder." if format == "hf" else "")
        if format == "hf":
            _write_transformers(model, tokenizer, folder, dtype)
    return sorted(folder.iterdir())


def _write_weights(model, folder: Path, prefix: str) -> None:
    from safetensors.torch import save_file

    state = {prefix + name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    path = folder / "model.safetensors"
    path.touch()
    mode = path.stat().st_mode  # as the umask says; safetensors lets only the owner read
    save_file(state, path, metadata={"format": "pt"})
    path.chmod(mode)


def _write_transformers(model, tokenizer, folder: Path, dtype: str) -> None:
    """config.json, generation_config.json, the modelling module and the tokenizer."""
    from transformers import GenerationConfig

    from zoo.export import modeling_zoo
    from zoo.export.tokenizer_files import save_tokenizer
    from zoo.inference.loading import DTYPES

    config = model.config
    # A text begins after the end of the one before, also that of an empty prompt.
    ends = ("bos_token_id", "eos_token_id")
    end = {} if tokenizer is None else dict.fromkeys(ends, tokenizer.end_of_document)
    made = modeling_zoo.ZooConfig(
        config.model_dump(mode="json"),
        architectures=["ZooForCausalLM"],
        auto_map={"AutoConfig": "modeling_zoo.ZooConfig", "AutoModelForCausalLM": "modeling_zoo.ZooForCausalLM"},
        dtype=DTYPES[dtype],
        **end,
    )
    made.to_json_file(folder / "config.json")  # save_pretrained adds our module, if this process has loaded an export
    shutil.copyfile(modeling_zoo.__file__, folder / "modeling_zoo.py")
    settings = {}
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder, config.max_seq_len)
        unknown_tokens = list(range(tokenizer.vocab_size, config.vocab_size))  # never drawn by the zoo either
        settings = {"pad_token_id": tokenizer.end_of_document, "suppress_tokens": unknown_tokens or None}
    GenerationConfig(**end, **settings).save_pretrained(folder)


def export_command(run: Path, folder: Path, format: str, dtype: str) -> str:
    """`zoo export`: write, and say what was written and how it is loaded."""
    files = export(run, folder, format, dtype)
    sizes = ", ".join(f"{path.name} ({path.stat().st_size:,} bytes)" for path in files)
    lines = [f"wrote {folder}: {sizes}"]
    if format == "hf":
        call = f'AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)'
        lines.append(f"load it:   transformers.{call}")
    return "\n".join(lines)
