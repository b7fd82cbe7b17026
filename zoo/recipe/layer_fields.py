"""What a recipe says about a layer apart from its two parts: norms, residual stream, embedding and logits. No torch.

The fields belong to the `model` section; zoo/model/ computes what they say.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from zoo.blocks.checked import FieldProblem, Flag
from zoo.blocks.cost import BF16, FLOAT

if TYPE_CHECKING:
    from zoo.recipe.config import ModelConfig

MOST_SCALE = 1e6  # beyond any use, and far below where float32 overflows
Scale = Annotated[float, Field(gt=0, le=MOST_SCALE, allow_inf_nan=False)]

Norm = Annotated[
    Literal["rms", "layer"], Field(description="The layers' norms and the last one: RMSNorm, or LayerNorm (Cohere).")
]
NormBias = Annotated[Flag, Field(description="Biases of the norms, with `norm: layer`.")]
NormPlace = Annotated[
    Literal["before", "after", "both", "stream"],
    Field(
        description="Norms of each layer: before attention and feed-forward, after both (OLMo 2), or both (Gemma 2); "
        "or of the residual stream itself before each part (post-norm: MiniMax-01)."
    ),
]
Parallel = Annotated[
    Flag, Field(description="Attention and feed-forward read the same input and are added together (Cohere, GPT-J).")
]
ResidualScale = Annotated[
    Scale, Field(description="What attention and feed-forward add to the stream is multiplied by this (Granite).")
]
StreamScale = Annotated[
    Scale,
    Field(
        description="The stream is multiplied by this before attention or feed-forward is added (MiniMax-01, DeepNorm)."
    ),
]
EmbeddingScale = Annotated[Scale, Field(description="Embeddings are multiplied by this; Gemma: the root of d_model.")]
LogitScale = Annotated[Scale, Field(description="Logits are multiplied by this (Cohere).")]
LogitSoftcap = Annotated[
    Scale | None, Field(description="Logits z become c tanh(z / c), after logit_scale (Gemma 2: 30). Default: none.")
]


def around_problems(norm: str, norm_bias: bool) -> Iterator[FieldProblem]:
    """What does not fit together."""
    if norm_bias and norm != "layer":
        yield ("norm_bias",), f"needs norm: layer; found true with norm: {norm}"


def norms_per_layer(model: "ModelConfig") -> int:
    """Norms of the residual stream in one layer; parallel parts share the one before them."""
    before = 0 if model.norm_place == "after" else 1 if model.parallel else 2
    return before + (0 if model.norm_place in ("before", "stream") else 2)


def norm_parameters(model: "ModelConfig", n_layers: int) -> int:
    """Parameters of the norms of all layers and of the last norm."""
    width = model.d_model * (2 if model.norm_bias else 1)
    return (n_layers * norms_per_layer(model) + 1) * width


def norm_bytes(model: "ModelConfig") -> int:
    """Bytes that autograd keeps of one token in the norms of one layer."""
    return norms_per_layer(model) * norm_bytes_of_one(model)


def norm_bytes_of_one(model: "ModelConfig") -> int:
    """Bytes that autograd keeps of one token in one norm.

    RMSNorm keeps its input, rounded, and the root mean square; LayerNorm its input in float32, mean and deviation.
    """
    return BF16 * model.d_model + FLOAT if model.norm == "rms" else FLOAT * model.d_model + 2 * FLOAT


def describe(model: "ModelConfig") -> list[str]:
    """What differs from pre-norm layers with RMSNorm and plain logits, a few words each."""
    places = {
        "after": "norms after each part",
        "both": "norms before and after each part",
        "stream": "the stream itself is normed before each part",
    }
    said = {
        "LayerNorm" + (" with biases" if model.norm_bias else ""): model.norm == "layer",
        places.get(model.norm_place, ""): model.norm_place != "before",
        "attention and feed-forward in parallel": model.parallel,
        f"embeddings x {model.embedding_scale:g}": model.embedding_scale != 1,
        f"the stream x {model.stream_scale:g} before each addition": model.stream_scale != 1,
        f"additions to the stream x {model.residual_scale:g}": model.residual_scale != 1,
        f"logits x {model.logit_scale:g}": model.logit_scale != 1,
        f"logits capped at {model.logit_softcap or 0:g}": model.logit_softcap is not None,
        _further(model): model.multi_token is not None,
    }
    return [words for words, differs in said.items() if differs]


def _further(model: "ModelConfig") -> str:
    """What the modules of `multi_token` add to training."""
    found = model.multi_token
    if found is None:
        return ""
    what = "the token after the next" if found.depth == 1 else f"the {found.depth} tokens after the next"
    return f"training also predicts {what}, weight {found.weight:g}"
