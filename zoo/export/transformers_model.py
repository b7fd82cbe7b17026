"""A zoo model as transformers knows models: `AutoModelForCausalLM`, and `generate` with the zoo's cache.

Shape suffixes: B rows, T tokens (columns of a batch, padding included), V vocabulary.
"""

from dataclasses import fields

import torch
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from zoo.inference.cache import ModelCache
from zoo.model import Decoder
from zoo.recipe import ModelConfig

# What transformers calls the cache, as an argument and in an output: `cache` in later releases of 5.
CACHE = next(field.name for field in fields(CausalLMOutputWithPast) if field.name in ("cache", "past_key_values"))


class ZooConfig(PretrainedConfig):
    """The `model` section of a recipe as `zoo_model`; the sizes that other tools ask for are read off it."""

    model_type = "attention_zoo"

    def __init__(self, zoo_model: dict | None = None, **settings):
        self.zoo_model = zoo_model
        if zoo_model is not None:
            model = ModelConfig.model_validate(zoo_model)
            self.vocab_size, self.hidden_size = model.vocab_size, model.d_model
            self.num_hidden_layers, self.max_position_embeddings = len(model.expanded()), model.max_seq_len
            self.initializer_range = model.init_std
        settings.setdefault("tie_word_embeddings", False)  # the decoder ties its own
        super().__init__(**settings)


class ZooCache:
    """The zoo's cache behind the few methods of a cache that `generate` calls.

    Columns of a batch are counted with their padding, as transformers does; the cache itself holds tokens only.
    """

    is_compileable = False
    is_linear = (False,)  # transformers 5 asks layer by layer: none is a recurrent state

    def __init__(self, model: ModelCache):
        self.model, self.columns = model, 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the batch that have been read."""
        return self.columns

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """Columns that there is room for."""
        return self.model.max_len

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row b goes on where row beam_idx[b] is, as beam search wants it."""
        self.model.reorder(beam_idx)

    def crop(self, max_length: int) -> None:
        raise ValueError("the cache of an attention-zoo model cannot forget tokens, as assisted generation needs it to")

    def activate_past_recording(self) -> None:
        self.crop(0)


class ZooForCausalLM(PreTrainedModel, GenerationMixin):
    """The decoder of a recipe.

    Rows may be padded on either side, with attention_mask 0. Padding is moved behind the tokens before the decoder
    reads them, so that positions count from each row's first token, as in training.
    """

    config_class = ZooConfig
    base_model_prefix = "decoder"
    main_input_name = "input_ids"
    _no_split_modules = ["Layer"]

    def __init__(self, config: ZooConfig):
        super().__init__(config)
        self.decoder = Decoder(ModelConfig.model_validate(config.zoo_model))
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.decoder.embedding

    def get_output_embeddings(self) -> torch.nn.Module | None:
        return self.decoder.head

    def new_cache(self, batch: int, max_len: int) -> ZooCache:
        """An empty cache for rows of up to max_len tokens, to give to `forward` or `generate`."""
        return ZooCache(self.decoder.new_cache(batch, max_len))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: ZooCache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: ZooCache | None = None,
        **unused,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] of the next token; those of padding mean nothing.

        attention_mask: 1 for tokens, 0 for padding, over the columns read before and these.  labels: as input_ids,
        -100 where there is no target; shifted here.  past_key_values, cache: the same under its earlier and its later
        name; without it, and with use_cache, one of max_seq_len is made.
        """
        cache = _ours(past_key_values, cache)
        if cache is None and use_cache:
            cache = self.new_cache(len(input_ids), max(self.decoder.config.max_seq_len, input_ids.shape[1]))
        tokens_BT, places_BT, n_new_B = _aligned(input_ids, attention_mask, going_on=bool(cache and cache.columns))
        if cache is None:
            logits_BTV = self.decoder(tokens_BT)
        elif isinstance(logits_to_keep, int) and logits_to_keep == 1 and labels is None:
            logits_BTV, places_BT = self.decoder.next_logits(tokens_BT, cache.model, n_new_B)[:, None], None
        else:
            logits_BTV = self.decoder(tokens_BT, cache=cache.model, n_new_B=n_new_B)
        if cache is not None:
            cache.columns += input_ids.shape[1]
        if places_BT is not None:
            logits_BTV = logits_BTV.gather(1, places_BT[..., None].expand(-1, -1, logits_BTV.shape[-1]))
        loss = None if labels is None else _loss(logits_BTV, labels)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(loss=loss, logits=logits_BTV[:, kept], **{CACHE: cache})

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> dict:
        """The columns that the cache has not read; all of them without one.

        input_ids may be all columns or, as attention_mask then tells, those after the ones that an earlier call read.
        Raises ValueError if the cache has read all.
        """
        cache = _ours(kwargs.get("past_key_values"), kwargs.get("cache"))
        n_columns = (input_ids if attention_mask is None else attention_mask).shape[1]
        n_new = n_columns - (0 if cache is None else cache.columns)
        if n_new < 1:
            raise ValueError(f"the cache has read {cache.columns} columns, the input has {n_columns}; one must be new")
        return {
            "input_ids": input_ids[:, -n_new:],
            "attention_mask": attention_mask,
            CACHE: cache,
            "use_cache": kwargs.get("use_cache"),
            "logits_to_keep": kwargs.get("logits_to_keep") or 0,
        }

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict, *sizes) -> None:
        """Make the cache that `generate` uses, of the length it will need; called with (mode, batch, max length)."""
        if model_kwargs.get(CACHE) is not None or generation_config.use_cache is False:
            return
        *_, batch, max_len = sizes
        copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        model_kwargs[CACHE] = self.new_cache(batch * copies, max(max_len, 1))


def _ours(*caches) -> ZooCache | None:
    """The one that is a cache of the zoo: transformers may make an empty one of its own."""
    return next((cache for cache in caches if isinstance(cache, ZooCache)), None)


def _aligned(
    input_ids: torch.Tensor, mask_BT: torch.Tensor | None, going_on: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(tokens_BT with padding last, the place of each column in them, tokens of each row); None if nothing is padded.

    going_on: whether columns were read before; a single column after them is always tokens.
    """
    n_columns = input_ids.shape[1]
    if mask_BT is None or (going_on and n_columns == 1):
        return input_ids, None, None
    real_BT = mask_BT[:, -n_columns:].bool()
    if bool(real_BT.all()):
        return input_ids, None, None
    column_T = torch.arange(n_columns, device=input_ids.device)
    n_new_B, first_B = real_BT.sum(1), real_BT.int().argmax(1)
    place_BT = column_T - first_B[:, None]
    if not torch.equal(real_BT, (place_BT >= 0) & (place_BT < n_new_B[:, None])):
        raise ValueError("attention_mask: padding must be at the beginning or the end of a row, not within it")
    tokens_BT = input_ids.gather(1, (column_T + first_B[:, None]).clamp(max=n_columns - 1))
    return tokens_BT, place_BT.clamp(min=0), n_new_B


def _loss(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of each column's label under the logits of the column before."""
    return torch.nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten())
