"""A zoo model as transformers knows models: `AutoModelForCausalLM`, and `generate` with the zoo's cache.

Calls mean what they mean for transformers' Llama. What an attention-zoo model cannot do is refused by name; nothing is
ignored. Shape suffixes: B rows, T tokens (columns of a batch, padding included), V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import NoReturn

import torch
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from zoo.export.columns import Columns, Read, align
from zoo.model import Decoder
from zoo.model.cache import ModelCache
from zoo.recipe import ModelConfig

# What transformers calls the cache, as an argument and in an output: `cache` in later releases of 5.
CACHE = next(field.name for field in fields(CausalLMOutputWithPast) if field.name in ("cache", "past_key_values"))
# What other models take, and what to do here.
REFUSED = {
    "inputs_embeds": "give input_ids",
    "output_attentions": "the kernels form no attention weights; `zoo show --pattern` draws what a query sees",
    "cu_seq_lens_q": "give position_ids that restart from 0 at each document, without return_flash_attn_kwargs",
    "cache_implementation": "the model makes its own cache; model.new_cache(rows, max_len) makes one to give",
    "past_key_values": "must be of model.new_cache(rows, max_len), which generate makes itself",
}


def refuse(name: str) -> NoReturn:
    """Raise ValueError for an argument that the model does not take, with what to do."""
    raise ValueError(f"{name}: not supported by an attention-zoo model: {REFUSED.get(name, 'leave it out')}")


class ZooConfig(PretrainedConfig):
    """The `model` section of a recipe as `zoo_model`; the sizes that other tools ask for are read off it."""

    model_type = "attention_zoo"

    def __init__(self, zoo_model: dict | None = None, **settings):
        self.zoo_model = zoo_model
        if zoo_model is not None:
            settings |= self.read_off()
        settings.setdefault("tie_word_embeddings", False)
        super().__init__(**settings)

    def read_off(self) -> dict[str, int | float | bool]:
        """What `zoo_model` says, under transformers' names."""
        model = ModelConfig.model_validate(self.zoo_model)
        return {
            "vocab_size": model.vocab_size,
            "hidden_size": model.d_model,
            "num_hidden_layers": len(model.expanded()),
            "max_position_embeddings": model.max_seq_len,
            "initializer_range": model.init_std,
            "tie_word_embeddings": model.tie_embeddings,
        }


