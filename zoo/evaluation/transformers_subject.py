"""A causal language model of transformers in a local folder, as a `Subject`: for comparison with runs of the zoo."""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from zoo.data.tokenizers import library_errors, library_threads
from zoo.data.vocabulary import check_numbers
from zoo.errors import shorten
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.subject import Subject
from zoo.files import parse_object, present, read_text, sha256
from zoo.interop.folder import CONFIG, SourceFolder, names

NO_LIMIT = 1 << 20  # what tokenizers without a limit state is larger
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
PACKED = 16  # parameters to a stored number, at most: 2-bit weights in int32
SMALL = 1 << 20  # parameters that may be missing before a model is laid out, which then names them
MOST_MODULES = 4096  # layers or experts, where there are fewer tensors: experts may share one


class TransformersTokenizer:
    """A tokenizer of transformers with the interface of the zoo's, without special tokens."""

    def __init__(self, tokenizer, end: int | None):
        self._tokenizer = tokenizer
        self.vocab_size = len(tokenizer)
        self.end_of_document = end
        self._cannot = f"{tokenizer.name_or_path}: its tokenizer cannot encode a text of the task"
        self.identity = _digest(TOKENIZER_FILES, Path(tokenizer.name_or_path))

    def encode(self, text: str) -> np.ndarray:
        with library_errors(self._cannot):
            return np.asarray(self._tokenizer.encode(text, add_special_tokens=False), np.int64)

    def encode_many(self, texts: Sequence[str], begins: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of all texts in a row, and how many each has; every text begins a document."""
        assert all(begins), "where a text can be cut is not known"
        with library_threads(), library_errors(self._cannot):
            found = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        lengths = np.array([len(numbers) for numbers in found], np.int64)
        return np.fromiter(chain.from_iterable(found), np.int64, int(lengths.sum())), lengths

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files, without code."""
        self._tokenizer.save_pretrained(folder)

    def decode(self, numbers: Sequence[int]) -> str:
        kept = [int(n) for n in numbers if n != self.end_of_document]
        return self._tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)


class TransformersSubject(Subject):
    """A folder with config.json, safetensors and a tokenizer; nothing in it is unpickled or run.

    Folders that `zoo export` wrote hold code of their own. They are not loaded here: evaluate the run itself.
    """

    def __init__(self, folder: Path, device: str = "auto", dtype: str = "auto"):
        from zoo.inference.placing import DTYPES

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "bf16" if device.startswith("cuda") else "fp32"
        if dtype not in DTYPES:
            raise EvaluationError(f"dtype: must be auto, {', '.join(DTYPES)}; found {dtype!r}")
        model, config, tokenizer = _load(folder, DTYPES[dtype])
        self._set(model.to(device), config.vocab_size, min(_max_len(folder, config), NO_LIMIT))
        self.name, self.dtype_name = str(folder), dtype
        self.tokenizer = cast(Any, TransformersTokenizer(tokenizer, tokenizer.eos_token_id))  # the same interface
        self.start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self.digest = _digest((CONFIG, *sorted(path.name for path in folder.glob("*.safetensors"))), folder)

    @classmethod
    def of_model(cls, model, *, max_len: int, name: str = "model") -> "TransformersSubject":
        """A causal language model of transformers that is in memory, without a tokenizer."""
        subject = cls.__new__(cls)
        subject._set(model, model.config.get_text_config().vocab_size, max_len)
        subject.name, subject.tokenizer = name, None
        return subject

    def _set(self, model, vocab_size: int, max_len: int) -> None:
        self.model, self.device = model.eval(), model.device
        self.vocab_size, self.max_len, self.longest = vocab_size, max_len, max_len
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.no_grad()
    def logits(self, tokens_BT, row_N, position_N, document_starts_BT=None):
        if not self._keeps_logits:
            return self.model(input_ids=tokens_BT, use_cache=False).logits[row_N, position_N].float()
        kept, place_N = position_N.unique(return_inverse=True)
        logits = self.model(input_ids=tokens_BT, use_cache=False, logits_to_keep=kept).logits
        # A model that takes the setting and does not read it returns all positions.
        return logits[row_N, place_N if logits.shape[1] == len(kept) else position_N].float()

    def logits_parts(self, tokens_BT, row_N, position_N, document_starts_BT=None, *, at_once):
        """As `Subject.logits_parts`.

        The model computes logits of all rows at each position that any of them asks about, or at all positions. A row
        with more places than at_once is read several times where the model computes the logits of some positions alone.
        """
        wide = len(position_N.unique()) if self._keeps_logits else tokens_BT.shape[1]
        apart = self._keeps_logits and wide > at_once
        for tokens, row, position, starts in self._by_rows(
            at_once // wide, tokens_BT, row_N, position_N, document_starts_BT
        ):
            step = at_once if apart else len(row)
            for lo in range(0, len(row), step):
                yield self.logits(tokens, row[lo : lo + step], position[lo : lo + step], starts)

    def row_bytes(self, length):
        """Of the residual stream, the keys and queries, and the feed-forward of one layer; scores if they are kept."""
        config, size = self.model.config.get_text_config(), self.model.dtype.itemsize
        sizes = ("hidden_size", "intermediate_size", "num_attention_heads")
        width, hidden, heads = (_widest(config, name) for name in sizes)
        scores = heads * length if config._attn_implementation == "eager" else 0
        return length * size * (6 * width + 3 * (hidden or 4 * width) + 2 * scores)

    @torch.no_grad()
    def greedy(self, prompts, max_tokens):
        made, end = [], self.start if self.tokenizer is None else self.tokenizer.end_of_document
        for prompt in prompts:
            tokens_1T = torch.tensor([list(prompt)], device=self.device)
            out = self.model.generate(
                tokens_1T,
                attention_mask=torch.ones_like(tokens_1T),
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=end or 0,
            )[0, tokens_1T.shape[1] :].tolist()
            made.append(_until_end(out, end))
        return made


