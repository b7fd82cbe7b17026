"""Run folders of untrained tiny models, and a tokenizer of words with pieces of characters."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zoo.data.config import BpeTokenizer
from zoo.data.tokenizers import Bytes, Subwords, train_bpe
from zoo.model import build_model
from zoo.recipe import load_recipe
from zoo.runs.folder import RunFolder
from zoo.training.final_weights import export

TINY = Path(__file__).parents[3] / "recipes" / "tiny"
TEXTS = [f"def attend(query_{i}, key, value): return 'naïve 注意 {i}'\n" * 5 for i in range(50)]
SMALL = ("model.d_model=64", "model.ffn.d_ff=96", "model.layers=ansa*2")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bpe() -> Subwords:
    return train_bpe(BpeTokenizer(kind="bpe", vocab_size=264, min_frequency=1), TEXTS)


@pytest.fixture(scope="session")
def run(tmp_path_factory, bpe) -> Callable[..., Path]:
    """`run("data.tokenizer.kind=bpe")`: a run folder as training leaves it, of small untrained weights."""
    made: dict[tuple, Path] = {}

    def make(*overrides: str) -> Path:
        if overrides not in made:
            recipe = load_recipe(TINY / "ansa.yaml", [*SMALL, *overrides])
            tokenizer = recipe.data.resolved_tokenizer()
            known = {"byte": Bytes(), "bpe": bpe}
            folder = RunFolder(tmp_path_factory.mktemp("run"))
            folder.recipe.write_text(recipe.dump())
            export(folder, recipe, build_model(recipe).state_dict(), tokenizer and known[tokenizer.kind])
            made[overrides] = folder.path
        return made[overrides]

    return make


@pytest.fixture(scope="session")
def model(run):
    """The small model with the byte tokenizer."""
    import zoo

    return zoo.load(run())


def _llama() -> str:
    """As Llama 2's: a word's first piece holds its space, bytes stand for other characters, decode strips one space."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    vocab = {"<unk>": 0, "</s>": 1, **{f"<0x{byte:02X}>": 2 + byte for byte in range(256)}}
    for letter in "▁abcdefghijklmnopqrstuvwxyz":
        vocab[letter] = len(vocab)
    merges = [("▁", "m"), ("▁m", "u"), ("▁", "e"), ("▁e", "t"), ("▁et", "a")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1)]
    made.decoder = decoders.Sequence(strip)
    made.add_special_tokens([AddedToken("</s>", special=True)])
    return made.to_str()


def _metaspace(scheme: str) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pieces = ["▁", "▁mu", "▁eta", *"abcdefghijklmnopqrstuvwxyz", "mu", "é", "注", "<unk>"]
    made = Tokenizer(models.Unigram([(piece, -float(len(pieces) - i)) for i, piece in enumerate(pieces)], 32, False))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    made.add_special_tokens([AddedToken("</s>", special=True)])
    return made.to_str()


def _byte_level(add_prefix_space: bool) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("</s>", special=True)])
    return made.to_str()


def _word_piece() -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {"[UNK]": 0, "mu": 1, "eta": 2, "##x": 3, ".": 4}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    made.add_special_tokens([AddedToken("</s>", special=True)])
    return made.to_str()


SPACED = {  # tokenizers that treat the space before a word in ways of their own
    "llama": _llama,
    "metaspace": lambda: _metaspace("always"),
    "metaspace, first": lambda: _metaspace("first"),
    "metaspace, never": lambda: _metaspace("never"),
    "byte level": lambda: _byte_level(False),
    "byte level, prefix space": lambda: _byte_level(True),
    "word pieces": _word_piece,
}


@pytest.fixture(scope="session", params=SPACED.values(), ids=SPACED.keys())
def spaced(request) -> Subwords:
    return Subwords(request.param(), "</s>")


@pytest.fixture(scope="session")
def llama() -> Subwords:
    return Subwords(_llama(), "</s>")