class ZooCache:
    """The zoo's cache behind the few methods of a cache that `generate` calls.

    Columns of a batch are counted with their padding, as transformers does; the cache itself holds tokens only.
    """

    is_compileable = False
    is_linear = (False,)  # so that transformers 5 goes by get_seq_length, which also counts with a recurrent state

    def __init__(self, model: ModelCache):
        self.model, self.read = model, Read(cached=True)

    @property
    def columns(self) -> int:
        return self.read.columns

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the batch that have been read."""
        return self.columns

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """Columns that there is room for."""
        return self.model.max_len

    def add(self, columns: Columns) -> None:
        """Count columns that the decoder has appended."""
        batch, n_new = columns.tokens_BT.shape
        read, real_BT = self.read, columns.real_BT
        if read.real_BC is not None or real_BT is not None:
            parts = [(read.real_BC, read.columns), (real_BT, n_new)]
            ones = columns.tokens_BT.new_ones
            real = [ones(batch, n, dtype=torch.bool) if part is None else part for part, n in parts]
            read = Read(read.columns, torch.cat(real, 1), self.model.length_B, cached=True)
        self.read = replace(read, columns=read.columns + n_new)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row b goes on where row beam_idx[b] is, as beam search wants it."""
        self.model.reorder(beam_idx)
        if self.read.real_BC is not None:
            self.read.real_BC = self.read.real_BC.index_select(0, beam_idx.to(self.read.real_BC.device))

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
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # num_items_in_batch, by which the Trainer averages over accumulated batches
    _no_split_modules = ["Layer"]

    def __init__(self, config: ZooConfig):
        super().__init__(config)
        for name, value in config.read_off().items():
            if getattr(config, name) != value:
                raise ValueError(
                    f"{name}: the model has {value}, and cannot be loaded with {getattr(config, name)}; "
                    "leave it out, or change the recipe and train"
                )
        self.decoder = Decoder(ModelConfig.model_validate(config.zoo_model))
        self.decoder.multi_token.requires_grad_(False)  # no part of the loss here, so it would get no gradient
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.decoder.embedding

    def set_input_embeddings(self, value: torch.nn.Embedding) -> None:
        self.decoder.embedding = value

    def get_output_embeddings(self) -> torch.nn.Module | None:
        """None where the embedding is the head as well."""
        return self.decoder.head

    def set_output_embeddings(self, new_embeddings: torch.nn.Linear | None) -> None:
        self.decoder.head = new_embeddings

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> torch.nn.Module:
        """As transformers' method; the recipe of the model, and the tokens that generate never draws, follow."""
        before = self.decoder.config.vocab_size
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        size = embeddings.weight.shape[0]
        self.decoder.config = self.decoder.config.model_copy(update={"vocab_size": size})
        self.config.zoo_model = {**self.config.zoo_model, "vocab_size": size}
        if new_num_tokens is not None and (settings := self.generation_config) is not None:
            # Tokens below the number that was asked for are the caller's; padding of the vocabulary stands for no text.
            unknown = [token for token in settings.suppress_tokens or () if new_num_tokens <= token < size]
            settings.suppress_tokens = sorted({*unknown, *range(max(before, new_num_tokens), size)}) or None
        return embeddings

    def _set_gradient_checkpointing(self, enable: bool = True, *settings, **more) -> None:
        """Compute each layer again in the backward pass; the gradients are the same however that is set up."""
        if more.get("every_n_layers", 1) != 1:
            refuse("every_n_layers")
        self.gradient_checkpointing = self.decoder.activation_checkpointing = enable

    def new_cache(self, batch: int, max_len: int) -> ZooCache:
        """An empty cache for rows of up to max_len tokens, to give to `forward` or `generate`."""
        return ZooCache(self.decoder.new_cache(batch, max_len))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: ZooCache | None = None,
        inputs_embeds: None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        cache: ZooCache | None = None,
        **others,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits [B, T, V] of the next token; those of padding mean nothing.

        attention_mask: 1 for tokens, 0 for padding, over the columns read before and these.  position_ids: counts of
        the tokens, or restarting from 0 at each document of a packed row.  labels: as input_ids, -100 where there is no
        target; shifted here.  num_items_in_batch: targets that the loss is divided by, those of the labels if None.
        past_key_values, cache: the same under its earlier and its later name, made by `new_cache`; without it, and with
        use_cache, one of max_seq_len is made. No gradient goes through a cache.  use_cache: None is the config's
        use_cache, False where that says nothing or gradients are computed.
        output_hidden_states: embeddings and the output of each layer, the last one after the norm, [B, T, C] each.
        Raises ValueError, naming it, for any other argument, and for a value that the model cannot honour.
        """
        self._refuse_others(others | {"inputs_embeds": inputs_embeds}, input_ids)
        assert input_ids is not None, "refused above"
        cache = _ours(past_key_values, cache)
        if use_cache is None:
            use_cache = getattr(self.config, "use_cache", False) and not torch.is_grad_enabled()
        if cache is None and use_cache:
            cache = self.new_cache(len(input_ids), max(self.decoder.config.max_seq_len, input_ids.shape[1]))
        if cache is not None and labels is not None and torch.is_grad_enabled():
            raise ValueError("labels: a loss through a cache has no gradient; leave out use_cache, or use no_grad")
        read = Read() if cache is None else cache.read
        _check_cache_position(cache_position, input_ids, read)
        columns = align(input_ids, attention_mask, position_ids, read)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        with self._recorded(wanted) as states:
            hidden_BTC = self._hidden(columns, cache)
        if cache is not None:
            cache.add(columns)
        hidden_BTC = columns.in_order(hidden_BTC)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        loss = None
        if labels is None:
            logits_BTV = self.decoder.logits(hidden_BTC[:, kept])
        else:
            logits_BTV = self.decoder.logits(hidden_BTC)
            loss = self.loss_function(
                logits=logits_BTV,
                labels=labels,
                vocab_size=logits_BTV.shape[-1],
                num_items_in_batch=num_items_in_batch,
            )
            logits_BTV = logits_BTV[:, kept]
        recorded = (*map(columns.in_order, states[:-1]), hidden_BTC) if wanted else None
        output = CausalLMOutputWithPast(loss=loss, logits=logits_BTV, hidden_states=recorded, **{CACHE: cache})
        as_dict = getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def _refuse_others(self, others: dict, input_ids: torch.Tensor | None) -> None:
        for name, value in others.items():
            if value is not None and value is not False:
                refuse(name)
        if getattr(self.config, "output_attentions", False):
            refuse("output_attentions")
        if input_ids is None:
            raise ValueError("input_ids: must be token numbers [rows, columns]; found None")

    def _hidden(self, columns: Columns, cache: ZooCache | None) -> torch.Tensor:
        """Final hidden states of tokens, in the order of the decoder."""
        if columns.tokens_BT.shape[1] == 0:
            return self.decoder.embed(columns.tokens_BT)
        if cache is not None:
            return self.decoder.append(columns.tokens_BT, cache.model, columns.n_new_B)
        isolated = columns.starts_BT is not None
        return self.decoder.hidden(columns.tokens_BT, columns.starts_BT, isolated=isolated)

    @contextmanager
    def _recorded(self, wanted: bool) -> Iterator[list[torch.Tensor]]:
        """The outputs of the embedding and of each layer, as they are computed; nothing if not wanted."""
        states: list[torch.Tensor] = []
        modules = [self.decoder.embedding, *self.decoder.layers] if wanted else []

        def record(module: torch.nn.Module, arguments: tuple, output: torch.Tensor | tuple) -> None:
            """A layer returns the residual stream and what is to be added to it; the embedding is not scaled yet."""
            scaled = self.decoder.config.embedding_scale
            states.append(output[0] + output[1] if isinstance(output, tuple) else output * scaled)

        hooks = [module.register_forward_hook(record) for module in modules]
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> dict:
        """The columns that the cache has not read; all of them without one.

        input_ids may be all columns or, as attention_mask then tells, those after the ones that an earlier call read.
        Raises ValueError if the cache has read all.
        """
        cache = _ours(kwargs.get("past_key_values"), kwargs.get("cache"))
        n_read = 0 if cache is None else cache.columns
        n_columns = (input_ids if attention_mask is None else attention_mask).shape[1]
        n_new = n_columns - n_read
        if "next_sequence_length" in kwargs or (attention_mask is None and "is_first_iteration" in kwargs):
            asked = kwargs.get("next_sequence_length")  # of transformers 5, which leaves out a mask without padding
            n_new = input_ids.shape[1] if asked is None else asked
        if not min(1, input_ids.shape[1]) <= n_new <= input_ids.shape[1]:  # none: a prompt's only chunk but the last
            raise ValueError(f"the cache has read {n_read} columns, the input has {n_columns}; one must be new")
        position_ids = kwargs.get("position_ids")
        # After the first step transformers 5 has appended to them, and counts on from padding on the right.
        is_given = position_ids is not None and "next_sequence_length" not in kwargs
        if attention_mask is not None and not kwargs.get("is_first_iteration", is_given):
            position_ids = attention_mask.long().cumsum(-1) - 1
        passed_on = ("use_cache", "output_hidden_states", "output_attentions")
        return {
            "input_ids": input_ids[:, input_ids.shape[1] - n_new :],
            "attention_mask": attention_mask,
            "position_ids": None if position_ids is None else position_ids[:, position_ids.shape[1] - n_new :],
            CACHE: cache,
            "logits_to_keep": kwargs.get("logits_to_keep") or 0,
            **{name: kwargs[name] for name in passed_on if name in kwargs},
        }

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict, *sizes) -> None:
        """Make the cache that `generate` uses, of the length it will need; called with (mode, batch, max length)."""
        if generation_config.cache_implementation is not None:
            refuse("cache_implementation")
        if _ours(model_kwargs.get(CACHE)) is not None or generation_config.use_cache is False:
            return
        *_, batch, max_len = sizes
        copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        model_kwargs[CACHE] = self.new_cache(batch * copies, max(max_len, 1))


def _ours(*caches) -> ZooCache | None:
    """The cache that was given; ValueError if it is one of transformers' own, which the decoder cannot fill."""
    for cache in caches:
        if cache is not None and not isinstance(cache, ZooCache):
            refuse("past_key_values")
    return next((cache for cache in caches if cache is not None), None)


def _check_cache_position(cache_position: torch.Tensor | None, input_ids: torch.Tensor, read: Read) -> None:
    """Its only possible value is that of the columns that come next."""
    if cache_position is None:
        return
    expected = torch.arange(read.columns, read.columns + input_ids.shape[1], device=cache_position.device)
    if not torch.equal(cache_position.flatten().to(expected.dtype), expected):
        found = cache_position.flatten().tolist()
        raise ValueError(
            f"cache_position: must be {int(expected[0])} to {int(expected[-1])}, the columns after those that the "
            f"cache has read; found {found[:8]}{' ...' if len(found) > 8 else ''}"
        )
