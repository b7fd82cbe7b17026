"""`zoo.generate`: the tokens of the training forward, rows that do not disturb each other, reasons to end, refusals."""

from itertools import islice

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from zoo.errors import ZooError
from zoo.inference.decoding import micro_batches
from zoo.inference.errors import GenerationError
from zoo.recipe.seal import sealed
from zoo.runs.weights import LoadError

PROMPTS = ["def attend(query):", "import", "x = 'naïve 注意'\n" * 4]


def greedy_by_training(model, prompt: str, n: int) -> list[int]:
    tokens = list(prompt.encode())
    with torch.no_grad():
        for _ in range(n):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1, :257].argmax()))
    return tokens[-n:]


def test_greedy_tokens_are_those_of_the_training_forward(model):
    alone = [zoo.generate(model, prompt, max_tokens=24, temperature=0).results[0].tokens for prompt in PROMPTS]
    together = [result.tokens for result in zoo.generate(model, PROMPTS, max_tokens=24, temperature=0).results]
    assert alone == together == [greedy_by_training(model, prompt, 24) for prompt in PROMPTS]


def test_pieces_are_the_results_and_can_be_left_and_taken_up(model):
    settings = {"max_tokens": 12, "seed": 5, "temperature": 1.0}
    whole = zoo.generate(model, PROMPTS, **settings)
    generation = zoo.generate(model, PROMPTS, **settings)
    pieces = list(islice(generation, 10))
    rest = list(generation)
    assert [r.tokens for r in generation.results] == [r.tokens for r in whole.results]
    for index, result in enumerate(generation.results):
        own = [piece for piece in (*pieces, *rest) if piece.index == index]
        assert [piece.token for piece in own] == result.tokens
        assert "".join(piece.text for piece in own) == result.text
        assert [piece.finish for piece in own] == [None] * (len(own) - 1) + [result.finish]
        assert result.prompt == PROMPTS[index]
    assert generation.texts == whole.texts


def test_another_seed_is_another_text(model):
    first, again, other = (zoo.generate(model, "a", max_tokens=20, seed=seed).texts for seed in (1, 1, 2))
    assert first == again != other


@pytest.fixture
def scripted(model, monkeypatch):
    """`scripted(b"...", b"...")`: the model that "draws" these bytes, a row each; 256 stands for what comes after."""

    def script(*rows: bytes):
        from zoo.inference.sampling import Sampler

        columns = iter(range(1000))

        def draw(self, logits_BV):
            column = next(columns)
            return torch.tensor([row[column] if column < len(row) else 256 for row in rows])

        monkeypatch.setattr(Sampler, "__call__", draw)
        return model

    return script


def test_rows_end_by_themselves(scripted):
    drawn = [b"one\n\nmore", "ein 注".encode(), b"for ever and ever"]
    generation = zoo.generate(scripted(*drawn), ["a", "b", "c"], max_tokens=12, stop="\n\n")
    assert [(r.text, r.finish) for r in generation.results] == [
        ("one", "stop"),
        ("ein 注", "end"),
        ("for ever and", "max_tokens"),
    ]
    assert generation.stats.new_tokens == 5 + 8 + 12, "with the line breaks of the stop string and the end"


def test_nothing_is_computed_after_the_last_row_has_ended(scripted):
    generation = zoo.generate(scripted(b"ab", b"a"), ["a", "b"], max_tokens=100)
    assert len(list(generation)) == 3 + 2


def test_generation_ends_with_the_context(model):
    assert model.config.max_seq_len == 256
    generation = zoo.generate(model, ["x" * 256, "x" * 250, "x"], max_tokens=10, temperature=0)
    ends = [(len(result.tokens), result.finish) for result in generation.results]
    assert ends == [(1, "context"), (7, "context"), (10, "max_tokens")]
    with pytest.raises(GenerationError, match=r"prompt 2 of 2: must have at most 256 tokens.*; found 257"):
        zoo.generate(model, ["x", "x" * 257])


def test_an_empty_prompt_begins_a_document(model):
    empty, end = (zoo.generate(model, [prompt], max_tokens=9, temperature=0).texts for prompt in ("", [256]))
    assert empty == end


