"""`train.init_from`: the weights that a new run starts from, found and checked before its data are prepared.

They are those of another run's folder.  Of a complete run: model.safetensors, whose SHA-256 model.yaml states; of an
unfinished one: its newest checkpoint, which is read as for a resume, tensors and plain values only.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo.data.files import local_path
from zoo.data.identity import DataRecord, InitRecord, TokenizerRecord, tokenizer_record
from zoo.data.packing import Tokenizer
from zoo.errors import Problem, RecipeError, ZooError
from zoo.files import present, sha256
from zoo.model import Decoder, build_model
from zoo.recipe.differences import differences, in_words
from zoo.runs.folder import RunFolder
from zoo.runs.weights import LoadError, Stored, load_tokenizer
from zoo.training import checkpoints
from zoo.training.checkpoint_content import read_state, weights_of
from zoo.training.checkpoints import Checkpoint

KEY = "train.init_from"
MODULES = "multi_token."  # what the names of the tensors of those modules begin with
MOST_PROBLEMS = 100  # tensors that a message names
# What a projection makes of its tensors: with another number of heads equal shapes would mean other things.
MEANING = ("n_heads", "n_kv_heads", "head_dim", "v_head_dim", "rope_dim", "n_latent_heads")
# The same of mixers with a state.
STATE_MEANING = ("n_heads", "n_key_heads", "n_groups", "head_dim", "state_dim", "v_head_dim")


@dataclass(frozen=True)
class Initial:
    """Weights to start from: the file they are in, and the model and tokenizer they belong to.

    source: the folder, as the recipe names it.  shapes: of the tensors, by the decoder's names.  tokenizer: None where
    rows are numbers.  checkpoint: what `file` is, unless it is a safetensors file.
    """

    source: str
    file: Path
    model: Any  # zoo.recipe.ModelConfig
    tokenizer: TokenizerRecord | None
    sha256: str
    shapes: Mapping[str, list[int]]
    checkpoint: Checkpoint | None = None

    @classmethod
    def find(cls, source: str, run: Path) -> "Initial":
        """The weights of the folder `source`, for a run in `run`.

        Raises RecipeError that names the key if the folder has none, if they are damaged, or if it is that run itself.
        """
        try:
            folder = RunFolder(local_path(source))
            if folder.path.resolve() == run.resolve():
                raise LoadError(f"{source}: the folder of this run itself; a new run needs another --run-dir")
            if (folder.path / "config.json").is_file() and not present(folder.model):
                raise LoadError(
                    f"{source}: a folder of transformers; `zoo import {source} RUN` makes a run folder of it"
                )
            if checkpoints.listed(folder.checkpoints) and folder.read_summary() is None:
                return cls._of_checkpoint(source, folder)
            return cls._of_run(source, folder)
        except (ZooError, OSError) as error:
            raise RecipeError([Problem(str(error), key=KEY)]) from error

    @classmethod
    def _of_run(cls, source: str, folder: RunFolder) -> "Initial":
        stored = Stored.of(folder.path)
        tokenizer = load_tokenizer(folder.path)
        record = None if tokenizer is None else _record(tokenizer)
        shapes = {name: shape for name, (shape, _) in stored.tensors().items()}
        return cls(source, stored.weights, stored.model, record, stored.check_digest(), shapes)

    @classmethod
    def _of_checkpoint(cls, source: str, folder: RunFolder) -> "Initial":
        """Of the newest checkpoint that is whole; nothing in the folder is renamed or removed."""
        from zoo.recipe import load_recipe

        whole = (c for c in reversed(checkpoints.listed(folder.checkpoints)) if checkpoints.damage(c.path) is None)
        checkpoint = next(whole, None)
        if checkpoint is None:
            raise LoadError(f"{folder.checkpoints}: every checkpoint is damaged, so there are no weights to start from")
        model = load_recipe(folder.recipe, of_run=True).model
        tokenizer = DataRecord.read(folder.data).tokenizer
        weights = weights_of(read_state(checkpoint))
        shapes = {name: list(getattr(value, "shape", ())) for name, value in weights.items()}
        return cls(source, checkpoint.path, model, tokenizer, sha256(checkpoint.path), shapes, checkpoint)

    @property
    def record(self) -> InitRecord:
        """What data.json and summary.json keep."""
        return InitRecord(source=self.source, sha256=self.sha256)

    def check_model(self, model) -> None:
        """Raise RecipeError unless the weights are those of a model of this config (zoo.recipe.ModelConfig).

        Each tensor that is missing, not part of the model, or of another shape is named.
        """
        expected = build_model(model, device="meta").state_dict()
        found = self.shapes
        if self._modules_differ(expected):
            expected, found = _without_modules(expected), _without_modules(found)
        wrong = list(_other_tensors(expected, found)) or list(_other_meanings(model, self.model))
        if wrong:
            more = [f"and {len(wrong) - MOST_PROBLEMS} more"] if len(wrong) > MOST_PROBLEMS else []
            problems = [Problem(why, key=KEY) for why in (*wrong[:MOST_PROBLEMS], *more)]
            way_out = f"the model must be that of {self.source}, but for lengths, windows, rope and what has no weights"
            raise RecipeError([*problems, Problem(f"{self.file}: not the weights of this model: {way_out}", key=KEY)])

    def _modules_differ(self, expected: Mapping[str, Any]) -> bool:
        """Whether either the weights or the model have no modules of `multi_token`: new ones are drawn, old ones left.

        expected: of the model, by name.
        """
        has, wants = (any(name.startswith(MODULES) for name in names) for names in (self.shapes, expected))
        return has != wants

    def check_tokenizer(self, tokenizer: Tokenizer | None, say: Callable[[str], None]) -> None:
        """Raise RecipeError if the new run's tokenizer is another: its numbers would stand for other text.

        Where either has none, because rows are numbers, `say` gets a sentence.
        """
        if tokenizer is None or self.tokenizer is None:
            if tokenizer is not self.tokenizer:
                whose = "the data of this run have" if tokenizer is None else f"{self.source} has"
                say(f"init_from: {whose} no tokenizer, so whether tokens mean the same is not checked")
            return
        if other := _same_kind(_record(tokenizer)).other_than(_same_kind(self.tokenizer)):
            has_files = present(local_path(self.source) / "tokenizer.json")
            section = f"{{kind: huggingface, path: {self.source}}}" if has_files else f"{{kind: {self.tokenizer.kind}}}"
            raise RecipeError(
                [
                    Problem(
                        f"not the tokenizer of the weights that train.init_from names: other {', '.join(other)}; "
                        f"data.tokenizer: {section} is the one that {self.source} was trained with",
                        key="data.tokenizer",
                    )
                ]
            )

    def notes(self, model) -> Iterator[str]:
        """What differs from the model that the weights were trained as, although the tensors are the same."""
        before, now = (config.model_dump(mode="json", exclude={"init_std"}) for config in (self.model, model))
        for key, was, is_now in differences(before, now):
            if key == "multi_token" and None in (was, is_now):
                drawn = "has none: its modules are drawn anew" if was is None else "has modules, which are left out"
                yield f"init_from: model.multi_token: {self.source} {drawn}"
                continue
            was, is_now = in_words(was, is_now)
            yield f"init_from: model.{key} was {was} in {self.source}, and is {is_now} here"

    def load_into(self, decoder: Decoder) -> None:
        """Copy the weights into a decoder that `check_model` accepted.  Raises ZooError if the file changed since."""
        if sha256(self.file) != self.sha256:
            raise ZooError(f"{self.file}: changed since it was checked; give the command again")
        if self.checkpoint is None:
            from safetensors.torch import load_file

            state = load_file(self.file)
        else:
            state = weights_of(read_state(self.checkpoint))
        own = decoder.state_dict()
        if self._modules_differ(own):
            modules = {name: tensor for name, tensor in own.items() if name.startswith(MODULES)}
            state = _without_modules(state) | modules
        decoder.load_state_dict(state)


def _without_modules(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """All but those of the modules of `multi_token`."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(MODULES)}


