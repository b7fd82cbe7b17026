"""Real models: scores equal those of lm-evaluation-harness, of the export, and of training's own validation."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.zoo.evaluation.subjects import Guesser
from zoo.errors import ZooError
from zoo.evaluation.asking import answer
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.results import ResultFile
from zoo.evaluation.run import evaluate, model_facts
from zoo.evaluation.subject import ZooSubject, with_data
from zoo.evaluation.subjects import load_subject
from zoo.evaluation.task import Choice, Generated, Prompt
from zoo.evaluation.tasks.needles_config import NiahSingle1
from zoo.runs.weights import load

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
PAIRS = [
    ("The cat sat on the", " mat"),
    ("The cat sat on the", " mat and looked at the birds outside"),
    ("Question: why?\nAnswer:", " because it is"),
    ("ends in blanks  ", "continues"),
    ("", "nothing before it"),
    ("é ü 注意", " 意"),
    ("word " * 200, " the end is far away"),  # longer than the model's context: cut at the left
]
TEXT = "\n".join(f"Line {i}: the quick brown fox jumps over the lazy dog number {i * 7 % 13}." for i in range(400))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Llama of two layers with random weights and a byte-level BPE, as transformers saves them."""
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from zoo.data.config import BpeTokenizer
    from zoo.data.tokenizers import END_OF_DOCUMENT_TEXT, train_bpe

    folder = tmp_path_factory.mktemp("llama")
    bpe = train_bpe(BpeTokenizer(kind="bpe", vocab_size=320, min_frequency=1), [TEXT])
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(bpe._text), eos_token=END_OF_DOCUMENT_TEXT)
    made.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=320,
        max_position_embeddings=128,
        initializer_range=0.3,
        eos_token_id=made.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_log_likelihoods_equal_those_of_the_harness(llama):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from zoo.evaluation.harness import HarnessModel

    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(PAIRS)]
    theirs = HFLM(pretrained=str(llama), device="cpu", dtype="float32", batch_size=3).loglikelihood(requests, True)
    subject = load_subject(llama, device="cpu")
    ours = [(a.loglikelihood[0], a.greedy[0]) for a in answer(subject, [Choice((pair,), 0) for pair in PAIRS])]
    adapted = HarnessModel(subject).loglikelihood(requests, True)
    for mine, through, their in zip(ours, adapted, theirs, strict=True):
        assert mine[0] == pytest.approx(their[0], abs=1e-4)
        assert through[0] == pytest.approx(their[0], abs=1e-4)
        assert mine[1] == through[1] == their[1]


@pytest.mark.filterwarnings("ignore")
def test_texts_encoded_together_have_the_tokens_of_each_alone(llama):
    subject = load_subject(llama, device="cpu")
    texts = ["", *(text for pair in PAIRS for text in pair), "said </s> and <|end-of-document|>", "", " "]
    assert subject.encode_each(texts) == [subject.tokenizer.encode(text).tolist() for text in texts]
    for context, continuation in PAIRS:
        blanks = len(context) - len(context.rstrip())
        n = len(subject.encode(context.rstrip()))
        whole = subject.encode(context + continuation)
        wanted = (whole[:n], whole[n:]) if context else ([subject.start], whole)
        assert subject.encode_pairs([(context, continuation)]) == [wanted]
        assert subject.tokenizer.decode(wanted[1]) == context[len(context) - blanks :] + continuation
    assert subject.encode_pairs(PAIRS) == [found for pair in PAIRS for found in subject.encode_pairs([pair])]