def _widest(config: Any, name: str) -> int:
    """A size, of the widest layer where each layer has its own; 0 where there is none: Mamba has no heads."""
    found = getattr(config, name, None) or 0
    return max(found) if isinstance(found, list | tuple) else found


def _until_end(tokens: list[int], end: int | None) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end is not None and end in tokens else tokens


def _tokenizer_files(source: SourceFolder) -> str:
    """The files that the tokenizer is read from.

    Raises EvaluationError that names one that is no JSON mapping, or whose tokens contradict each other.
    """
    found = [name for name in TOKENIZER_FILES if present(source.path / name, EvaluationError)]
    for name in found:
        if name.endswith(".json"):
            path = source.path / name
            content = parse_object(read_text(path, error=EvaluationError), path, error=EvaluationError)
            if name == TOKENIZER_FILES[0]:
                check_numbers(content, path, EvaluationError)
    return ", ".join([*found, *([] if TOKENIZER_FILES[0] in found else [f"without a {TOKENIZER_FILES[0]}"])])


def _load(folder: Path, dtype: torch.dtype) -> tuple:
    """(model, config of its text, tokenizer).  Raises ZooError that names the folder or the file.

    transformers initialises weights that are missing, and goes on: such a model is refused here.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = SourceFolder(folder)
    _check_files(source)
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **local)
        _check_size(source, config)
        settings = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True, **local}
        model, found = AutoModelForCausalLM.from_pretrained(folder, **settings)
    except EvaluationError:
        raise
    except Exception as error:  # the library's errors have no common base
        lines = str(error).split("\n") if str(error).strip() else [type(error).__name__]
        reason = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
        raise EvaluationError(f"{folder}: transformers cannot load what config.json describes: {reason}") from error
    _check_loaded(folder, model, found)
    with library_errors(f"{folder}: transformers cannot load its tokenizer ({_tokenizer_files(source)})"):
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    text = config.get_text_config()
    if len(tokenizer) > text.vocab_size:
        problem = f"makes token numbers up to {len(tokenizer) - 1:,}; the model has {text.vocab_size:,} tokens"
        raise EvaluationError(f"{folder}: the tokenizer {problem}")
    return model, text, tokenizer


def _check_files(source: SourceFolder) -> None:
    """Raise ZooError, naming the file, for what is no regular file, and for damaged weights or ones elsewhere.

    transformers takes a FIFO, or a link to nothing, for no file, and goes on without it.
    """
    for path in sorted(source.path.iterdir()):
        if not path.is_dir():
            present(path, EvaluationError)
    _ = source.config, source.tensors  # read here, and refused if they are damaged


def _check_size(source: SourceFolder, config: Any) -> None:
    """Raise EvaluationError if the files cannot hold the model of config.json, before memory is allocated for it."""
    from transformers import AutoModelForCausalLM

    place, most = source.path / CONFIG, max(len(source.tensors), MOST_MODULES)
    for name, value in config.get_text_config().to_dict().items():
        if ("layer" in name or "expert" in name) and isinstance(value, int) and value > most:
            raise EvaluationError(f"{place}: {name}: must be at most {most:,} with these weights; found {value:,}")
    with torch.device("meta"):
        described = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    held = sum(place.elements for place in source.tensors.values())
    if described > PACKED * held + SMALL:
        found = f"describes a model of {described:,} parameters; the safetensors files hold {held:,} numbers"
        raise EvaluationError(f"{place}: {found}")


def _check_loaded(folder: Path, model: torch.nn.Module, found: Mapping[str, Any]) -> None:
    """Raise EvaluationError unless every tensor of the model was in the files, and every one of the files is used."""
    for key, problem in (("missing_keys", "lack"), ("unexpected_keys", "have, and the model does not,")):
        if found[key]:
            raise EvaluationError(
                f"{folder}: not the weights that {CONFIG} describes: they {problem} {names(found[key])}"
            )
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.isfinite().all()):
            raise EvaluationError(f"{folder}: {name} holds NaN or infinity; the weights are damaged")


def _max_len(folder: Path, config: Any) -> int:
    found = getattr(config, "max_position_embeddings", None)
    if found is None:
        return NO_LIMIT
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise EvaluationError(
            f"{folder / CONFIG}: max_position_embeddings: must be an integer of at least 1; found {shorten(found)}"
        )
    return found


def _digest(files: Sequence[str], folder: Path) -> str:
    """A hash of the content of those files of a folder that are there."""
    content = [(name, sha256(folder / name)) for name in files if present(folder / name)]
    return hashlib.sha256(repr(content).encode()).hexdigest()
