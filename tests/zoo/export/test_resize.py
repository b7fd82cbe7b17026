"""Another vocabulary, dtype or configuration for an exported model, and saving it."""

import pytest
import torch
from transformers import GenerationConfig

from zoo.export.transformers_model import ZooConfig, ZooForCausalLM


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level("ERROR")


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("asked", "multiple", "size"), [(50, None, 50), (30, None, 30), (40, None, 40), (43, 16, 48), (None, 32, 64)]
)
def test_the_vocabulary_is_resized_as_llamas(zoo_model, llama_of, tokens, tmp_path, tied, asked, multiple, size):
    model = zoo_model(tied=tied)
    llama = llama_of(model)
    with torch.no_grad():
        before = model(tokens(1, 6) % 30).logits[..., :30]
    for each in (model, llama):
        each.resize_token_embeddings(asked, pad_to_multiple_of=multiple, mean_resizing=False)
        assert each.get_input_embeddings().weight.shape[0] == each.config.vocab_size == each.vocab_size == size
    assert model.decoder.config.vocab_size == model.config.zoo_model["vocab_size"] == size
    assert model.decoder.head_weight.shape[0] == size
    assert (model.decoder.head is None) == tied
    after = model(tokens(1, 6) % 30, labels=tokens(1, 6) % 30)
    assert after.logits.shape[-1] == size
    torch.testing.assert_close(after.logits[..., :30], before)
    after.loss.backward()
    model.save_pretrained(tmp_path)
    again = ZooForCausalLM.from_pretrained(tmp_path).double()
    assert again.config.vocab_size == again.decoder.config.vocab_size == size
    torch.testing.assert_close(again(tokens(1, 6) % 30).logits, model(tokens(1, 6) % 30).logits, rtol=1e-5, atol=1e-5)
    written = model.generate(tokens(1, 6) % 30, max_new_tokens=5, do_sample=False)
    assert again.generate(tokens(1, 6) % 30, max_new_tokens=5, do_sample=False).tolist() == written.tolist()


def test_tokens_that_were_added_can_be_drawn(zoo_model, tokens):
    """An export never draws the numbers up to a rounded vocabulary; those that the caller asks for stand for tokens."""
    model = zoo_model()
    model.generation_config = GenerationConfig(suppress_tokens=[37, 38, 39], eos_token_id=36, pad_token_id=36)
    model.resize_token_embeddings(38, pad_to_multiple_of=8, mean_resizing=False)
    assert model.generation_config.suppress_tokens == [38, 39]
    with torch.no_grad():
        model.get_output_embeddings().weight[37] = 0
        for parameter in (model.get_output_embeddings().weight,):
            parameter[38:] = 100 * parameter[:2]
    assert model.generate(tokens(1, 6) % 30, max_new_tokens=6, do_sample=False).max() < 38
    model.resize_token_embeddings(41, pad_to_multiple_of=8, mean_resizing=False)
    assert model.generation_config.suppress_tokens == [*range(41, 48)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("blocks", ["full", "ansa"])
def test_another_dtype(zoo_model, tokens, tmp_path, dtype, blocks):
    model = zoo_model(blocks=blocks).float()
    model.save_pretrained(tmp_path)
    loaded = ZooForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    moved = model.to(dtype)
    assert loaded.dtype == moved.dtype == dtype
    with torch.no_grad():
        assert torch.equal(loaded(tokens(2, 7)).logits, moved(tokens(2, 7)).logits)
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(loaded.generate(tokens(2, 7), **options), moved.generate(tokens(2, 7), **options))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_configuration_says_what_the_recipe_says(zoo_model, tied):
    config = zoo_model(tied=tied).config
    assert config.tie_word_embeddings is tied
    earlier = ZooConfig(config.zoo_model, tie_word_embeddings=False)  # as exports of earlier versions have it
    assert earlier.tie_word_embeddings is tied


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_hidden_layers", 1), ("vocab_size", 50), ("max_position_embeddings", 999), ("tie_word_embeddings", True)],
)
def test_loading_as_another_model_is_refused(zoo_model, tmp_path, name, value):
    zoo_model().float().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{name}: the model has .*, and cannot be loaded with {value}"):
        ZooForCausalLM.from_pretrained(tmp_path, **{name: value})


def test_the_trainer_averages_over_accumulated_batches(zoo_model, tokens, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    def train(rows: int, steps: int) -> tuple[float, float]:
        data = [{"input_ids": row, "labels": row.masked_fill(row < n, -100)} for n, row in enumerate(tokens(8, 10))]
        settings = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps, "max_steps": 1}
        settings |= {"logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True, "max_grad_norm": 1e9}
        arguments = TrainingArguments(output_dir=str(tmp_path), disable_tqdm=True, **settings)
        trainer = Trainer(model=zoo_model().float(), args=arguments, train_dataset=data)
        trainer.train()
        log = next(line for line in trainer.state.log_history if "grad_norm" in line)
        return log["loss"], log["grad_norm"]

    assert train(2, 4) == pytest.approx(train(8, 1), rel=1e-3)
