"""The calls that transformers' Llama takes, with the same weights: the same results, or a refusal by name."""

import pytest
import torch
from transformers import DynamicCache

from zoo.export.transformers_model import CACHE

BATCH, LENGTH, END, VOCABULARY = 3, 12, 39, 40


def mask(*lengths: int, side: str, width: int = LENGTH) -> torch.Tensor:
    column_T = torch.arange(width)
    length_B1 = torch.tensor(lengths)[:, None]
    return (column_T < length_B1).long() if side == "right" else (column_T >= width - length_B1).long()


LEFT, RIGHT = (mask(12, 7, 1, side=side) for side in ("left", "right"))
CALLS = {
    "plain": {},
    "left padding": {"attention_mask": LEFT},
    "right padding": {"attention_mask": RIGHT},
    "a boolean mask": {"attention_mask": LEFT.bool()},
    "a mask of floats": {"attention_mask": RIGHT.float()},
    "positions": {"position_ids": torch.arange(LENGTH)[None]},
    "positions of all rows": {"position_ids": torch.arange(LENGTH).expand(BATCH, -1)},
    "counted positions": {"attention_mask": LEFT, "position_ids": (LEFT.cumsum(1) - 1).clamp(min=0)},
    "positions of columns": {"attention_mask": LEFT, "position_ids": torch.arange(LENGTH)[None]},
    "cache position": {"cache_position": torch.arange(LENGTH)},
    "the last logits": {"logits_to_keep": 2},
    "some logits": {"logits_to_keep": torch.tensor([0, 5])},
    "labels": {"labels": True},
    "labels of packed batches": {"labels": True, "num_items_in_batch": 50},
    "labels, a tensor of items": {"labels": True, "num_items_in_batch": torch.tensor(7), "attention_mask": RIGHT},
    "hidden states": {"output_hidden_states": True},
    "hidden states of a padded batch": {"output_hidden_states": True, "attention_mask": LEFT},
    "a cache": {"use_cache": True},
    "a cache and padding": {"use_cache": True, "attention_mask": LEFT, "output_hidden_states": True},
}


def call(model, tokens_BT, settings: dict):
    """(loss, logits, hidden states) at the columns that are tokens."""
    settings = dict(settings)
    if settings.get("labels") is True:
        settings["labels"] = tokens_BT.masked_fill(settings.get("attention_mask", LEFT * 0 + 1) == 0, -100)
        settings["labels"][0, :4] = -100
    with torch.no_grad():
        output = model(tokens_BT, **settings)
    real_BT = settings.get("attention_mask", torch.ones_like(tokens_BT)).bool()
    if "logits_to_keep" not in settings:
        output.logits = output.logits[real_BT]
    states = [state[real_BT] for state in output.hidden_states or ()]
    return [*([] if output.loss is None else [output.loss]), output.logits, *states]


@pytest.mark.parametrize("settings", CALLS.values(), ids=CALLS)
def test_same_results(pair, tokens, settings):
    ours, theirs = (call(model, tokens(BATCH, LENGTH), settings) for model in pair)
    assert len(ours) == len(theirs)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5, check_dtype=False)


def test_a_tuple(pair, tokens):
    ours, theirs = (
        model(tokens(2, 5), labels=tokens(2, 5), output_hidden_states=True, use_cache=False, return_dict=False)
        for model in pair
    )
    assert [type(x) for x in ours] == [type(x) for x in theirs]
    torch.testing.assert_close(ours[:2], theirs[:2], rtol=1e-5, atol=1e-5, check_dtype=False)


def test_arguments_by_their_place(pair, tokens):
    tokens_BT = tokens(2, 5)
    ours, theirs = (model(tokens_BT, torch.ones_like(tokens_BT), None, None, None, tokens_BT) for model in pair)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=1e-5, check_dtype=False)


def test_a_cache_that_the_config_asks_for(zoo_model, tokens):
    model, tokens_BT = zoo_model(), tokens(2, 6)
    model.config.use_cache = True
    with torch.no_grad():
        cache = model(tokens_BT[:, :5])[CACHE]
        last = model(tokens_BT[:, 5:], **{CACHE: cache}).logits[:, -1]
        torch.testing.assert_close(last, model(tokens_BT, use_cache=False).logits[:, -1])
    assert CACHE not in model(tokens_BT, labels=tokens_BT)  # no gradient goes through one