def test_token_numbers_need_no_tokenizer(run):
    model = zoo.load(run("data.source={kind: synthetic, task: copy, vocab_size: 264}", "data.tokenizer=null"))
    generation = zoo.generate(model, [[1, 2, 3], torch.tensor([4])], max_tokens=5, temperature=0)
    for result in generation.results:
        assert (result.text, len(result.tokens), result.finish) == (None, 5, "max_tokens")
    with pytest.raises(GenerationError, match=r"prompt 1 of 1: is text, and the model has no tokenizer; give token"):
        zoo.generate(model, "text")
    with pytest.raises(GenerationError, match="stop: the model has no tokenizer"):
        zoo.generate(model, [[1]], stop="a")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompts"),
        (["a", [1, 264]], r"prompt 2 of 2: unknown token 264; the model's are 0\.\.263"),
        ([[-1], "a"], r"prompt 1 of 2: unknown token -1"),
        ([[]], "prompt 1 of 1: has no tokens"),
        ([7], "prompt 1 of 1: must be text or token numbers; found 7"),
        ([[1.5]], "prompt 1 of 1: must be text or token numbers; found a list"),
        (["ab\udcff"], "prompt 1 of 1: not UTF-8: found the byte 0xff as character 2"),
        (["\ud800"], r"not UTF-8: found the surrogate U\+D800"),
    ],
)
def test_prompts_that_cannot_be_continued(model, prompts, message):
    with pytest.raises(GenerationError, match=message):
        zoo.generate(model, prompts)


def test_settings_that_cannot_be(model):
    with pytest.raises(GenerationError, match="max_tokens: must be at least 1; found 0"):
        zoo.generate(model, "a", max_tokens=0)
    with pytest.raises(GenerationError, match="stop: must be strings that are not empty"):
        zoo.generate(model, "a", stop=["x", ""])
    with pytest.raises(GenerationError, match="top_k: must be at least 1"):
        zoo.generate(model, "a", top_k=0)


def test_device_and_dtype_of_a_run(run):
    with pytest.raises(GenerationError, match="device: cannot use 'nowhere'"):
        zoo.generate(run(), "a", device="nowhere")
    with pytest.raises(GenerationError, match=r"unknown dtype 'bf17'; known: auto, bf16, .* Did you mean 'bf16'\?"):
        zoo.generate(run(), "a", dtype="bf17")
    generation = zoo.generate(run(), "a", device="cpu", dtype="bf16", max_tokens=3)
    assert generation.texts
    half, whole = generation.stats, zoo.generate(run(), "a", device="cpu", max_tokens=3)
    assert whole.texts
    assert whole.stats.nominal_bytes == 2 * half.nominal_bytes


def test_stats(model):
    generation = zoo.generate(model, PROMPTS, max_tokens=6, temperature=0)
    generation.texts  # noqa: B018 - runs it
    stats = generation.stats
    assert stats.prompt_tokens == sum(len(prompt.encode()) for prompt in PROMPTS)
    assert (stats.rows, stats.new_tokens, stats.cuda_graph) == (3, 18, False)
    assert stats.room == max(len(prompt.encode()) for prompt in PROMPTS) + 6
    assert min(stats.first_token_s, stats.decode_s, stats.prefill_tokens_per_s, stats.decode_tokens_per_s) > 0
    cache = model.new_cache(3, stats.room)
    assert stats.held_bytes == cache.nbytes
    assert list(stats.cache) == ["ansa.local", "ansa.global"]
    assert [kind.held for kind in stats.cache.values()] == cache.layer_nbytes
    point = model.layers[0].attention.config.projection
    assert stats.nominal_bytes == 3 * stats.room * 2 * 4 * (point.kv_rank + point.rope_dim)
    for text in ("prefill:", "decode:", "first token after", "ansa.local", "nominal", "allocated"):
        assert text in stats.text()
    assert stats.as_dict()["held_bytes"] == cache.nbytes