def _other_tensors(expected: Mapping[str, torch.Tensor], found: Mapping[str, list[int]]) -> Iterator[str]:
    for name, tensor in expected.items():
        if name not in found:
            yield f"{name} is missing, the model has it with {list(tensor.shape)}"
        elif found[name] != list(tensor.shape):
            yield f"{name} is {found[name]}, the model has {list(tensor.shape)}"
    yield from (f"{name} is not part of the model" for name in found if name not in expected)


def _other_meanings(now, before) -> Iterator[str]:
    """Settings that give tensors of the same names and shapes another meaning, once for each block."""
    found: dict[str, None] = {}
    pairs = list(zip(now.expanded(), before.expanded(), strict=True))
    if now.multi_token and before.multi_token:
        pairs += zip(now.multi_token_layers(), before.multi_token_layers(), strict=True)
    for layer, source in pairs:
        if layer.ffn.kind != source.ffn.kind:
            found[f"model.ffn.kind is {layer.ffn.kind}; the weights are of {source.ffn.kind}"] = None
        one, other = layer.mixer.attention, source.mixer.attention
        if one is None or other is None:
            if layer.kind != source.kind:
                found[f"model.blocks.{layer.name}.kind is {layer.kind}; the weights are of {source.kind}"] = None
            else:
                mixers = (each.mixer.settings for each in (layer, source))
                found |= dict.fromkeys(_other_numbers(layer.name, STATE_MEANING, *mixers))
            continue
        found |= dict.fromkeys(_other_numbers(layer.name, MEANING, one.projection, other.projection))
        kinds = [[pattern.kind for pattern in point.patterns] for point in (one, other)]
        if kinds[0] != kinds[1] and one.n_kv_sets * len(kinds[0]) > 1:
            gates, others = (", ".join(each) for each in kinds)
            found[f"model.blocks.{layer.name}: gates are of {gates}; those of the weights of {others}"] = None
    yield from found


def _other_numbers(block: str, names: tuple[str, ...], now, before) -> Iterator[str]:
    for name in names:
        values = [getattr(each, name, None) for each in (now, before)]
        if values[0] != values[1]:
            is_now, was = in_words(*values)
            yield f"model.blocks.{block}: {name} is {is_now}; the weights are of {was}"


def _record(tokenizer: Tokenizer) -> TokenizerRecord:
    kind = "byte" if tokenizer.identity == "byte" else "huggingface"
    return tokenizer_record(kind, tokenizer)


def _same_kind(record: TokenizerRecord) -> TokenizerRecord:
    """One kind for all tokenizers of the `tokenizers` library: those learnt by a run, and those read from files."""
    return record.model_copy(update={"kind": "huggingface"}) if record.parts else record