@pytest.mark.parametrize("items", [None, 30], ids=["one batch", "accumulated batches"])
def test_gradients(zoo_model, llama_of, tokens, items):
    model = zoo_model()
    llama = llama_of(model)
    tokens_BT, real_BT = tokens(2, 9), mask(9, 4, side="right", width=9)
    settings = {"labels": tokens_BT.masked_fill(real_BT == 0, -100), "num_items_in_batch": items}
    for each in (model, llama):
        each.train()
        each(tokens_BT, attention_mask=real_BT, **settings).loss.backward()
    plain, theirs = model.decoder.embedding.weight.grad, llama.model.embed_tokens.weight.grad
    torch.testing.assert_close(plain, theirs, rtol=1e-4, atol=1e-5)
    model.zero_grad()
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # in later releases of 5
    getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    assert model.decoder.activation_checkpointing
    model(tokens_BT, attention_mask=real_BT, **settings).loss.backward()
    torch.testing.assert_close(model.decoder.embedding.weight.grad, plain)
    getattr(model, f"{kind}_checkpointing_disable")()
    assert not model.decoder.activation_checkpointing


def test_packed_rows_are_read_as_documents(pair, zoo_model, tokens):
    """position_ids that restart, in a model that was trained with document_mask or without, of blocks of any kind."""
    rows, lengths = tokens(2, 12), ((5, 7), (1, 11))
    positions = torch.cat([torch.cat([torch.arange(n) for n in row])[None] for row in lengths])
    for model in (pair[0], zoo_model(document_mask=True), zoo_model(blocks="ansa")):
        with torch.no_grad():
            found = model(rows, position_ids=positions, labels=rows)
            for b, (first, _) in enumerate(lengths):
                for lo, hi in ((0, first), (first, 12)):
                    alone = model(rows[b : b + 1, lo:hi]).logits[0]
                    torch.testing.assert_close(found.logits[b, lo:hi], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blocks", ["full", "ansa"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1, 2, 5, 11])
def test_columns_that_are_read_in_chunks(zoo_model, tokens, blocks, side, size):
    """A padded batch, also column by column, has the logits of each row alone; a row may be padding for a while."""
    model = zoo_model(blocks=blocks)
    tokens_BT, real_BT = tokens(BATCH, LENGTH), mask(12, 7, 1, side=side)
    cache, found = model.new_cache(BATCH, LENGTH), []
    with torch.no_grad():
        for lo in range(0, LENGTH, size):
            hi = min(lo + size, LENGTH)
            output = model(tokens_BT[:, lo:hi], attention_mask=real_BT[:, :hi], **{CACHE: cache})
            found.append(output.logits)
        found = torch.cat(found, 1)
        for b, row in enumerate(tokens_BT):
            alone = model(row[real_BT[b].bool()][None]).logits[0]
            torch.testing.assert_close(found[b][real_BT[b].bool()], alone, rtol=1e-5, atol=1e-5)


def test_a_row_of_padding_only(pair, tokens):
    ours, _ = pair
    real_BT = torch.stack([torch.zeros(5), torch.ones(5)]).long()
    with torch.no_grad():
        for settings in ({}, {"use_cache": True}):
            found = ours(tokens(2, 5), attention_mask=real_BT, **settings).logits
            torch.testing.assert_close(found[1], ours(tokens(2, 5)[1:]).logits[0])
            assert found.isfinite().all()


def test_padding_within_a_row_where_positions_count_tokens(pair, tokens):
    real_BT = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 0, 1, 1]])
    settings = {"attention_mask": real_BT, "position_ids": (real_BT.cumsum(1) - 1).clamp(min=0)}
    ours, theirs = (call(model, tokens(2, 5), settings) for model in pair)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)