@pytest.mark.filterwarnings("ignore")
def test_rolling_log_likelihoods_and_generation_equal_those_of_the_harness(llama):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from zoo.evaluation.harness import HarnessModel

    theirs = HFLM(pretrained=str(llama), device="cpu", dtype="float32", batch_size=2)
    ours = HarnessModel(load_subject(llama, device="cpu"))
    rolling = [Instance("loglikelihood_rolling", {}, (TEXT[:n],), n) for n in (40, 3000)]
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(theirs.loglikelihood_rolling(rolling, True), abs=1e-2)
    settings = {"until": ["\n", "dog"], "max_gen_toks": 12}
    asked = [Instance("generate_until", {}, ("The quick brown fox", settings), 0)]
    assert ours.generate_until(asked) == theirs.generate_until(asked, True)
    most = Instance("generate_until", {}, ("The quick brown fox", settings | {"max_gen_toks": ours.max_length}), 0)
    with pytest.raises(
        EvaluationError, match=r"the task generates \d+ tokens, and the model takes \d+ with the prompt"
    ):
        ours.generate_until([most])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_task_of_the_harness_runs_in_process(llama, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    from zoo.evaluation.harness import HarnessModel, as_result

    data = tmp_path / "rows.jsonl"
    rows = [{"q": f"{i} plus 1 is", "choices": [str(i + 1), str(i + 2)], "gold": 0} for i in range(8)]
    data.write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    model = HarnessModel(load_subject(llama, device="cpu"))
    found = lm_eval.simple_evaluate(model=model, tasks=[task], bootstrap_iters=0, log_samples=False)
    result = as_result(found, "sums", "lm-eval:sums", model, 1.0)
    asked = [Choice(tuple((row["q"], f" {choice}") for choice in row["choices"]), 0) for row in rows]
    right = [a.loglikelihood[0] > a.loglikelihood[1] for a in answer(model.subject, asked)]
    assert result.metrics["acc"]["value"] == pytest.approx(sum(right) / 8)
    assert result.rows == 8


def test_an_unknown_folder_is_one_line(tmp_path):
    with pytest.raises(EvaluationError, match="no such folder"):
        load_subject(tmp_path / "nowhere")
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    for function in (load_subject, load):
        with pytest.raises(ZooError, match=r"mine\.yaml: is a recipe, not a run folder; zoo train \S+mine\.yaml"):
            function(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").unlink()
    with pytest.raises(EvaluationError, match="neither a run of the zoo"):
        load_subject(tmp_path)
    with pytest.raises(EvaluationError, match="cannot be read: File name too long"):
        load_subject("x" * 5000)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ZooError, match=r"neither model.safetensors nor model.safetensors.index.json"):
        load_subject(tmp_path)


class NeedleReader(Guesser):
    """Finds the value of the key that lm-eval's needle tasks ask for, in every second row."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer.vocab_size, 1024, tokenizer)
        self.asked = []

    def greedy(self, prompts, max_tokens):
        text = self.tokenizer.decode(prompts[0])
        key = re.search(r"magic number for (\S+) mentioned in the provided text is$", text)[1]
        value = re.search(rf"magic numbers for {re.escape(key)} is: (\d+)", text)[1]
        self.asked.append((text, value))
        return [self.encode(f" {value}." if len(self.asked) % 2 else " 12.")]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_the_needles_of_the_harness_run_and_its_score_is_ours(llama, tmp_path):
    pytest.importorskip("lm_eval")
    pytest.importorskip("wonderwords")
    from zoo.evaluation.harness import run_harness

    reader = NeedleReader(load_subject(llama, device="cpu").tokenizer)
    kept = ResultFile(tmp_path / "eval.json")
    [found] = run_harness(reader, "niah_single_1", kept, rows=4, lengths=[1024])
    assert found.label == "lm-eval:niah_single_1(rows=4, lengths=[1024])"
    assert {name: metric["value"] for name, metric in found.metrics.items()} == {"1024": 0.5}
    task, rows = NiahSingle1(), []
    for n, (text, value) in enumerate(reader.asked):  # the same rows and texts, scored by our task
        facets = {"length": 1024, "depth": 0.0, "length_depth": ""}
        example = Prompt(tuple(reader.encode(text)), 16, (value,), ((1,), (2,)), facets=facets)
        given = Generated(" 12." if n % 2 else f" {value}.", (0.0, -1.0))
        rows.append(task.score(example, given).values["accuracy"])
    assert np.mean(rows) == found.metrics["1024"]["value"]
    assert 512 < max(len(reader.encode(text)) for text, _ in reader.asked) <= 1024
    with pytest.raises(EvaluationError, match="--seq-len: 2048 tokens, and the model takes 1024"):
        run_harness(reader, "niah_single_1", lengths=[2048])


def keys(**changed):
    """Other values in config.json."""

    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return change


def tensors(change):
    def do(folder):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return do


def fifo(name):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def dangling(name):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("nowhere")

    return change


def outside(folder):
    """The weights beside the folder, and an index that names them there."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "../other.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


HOSTILE = {
    "a tensor is missing": (tensors(lambda state: state.pop("model.norm.weight")), "they lack model.norm.weight"),
    "a tensor too many": (tensors(lambda state: state.update(x=torch.ones(2))), "they have, and the model does not, x"),
    "fewer layers": (keys(num_hidden_layers=1), "the model does not, model.layers.1"),
    "more layers": (keys(num_hidden_layers=3), "they lack model.layers.2"),
    "a million layers": (keys(num_hidden_layers=10**6), "config.json: num_hidden_layers: must be at most 4,096"),
    "a wider layer": (keys(intermediate_size=60), "cannot load what config.json describes: .* size mismatch for "),
    "a huge vocabulary": (keys(vocab_size=10**9), "config.json: describes a model of 64,000,0"),
    "a negative length": (keys(max_position_embeddings=-5), "max_position_embeddings: must be an integer of at least"),
    "a length that is text": (keys(max_position_embeddings="x"), "max_position_embeddings: must be .* found 'x'"),
    "a negative width": (keys(hidden_size=-4), "transformers cannot load what config.json describes: "),
    "code of its own": (
        keys(model_type="strange", auto_map={"AutoConfig": "a.B"}),
        "transformers cannot load what config.json describes: ",
    ),
    "NaN": (tensors(lambda state: state["model.norm.weight"].fill_(float("nan"))), "norm.weight holds NaN or infinity"),
    "weights elsewhere": (outside, r"model.safetensors.index.json: weight_map: must be a path inside .*'\.\.'"),
    "half of the weights": (
        lambda folder: os.truncate(folder / "model.safetensors", 3000),
        "model.safetensors: damaged",
    ),
    "a damaged tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        r"transformers cannot load its tokenizer \(tokenizer.json",
    ),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "has no tokenizer.json|tokenizer_config.json",
    ),
    **{
        f"{name} is {what}": (lambda folder, name=name, text=text: (folder / name).write_text(text), f"{name}: ")
        for name in ("tokenizer.json", "tokenizer_config.json")
        for what, text in {"a list": "[1]", "null": "null", "empty": "", "NaN": '{"a": NaN}'}.items()
    },
    **{f"{name} is a FIFO": (fifo(name), f"{name}: must be a file; found a FIFO") for name in FILES},
    **{f"{name} leads to nothing": (dangling(name), f"{name}: a symbolic link to nowhere") for name in FILES},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("change", "why"), HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_or_hostile_folder_of_transformers(llama, tmp_path, change, why):
    folder = tmp_path / "in" / "model"
    shutil.copytree(llama, folder)
    change(folder)
    with pytest.raises(ZooError, match=why) as caught:
        load_subject(folder, device="cpu")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore")
def test_results_of_another_config_or_tokenizer_are_not_taken(llama, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    before = model_facts(load_subject(folder, device="cpu"))
    assert model_facts(load_subject(folder, device="cpu")) == before
    keys(rms_norm_eps=1e-3)(folder)
    assert model_facts(load_subject(folder, device="cpu"))["digest"] != before["digest"]
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text + " ")
    assert model_facts(load_subject(folder, device="cpu"))["tokenizer"] != before["tokenizer"]


def test_a_run_whose_model_yaml_leads_to_nothing_is_no_other_model(llama, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    (folder / "model.yaml").symlink_to("nowhere")
    with pytest.raises(ZooError, match=r"model\.yaml: a symbolic link to nowhere"):
        load_subject(folder, device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 2 batches on text, with its validation in metrics.jsonl."""
    from zoo.recipe import load_recipe
    from zoo.training import train

    folder = tmp_path_factory.mktemp("run")
    (folder / "text").mkdir()
    for i in range(8):
        (folder / "text" / f"{i}.txt").write_text(TEXT[i * 100 : i * 100 + 3000])
    (folder / "r.yaml").write_text(
        f"""
name: r
model:
  d_model: 32
  vocab_size: 264
  max_seq_len: 128
  ffn: {{kind: swiglu, d_ff: 64}}
  blocks: {{ansa: {{kind: ansa, n_heads: 2, n_kv_heads: 1, rope_dim: 8, window: 16, n_selected: 4}}}}
  layers: ansa*2
data: {{source: {{kind: text, paths: [{folder}/text]}}, validation_fraction: 0.3, cache_dir: {folder}/cache}}
train: {{duration: 2ba, batch_size: 2, workers: 0, loggers: []}}
eval: {{batches: all}}
"""
    )
    train(load_recipe(folder / "r.yaml"), folder / "run")
    return folder / "run"


def test_perplexity_of_a_run_is_its_last_validation_loss(run):
    [result] = evaluate(run, ["perplexity"], device="cpu")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert result.metrics["nats"]["value"] == pytest.approx(last["validation_loss"], abs=1e-5)
    assert result.metrics["bits_per_byte"]["value"] == pytest.approx(last["validation_bits_per_byte"], abs=1e-5)
    total = sum(n["nats"]["value"] for n in result.by["position"].values()) / len(result.by["position"])
    assert total == pytest.approx(result.metrics["nats"]["value"], rel=0.02)


def test_loss_by_position_goes_past_the_training_length(run):
    [result] = evaluate(
        run, [{"task": "loss_by_position", "lengths": [64, 256], "bucket": 32, "rows": 3}], device="cpu"
    )
    assert list(result.by["length"]) == ["64", "256"]
    assert [key for key in result.by["position"] if key.startswith("64:")] == ["64: 1-32", "64: 33-64"]
    assert len(result.by["position"]) == 2 + 8
    # The first 64 tokens of a row of 256 are the row of 64: the same losses, by causality.
    for span in ("1-32", "33-64"):
        short, long = (result.by["position"][f"{length}: {span}"]["nats"]["value"] for length in (64, 256))
        assert short == pytest.approx(long, abs=1e-5)


def test_results_are_kept_and_found_again(run):
    first = evaluate(run, ["perplexity"])
    assert evaluate(run, ["perplexity"])[0] == first[0]
    again = evaluate(run, ["perplexity"], again=True)[0]
    assert again.metrics == first[0].metrics
    kept = json.loads((run / "eval.json").read_text())
    assert [each["label"] for each in kept["results"]].count("perplexity") == 1


def test_data_of_another_file_are_scored_with_the_runs_tokenizer(run, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("something else entirely. " * 200)
    (tmp_path / "other.yaml").write_text(
        f"data: {{source: {{kind: text, paths: [{other}]}}, validation_fraction: 0, cache_dir: {tmp_path}/c}}"
    )
    subject = load_subject(run, "cpu")
    with_data(subject, tmp_path / "other.yaml", run)
    [result] = evaluate(subject, ["perplexity"])
    assert result.model["held_out"].endswith("other.yaml")
    tokens = sum(int((e.labels != -100).sum()) for e in _examples(subject))
    assert tokens == len(other.read_bytes())  # every byte is a target but the first; so is the end of the document


def test_data_that_no_task_reads_are_refused(run, tmp_path):
    (tmp_path / "other.txt").write_text("something else entirely. " * 200)
    data = f"{{source: {{kind: text, paths: [{tmp_path}/other.txt]}}, cache_dir: {tmp_path}/c}}"
    (tmp_path / "other.yaml").write_text(f"data: {data}")
    settings = {"data": tmp_path / "other.yaml", "output": tmp_path / "eval.json", "device": "cpu"}
    with pytest.raises(
        EvaluationError, match=r"^--data \S+other.yaml: not read by copy, induction; leave it out, or add"
    ):
        evaluate(run, ["copy", "induction"], rows=2, lengths=[32], **settings)
    assert not (tmp_path / "eval.json").exists()
    assert len(evaluate(run, ["copy", "perplexity"], rows=2, **settings)) == 2, "one of them reads the text"


def _examples(subject):
    from zoo.evaluation.registry import make_tasks
    from zoo.evaluation.run import make_examples

    return make_examples(make_tasks(["perplexity"])[0], subject)


def test_a_run_and_its_export_give_the_same_log_likelihoods(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    from zoo.export.writing import export_command

    export_command(run, tmp_path / "exported", "hf", "fp32")
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported", trust_remote_code=True)
    subject = ZooSubject(run, "cpu")
    pairs = [pair for pair in PAIRS[:3] if pair[0]]
    for pair, found in zip(pairs, answer(subject, [Choice((pair,), 0) for pair in pairs]), strict=True):
        [(context, continuation)] = subject.encode_pairs([pair])
        tokens = torch.tensor([[*context, *continuation]])
        with torch.no_grad():
            logs = torch.log_softmax(exported(tokens[:, :-1]).logits[0].float(), -1)
        places = torch.arange(len(context) - 1, len(context) + len(continuation) - 1)
        total = logs[places, torch.tensor(continuation)].sum()
        assert found.loglikelihood[0] == pytest.approx(float(total), abs=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_tokenizer_without_the_characters_of_a_text_is_refused_in_one_line(llama, tmp_path):
    """A vocabulary of words without one for the unknown: the library raises a bare Exception."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = shutil.copytree(llama, tmp_path / "words")
    words = Tokenizer(models.WordLevel({"</s>": 0, "the": 1}, unk_token=None))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(folder)
    subject = load_subject(folder, device="cpu")
    assert subject.encode("the the") == [1, 1]
    for task in ("common_words", "niah_single_1"):
        with pytest.raises(ZooError, match=rf"^{task}: .*words: its tokenizer cannot encode a text of the task: "):
            evaluate(subject, [task], rows=1)
    with pytest.raises(ZooError, match="its tokenizer cannot encode"):
        subject.tokenizer.encode("a cat")
