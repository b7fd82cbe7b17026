"""transformers' generate on an exported model: what Llama writes with the same weights, or a refusal by name."""

import pytest
import torch
from transformers import DynamicCache, set_seed

from zoo.export.transformers_model import CACHE

END, LENGTH = 39, 9
LEFT = torch.tensor([[1] * 9, [0] * 4 + [1] * 5, [0] * 8 + [1]])

SETTINGS = {
    "greedy": {},
    "without a cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "several of the beams": {"num_beams": 3, "num_return_sequences": 2},
    "beams without a cache": {"num_beams": 2, "use_cache": False},
    "several samples": {"do_sample": True, "num_return_sequences": 2},
    "penalised": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "prompts in chunks of one": {"prefill_chunk_size": 1},
    "prompts in chunks": {"prefill_chunk_size": 4},
}


def write(model, tokens_BT, settings: dict, **more) -> list[list[int]]:
    set_seed(3)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": END, **settings}
    more.setdefault("attention_mask", torch.ones_like(tokens_BT))
    return model.generate(tokens_BT, **options, **more).tolist()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_same_tokens(pair, tokens, settings):
    ours, theirs = (write(model, tokens(3, LENGTH), settings) for model in pair)
    assert ours == theirs


# Not in chunks: transformers 4 counts the columns of a padded prompt that it reads in chunks, and then its tokens.
@pytest.mark.parametrize("settings", list(SETTINGS.values())[:-2], ids=list(SETTINGS)[:-2])
def test_the_same_tokens_after_padded_prompts(pair, tokens, settings):
    ours, theirs = (write(model, tokens(3, LENGTH), settings, attention_mask=LEFT) for model in pair)
    assert ours == theirs


@pytest.mark.filterwarnings("ignore:.*right-padding was detected")
@pytest.mark.parametrize("blocks", ["full", "ansa", "state"])
@pytest.mark.parametrize("settings", [{}, {"use_cache": False}, {"prefill_chunk_size": 2}], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_prompt_goes_on_as_alone(zoo_model, tokens, blocks, settings, side):
    """Also on the right, where Llama would go on from padding."""
    if side == "right" and "prefill_chunk_size" in settings:
        pytest.skip("generate reads the last column apart from the chunks, and takes its logits")
    model, tokens_BT = zoo_model(blocks=blocks), tokens(3, LENGTH)
    mask = LEFT if side == "left" else LEFT.flip(1)
    found = write(model, tokens_BT, settings, attention_mask=mask)
    for row, real, text in zip(tokens_BT, mask.bool(), found, strict=True):
        alone = write(model, row[real][None], settings)[0][int(real.sum()) :]
        assert text[LENGTH : LENGTH + len(alone)] == alone


@pytest.mark.parametrize("blocks", ["ansa", "state"])
def test_beams_take_their_caches_along(zoo_model, tokens, blocks):
    model, tokens_BT = zoo_model(blocks=blocks), tokens(2, LENGTH)
    beams = [write(model, tokens_BT, {"num_beams": 3, "use_cache": cached}) for cached in (True, False)]
    assert beams[0] == beams[1]


def test_hidden_states_and_a_cache_come_back(pair, tokens):
    ours, theirs = (
        model.generate(
            tokens(2, 5), max_new_tokens=3, do_sample=False, output_hidden_states=True, return_dict_in_generate=True
        )
        for model in pair
    )
    assert [len(step) for step in ours.hidden_states] == [len(step) for step in theirs.hidden_states]
    for step, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        for x, y in zip(step, other, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4, check_dtype=False)
    assert ours[CACHE].get_seq_length() == 7


def test_a_padded_cache_goes_on(pair, tokens):
    """The second call has all columns and their mask; the first columns are not read again."""
    ours, _ = pair
    more = torch.cat([tokens(3, LENGTH), tokens(3, 4, seed=5)], 1)
    mask = torch.cat([LEFT, torch.ones(3, 4).long()], 1)
    cache = ours.new_cache(3, 32)
    with torch.no_grad():
        ours(more[:, :LENGTH], attention_mask=LEFT, **{CACHE: cache})
    found = write(ours, more, {}, attention_mask=mask, **{CACHE: cache})
    assert found == write(ours, more, {}, attention_mask=mask)


def test_an_empty_prompt_begins_after_the_end_of_a_document(pair):
    ours, _ = pair
    assert ours.generate(max_new_tokens=4, do_sample=False).tolist() == write(
        ours, torch.tensor([[END]]), {"max_new_tokens": 4}
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions: not supported"),
        ({"cache_implementation": "static"}, "cache_implementation: not supported"),
        ({CACHE: DynamicCache()}, "past_key_values: not supported"),
        ({"prompt_lookup_num_tokens": 2}, "cannot forget tokens|assisted"),
        ({"position_ids": torch.arange(2, 11)[None]}, "position_ids: must count the tokens"),
        ({"token_types": torch.zeros(1, 9)}, "token_types"),
        ({"inputs_embeds": torch.zeros(1, 9, 32)}, "inputs_embeds"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_refused(pair, tokens, settings, message):
    ours, _ = pair
    with pytest.raises((ValueError, TypeError), match=message):
        write(ours, tokens(1, LENGTH), settings)


def test_positions_are_counted_after_the_first_step(pair, tokens):
    """transformers 5 counts on from padding on the right; the positions of later steps are the model's own."""
    ours, _ = pair
    mask = torch.tensor([[1, 1, 0, 0, 1], [1, 1, 1, 1, 1]])
    stale = {"attention_mask": mask, "position_ids": torch.tensor([[0, 1, 0, 0, 1], [0, 1, 2, 3, 4]])}
    step = ours.prepare_inputs_for_generation(tokens(2, 5), next_sequence_length=1, **stale)
    assert (step["input_ids"].shape, step["position_ids"].tolist()) == ((2, 1), [[2], [4]])
    first = ours.prepare_inputs_for_generation(tokens(2, 5), is_first_iteration=True, **stale)
    assert first["position_ids"].tolist() == stale["position_ids"].tolist()