WRONG = {
    "a mask of four axes": ({"attention_mask": torch.ones(2, 1, 6, 6)}, "attention_mask: must be .* found 4 axes"),
    "a short mask": ({"attention_mask": torch.ones(2, 5)}, r"attention_mask: must be \[2, 6\]; found \[2, 5\]"),
    "masks by layer": ({"attention_mask": {}}, "attention_mask: must be .* found dict"),
    "an additive mask": ({"attention_mask": torch.full((2, 6), -1e9)}, "must be 1 for tokens and 0 for padding"),
    "a hole": (
        {"attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1]] * 2)},
        "padding must be at the beginning or the end",
    ),
    "positions from 3": (
        {"position_ids": torch.arange(3, 9)[None]},
        "position_ids: must count the tokens of each row from 0",
    ),
    "positions that skip": (
        {"position_ids": torch.tensor([[0, 1, 2, 4, 5, 6]])},
        "position_ids: must count the tokens",
    ),
    "packed and padded": (
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]), "attention_mask": torch.tensor([[1] * 5 + [0]] * 2)},
        "position_ids: must count .* without padding and cache",
    ),
    "packed and cached": (
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]), "use_cache": True},
        "without padding and cache",
    ),
    "three axes of positions": ({"position_ids": torch.zeros(3, 2, 6)}, "position_ids: must be"),
    "another cache position": ({"cache_position": torch.arange(1, 7)}, "cache_position: must be 0 to 5"),
    "embeddings": ({"inputs_embeds": torch.zeros(2, 6, 32)}, "inputs_embeds: not supported .* give input_ids"),
    "attentions": ({"output_attentions": True}, "output_attentions: not supported"),
    "token types": ({"token_type_ids": torch.zeros(2, 6)}, "token_type_ids: not supported .* leave it out"),
    "flash attention's lengths": ({"cu_seq_lens_q": torch.tensor([0, 3, 6])}, "cu_seq_lens_q: .* position_ids"),
    "a misspelling": ({"atention_mask": torch.ones(2, 6)}, "atention_mask: not supported"),
    "transformers' cache": ({CACHE: DynamicCache()}, r"past_key_values: .* must be of model.new_cache"),
    "a loss through a cache": ({"labels": torch.zeros(2, 6).long(), "use_cache": True}, "labels: .* has no gradient"),
}


@pytest.mark.parametrize(("settings", "message"), WRONG.values(), ids=WRONG)
def test_what_is_refused(pair, tokens, settings, message):
    ours, _ = pair
    with pytest.raises(ValueError, match=message):
        ours(tokens(2, 6), **settings)


def test_no_tokens_are_refused(pair):
    with pytest.raises(ValueError, match="input_ids: must be token numbers"):
        pair[0](attention_mask=torch.ones(1, 2))


@torch.no_grad()
def test_what_a_cache_with_padding_refuses(pair, tokens):
    ours, _ = pair
    tokens_BT, real_BT = tokens(2, 6), mask(6, 4, side="left", width=6)
    cache = ours.new_cache(2, 9)
    ours(tokens_BT[:, :5], attention_mask=real_BT[:, :5], **{CACHE: cache})
    with pytest.raises(ValueError, match="the cache has read padding, so give the mask of all columns"):
        ours(tokens_BT[:, 5:], **{CACHE: cache})
    with pytest.raises(ValueError, match=r"must be \[2, 6\] \(5 columns in the cache and 1 new\); found \[2, 1\]"):
        ours(tokens_BT[:, 5:], attention_mask=real_BT[:, 5:], **{CACHE: cache})
    with pytest.raises(ValueError, match="its first columns must be as they were when the cache read them"):
        ours(tokens_BT[:, 5:], attention_mask=torch.ones(2, 6), **{CACHE: cache})
    found = ours(tokens_BT[:, 5:], attention_mask=real_BT, **{CACHE: cache}).logits[:, 0]
    torch.testing.assert_close(found, ours(tokens_BT, attention_mask=real_BT).logits[:, -1])
    hidden = ours.new_cache(2, 9)
    ours(tokens_BT[:, :5], **{CACHE: hidden})
    with pytest.raises(ValueError, match="its first columns must be as they were"):
        ours(tokens_BT[:, 5:], attention_mask=real_BT, **{CACHE: hidden})