def test_the_tokenizer_is_in_the_run_folder(run, bpe, tmp_path):
    folder = run("data.tokenizer={kind: bpe, vocab_size: 264}")
    assert zoo.load_tokenizer(folder).identity == bpe.identity
    generation = zoo.generate(folder, "def attend(", max_tokens=5, temperature=0)
    tokens = generation.results[0].tokens
    assert generation.texts == [bpe.decode(tokens)]
    for name in ("model.yaml", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(LoadError, match=r"tokenizer\.json: no such file; runs of earlier versions lack it: copy"):
        zoo.generate(tmp_path, "a")
    text = (tmp_path / "model.yaml").read_text()
    unsealed = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("# checksum"))
    (tmp_path / "model.yaml").write_text(sealed(unsealed.replace("kind: bpe", "kind: morse")))
    with pytest.raises(LoadError, match=r"tokenizer\.kind must be byte, bpe or huggingface; found 'morse'"):
        zoo.load_tokenizer(tmp_path)


def test_weights_of_other_maps_are_one_line(run, tmp_path):
    folder = run()
    weights = load_file(folder / "model.safetensors")
    weights["layers.0.attention.projection.query.weight"] = weights.pop("layers.0.attention.projection.input.weight")
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "model.yaml").write_bytes((folder / "model.yaml").read_bytes())
    message = (
        r"model\.safetensors: weights of another recipe, or of another version of the zoo: layers\.0\S+input\.weight "
        r"is missing; layers\.0\S+query\.weight is not part of the model$"
    )
    with pytest.raises(LoadError, match=message):
        zoo.generate(tmp_path, "a")


def test_a_default_tokenizer_is_written_down(run):
    assert zoo.load_tokenizer(run("data.tokenizer=null")).identity == "byte"


def test_micro_batches_hold_a_bounded_number_of_tokens():
    assert list(micro_batches([10])) == [(0, 1)]
    assert list(micro_batches([10, 20, 5, 5], most=40)) == [(0, 2), (2, 4)]
    assert list(micro_batches([100, 1, 1], most=40)) == [(0, 1), (1, 3)]
    assert list(micro_batches([1] * 7, most=3)) == [(0, 3), (3, 6), (6, 7)]


def test_prompts_that_do_not_fit_in_memory_are_one_sentence(model, monkeypatch):
    def fails(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(type(model), "next_logits", fails)
    with pytest.raises(ZooError, match="out of memory: reading 2 prompts of up to 5 tokens; give fewer at once"):
        list(zoo.generate(model, ["a", "abcde"]))


@pytest.mark.gpu
def test_on_a_gpu_steps_are_a_cuda_graph_that_draws_the_same_tokens(run):
    """Greedy with a repetition penalty, whose state is written in the graph; and sampled, whose random numbers are."""
    from zoo.inference.decoding import Decoding

    def tokens(**settings):
        generation = zoo.generate(run(), PROMPTS, device="cuda", dtype="fp32", max_tokens=40, **settings)
        return [result.tokens for result in generation.results], generation.stats.cuda_graph

    settings = {"temperature": 0, "repetition_penalty": 1.3}
    with_graph, recorded = tokens(**settings)
    sampled, _ = tokens(seed=3)
    again, _ = tokens(seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoding, "step", Decoding._step)
        without, not_recorded = tokens(**settings)
        plain, _ = tokens(seed=3)
    assert (recorded, not_recorded) == (True, False)
    assert with_graph == without
    assert sampled == again == plain


@pytest.mark.gpu
def test_where_a_step_cannot_be_a_graph_a_note_says_so_and_the_tokens_are_the_same(run):
    from zoo.inference.sampling import Sampler

    def tokens(said, **settings):
        generation = zoo.generate(run(), PROMPTS, device="cuda", max_tokens=12, say=said.append, **settings)
        return [result.tokens for result in generation.results]

    original, said = Sampler.__call__, []
    expected = tokens([], seed=1)

    def waits_for_the_device(self, logits_BV):
        logits_BV.sum().item()
        return original(self, logits_BV)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "__call__", waits_for_the_device)
        assert tokens(said, seed=1) == expected
    assert len(said) == 1
    assert said[0].startswith("decoding without a CUDA graph, which is slower: ")
