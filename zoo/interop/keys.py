"""The keys of a config.json, each read once with its type and bounds; a key that nobody reads is refused by name.

No torch.  The file may be anybody's: every number is checked before anything is sized by it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from zoo.errors import did_you_mean, shorten
from zoo.interop.errors import InteropError

REQUIRED = object()
LARGEST = 2**31 - 1
# What transformers writes into every config.json and what tools add, which says nothing about the logits.
_INERT = """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path _sliding_window_pattern architectures
    attn_implementation
    bos_token_id cache_implementation chunk_size_feed_forward cls_token_id decoder_start_token_id dtype eos_token_id
    finetuning_task for_llm_compressor
    gradient_checkpointing id2label initializer_range is_decoder is_llama_config label2id model_max_length model_type
    name_or_path
    output_attentions output_hidden_states pad_token_id prefix pretraining_tp problem_type return_dict
    sep_token_id task_specific_params tf_legacy_loss tokenizer_class torch_dtype torchscript transformers.js_config
    transformers_version unsloth_fixed unsloth_version use_bfloat16 use_cache use_parallel_embedding
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
"""
INERT = frozenset(_INERT.split())
# Of training alone.  A recipe has none, which an import notes where one is above 0.
DROPOUTS = ("attention_dropout", "attn_pdrop", "embd_pdrop", "hidden_dropout", "resid_pdrop")
# Keys of any family that a recipe cannot express unless they have this value.
ONLY: dict[str, tuple[Any, str]] = {
    "add_cross_attention": (False, "a recipe has no encoder to attend to"),
    "cross_attention_hidden_size": (None, "a recipe has no encoder to attend to"),
    "is_encoder_decoder": (False, "a recipe is a decoder"),
    "pruned_heads": ({}, "heads cannot be taken out"),
    "rope_interleaved": (False, "transformers ignores it for this family, and tools do not agree"),
    "tie_encoder_decoder": (False, "a recipe is a decoder"),
    "use_mrope": (False, "a token of a recipe has one position"),
}
WHY = {
    "quantization_config": "the weights are quantised; save the model without quantisation first",
}


class Keys:
    """The keys of one config.json, or of a mapping in it.

    defaults: what transformers' config class takes for a key that is not written.  ignored: keys that are read as if
    they were not written, `rope_scaling.factor` for one of a mapping.  place: of the file, in messages.  path: of the
    mapping.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        place: str,
        defaults: Mapping[str, Any],
        ignored: Iterable[str] = (),
        path: str = "",
    ):
        self._ignored = frozenset(ignored)
        self._values = {name: value for name, value in values.items() if f"{path}{name}" not in self._ignored}
        self.place, self._defaults, self._path = place, defaults, path
        self._read: set[str] = set()

    def value(self, name: str, default: Any = REQUIRED) -> Any:
        """The value as it is; where the key is absent, `default`, else that of transformers' config class."""
        self._read.add(name)
        if name in self._values:
            return self._values[name]
        if default is not REQUIRED:
            return default
        if name not in self._defaults:
            raise InteropError(f"{self.place}: {self._path}{name}: is missing")
        return self._defaults[name]

    def count(self, name: str, null: int | None = None, *, least: int = 1, most: int = LARGEST) -> int:
        """An integer of `least` to `most`.  null: what the value null stands for; None if it may not be null."""
        value = self.value(name)
        if value is None and null is not None:
            return null
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(name, f"must be an integer of {least} to {most:,}")
        return value

    def number(self, name: str, default: Any = REQUIRED) -> float:
        """A number that a float can hold."""
        value = self.value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(name, "must be a number")
        try:
            return float(value)
        except OverflowError:  # JSON has integers of any length
            self.refuse(name, "is too large")

    def flag(self, name: str, default: Any = REQUIRED) -> bool:
        """true or false."""
        value = self.value(name, default)
        if not isinstance(value, bool):
            self.refuse(name, "must be true or false")
        return value

    def has(self, name: str) -> bool:
        """Whether the key is written."""
        return name in self._values

    def mapping(self, name: str) -> dict[str, Any] | None:
        """A mapping, or that of transformers' config class, or None where there is none or it is null."""
        value = self.value(name, self._defaults.get(name))
        if value is not None and not isinstance(value, dict):
            self.refuse(name, "must be a mapping")
        return value

    def each_layer(self, name: str, n_layers: int, known: Iterable[Any]) -> list[Any] | None:
        """A list with one of `known` for each layer; None where the key is absent or null."""
        value, known = self.value(name, None), list(known)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != n_layers:
            found = f"; found {len(value)}" if isinstance(value, list) else ""
            self.refuse(name, f"must be a list with an entry for each of the {n_layers} layers{found}")
        for entry in value:
            if not any(entry is one or (type(entry) is type(one) and entry == one) for one in known):
                shown = ", ".join(map(str, known))
                raise InteropError(f"{self.place}: {self._path}{name}: each must be {shown}; found {shorten(entry)}")
        return value

    def only(self, name: str, value: Any, why: str) -> None:
        """Refuse any other value than `value`, where the key is written."""
        found = self.value(name, value)
        if found != value and not (found is None and not value):
            self.refuse(name, f"must be {shorten(value)}, because {why}")

    def repeats(self, name: str, other: str) -> None:
        """Refuse a value that is not that of the key `other`, which `name` states once more."""
        self.only(name, self.value(other), f"it is {other} once more")

    def inside(self, name: str, values: Mapping[str, Any]) -> "Keys":
        """Keys of the mapping that is under `name`, without defaults."""
        return Keys(values, self.place, {}, self._ignored, f"{self._path}{name}.")

    def refuse(self, name: str, why: str) -> NoReturn:
        """Raise InteropError for the value of a key."""
        found = self._values.get(name, self._defaults.get(name))
        raise InteropError(f"{self.place}: {self._path}{name}: {why}; found {shorten(found)}")

    def finish(self) -> None:
        """Raise InteropError for each key that nothing has read: what it changes is not known."""
        for name, (value, why) in ONLY.items():
            if name in self._values and name not in self._read:
                self.only(name, value, why)
        left = [name for name in self._values if name not in self._read and name not in (*INERT, *DROPOUTS)]
        if left:
            known = [name for name in (*self._read, *self._defaults) if name not in left]
            lines = [f"{self.place}: {_refusal(self._path, name, known)}" for name in left[:20]]
            more = [f"and {len(left) - 20} more keys"] if len(left) > 20 else []
            raise InteropError("\n".join([*lines, *more]))


def _refusal(above: str, name: str, known: list[str]) -> str:
    path = above + shorten(name)[1:-1]
    way_out = f"if it does not change what the model computes, give --ignore {path}"
    why = f"not a key that a recipe can express for this model; {way_out}.{did_you_mean(name, known)}"
    return f"{path}: {WHY.get(name, why)}"
