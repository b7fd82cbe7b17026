"""Exported folders, read by the installed transformers: the same logits and tokens, with and without the cache."""

import json
import os
import stat

import pytest
import torch

import zoo
from zoo.export.tokenizer_files import bytes_as_subwords, save_tokenizer
from zoo.export.writing import ExportError, export
from zoo.model import build_model
from zoo.recipe import load_recipe
from zoo.runs.folder import RunFolder
from zoo.runs.weights import LoadError
from zoo.training.final_weights import export as finish_run

PROMPTS = ["def main(", "import os\nimport", "naïve 注意"]
SMALL = ("model.d_model=64", "model.ffn.d_ff=96", "model.n_layers=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of a small untrained model of two kinds of layer, as training leaves it."""
    from zoo.data.tokenizers import Bytes

    recipe = load_recipe("recipes/tiny/ansa.yaml", [*SMALL, "model.layers=ansa*2"])
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    folder.recipe.write_text(recipe.dump())
    finish_run(folder, recipe, build_model(recipe).state_dict(), Bytes())
    return folder.path


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """(folder, model, tokenizer) as transformers loads them."""
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("exported")
    export(run, folder)
    with pytest.MonkeyPatch.context() as patch:
        modules = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
        patch.syspath_prepend(modules)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    return folder, model.eval(), tokenizer


def test_logits_are_the_same_in_a_padded_batch(run, exported):
    _, theirs, tokenizer = exported
    ours = zoo.load(run)
    for side in ("left", "right"):
        batch = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side=side)
        with torch.no_grad():
            logits_BTV = theirs(**batch).logits
            for row, prompt in enumerate(PROMPTS):
                found = logits_BTV[row][batch.attention_mask[row].bool()]
                torch.testing.assert_close(found, ours(torch.tensor([list(prompt.encode())]))[0])


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"repetition_penalty": 1.5}], ids=str)
def test_generate_gives_the_same_tokens_with_and_without_the_cache(exported, settings):
    from zoo.export.transformers_model import CACHE, ZooCache

    _, theirs, tokenizer = exported
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    options = {"max_new_tokens": 20, "do_sample": False, **settings}
    cached = theirs.generate(**batch, **options, return_dict_in_generate=True)
    plain = theirs.generate(**batch, **options, use_cache=False)
    assert cached.sequences.tolist() == plain.tolist()
    assert isinstance(cached[CACHE], ZooCache)
    # The last token is not read, and what is held is no longer than what was asked for.
    assert cached[CACHE].model.max_len == batch.input_ids.shape[1] + 19


def test_generate_writes_what_the_zoo_writes(run, exported):
    _, theirs, tokenizer = exported
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    found = theirs.generate(**batch, max_new_tokens=20, do_sample=False)[:, batch.input_ids.shape[1] :]
    ours = zoo.generate(run, PROMPTS, max_tokens=20, temperature=0, device="cpu").results
    assert [row[: len(result.tokens)].tolist() for row, result in zip(found, ours, strict=True)] == [
        result.tokens for result in ours
    ]


def test_a_cache_is_taken_up_by_a_later_call(exported):
    """As in a conversation: what was read is not read again."""
    from zoo.export.transformers_model import CACHE

    _, theirs, tokenizer = exported
    first = tokenizer(["def main("], return_tensors="pt").input_ids
    more = torch.cat([first, tokenizer(["a, b):\n    return"], return_tensors="pt").input_ids], 1)
    cache = theirs.new_cache(1, 64)
    with torch.no_grad():
        theirs(first, **{CACHE: cache})
        found = theirs.generate(more, **{CACHE: cache}, max_new_tokens=8, do_sample=False)
    assert found.tolist() == theirs.generate(more, max_new_tokens=8, do_sample=False).tolist()
    with pytest.raises(ValueError, match=r"the cache has read \d+ columns, the input has 9; one must be new"):
        theirs.generate(first, **{CACHE: cache}, max_new_tokens=8)


def test_loss_is_that_of_the_zoo(run, exported):
    _, theirs, tokenizer = exported
    tokens_BT = tokenizer(["def main(argument):"], return_tensors="pt").input_ids
    labels_BT = tokens_BT.clone()
    labels_BT[:, :5] = -100
    ours = zoo.load(run).loss(tokens_BT[:, :-1], labels_BT[:, 1:])
    torch.testing.assert_close(theirs(tokens_BT, labels=labels_BT).loss, ours)


def test_padding_within_a_row_and_forgetting_are_refused(exported):
    _, theirs, tokenizer = exported
    tokens_BT = tokenizer(["abcd"], return_tensors="pt").input_ids
    with pytest.raises(ValueError, match="padding must be at the beginning or the end of a row"):
        theirs(tokens_BT, attention_mask=torch.tensor([[1, 0, 1, 1]]))
    with pytest.raises(ValueError, match="cannot forget tokens"):
        theirs.new_cache(1, 4).crop(1)


def test_what_transformers_saves_again_loads_again(exported, tmp_path, monkeypatch):
    import transformers

    _, theirs, tokenizer = exported
    theirs.save_pretrained(tmp_path / "again")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    tokens_BT = tokenizer(["abcd"], return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(again(tokens_BT).logits, theirs(tokens_BT).logits)


def test_the_byte_tokenizer_is_the_same_in_transformers(exported):
    _, _, tokenizer = exported
    text = "".join(map(chr, range(0x300))) + "注意 \U0001f600 <|end-of-document|>"
    assert tokenizer.encode(text) == list(text.encode()) == bytes_as_subwords().encode(text).tolist()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 256)


def test_a_trained_tokenizer_is_the_same_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    from zoo.data.config import BpeTokenizer
    from zoo.data.tokenizers import train_bpe

    texts = [f"def attend(query_{i}, key, value): return 'naïve 注意 {i}'\n" * 5 for i in range(50)]
    trained = train_bpe(BpeTokenizer(kind="bpe", vocab_size=300, min_frequency=1), texts)
    save_tokenizer(trained, tmp_path, 256)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("def attend(query_3): naïve 注意\n\n", "  a \t", "", "<|end-of-document|>😀"):
        assert theirs.encode(text) == trained.encode(text).tolist()
        assert theirs.decode(theirs.encode(text)) == text
    assert theirs.eos_token_id == theirs.pad_token_id == trained.end_of_document
    assert (theirs.padding_side, theirs.model_max_length) == ("left", 256)


def test_what_is_in_the_folder(run, exported):
    folder, _, _ = exported
    names = ["config.json", "generation_config.json", "model.safetensors", "modeling_zoo.py"]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "tokenizer.json", "tokenizer_config.json"]
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["vocab_size"], config["num_hidden_layers"]) == ("attention_zoo", 264, 2)
    assert json.loads((folder / "generation_config.json").read_text())["suppress_tokens"] == list(range(257, 264))


def test_an_export_after_a_load_in_the_same_process_is_the_same(run, exported, tmp_path):
    again = export(run, tmp_path / "again")
    assert [path.name for path in again] == sorted(path.name for path in exported[0].iterdir())
    assert (tmp_path / "again" / "config.json").read_text() == (exported[0] / "config.json").read_text()


def test_the_weights_alone(run, tmp_path):
    from safetensors.torch import load_file

    files = export(run, tmp_path / "weights", "safetensors", "bf16")
    assert [path.name for path in files] == ["model.safetensors"]
    expected = zoo.load(run).state_dict()
    found = load_file(files[0])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor.bfloat16()) for name, tensor in expected.items())


def test_what_cannot_be_exported(run, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ExportError, match="not empty; name a new folder"):
        export(run, tmp_path)
    with pytest.raises(ExportError, match="unknown format 'onnx'; known: hf, safetensors"):
        export(run, tmp_path / "new", "onnx")
    with pytest.raises(ExportError, match="unknown dtype 'fp8'"):
        export(run, tmp_path / "new", dtype="fp8")
    with pytest.raises(LoadError, match="no such folder"):
        export(tmp_path / "nothing", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def unsealed(run) -> str:
    """model.yaml without its last line, a checksum: what may be edited, and what earlier versions wrote."""
    text = (run / "model.yaml").read_text()
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("failure", ["disk", "interrupt", "tokenizer"])
def test_a_failure_leaves_nothing_behind(run, tmp_path, monkeypatch, exists, failure):
    from safetensors import SafetensorError

    folder, source = tmp_path / "new", run
    if exists:
        folder.mkdir()
    expected = ExportError, "new: cannot be written: Error while serializing: No space"
    if failure == "tokenizer":  # a run of an earlier version, without the tokenizer's file
        source = tmp_path / "run"
        source.mkdir()
        (source / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
        (source / "model.yaml").write_text(unsealed(run).replace("kind: byte", "kind: bpe"))
        expected = LoadError, "tokenizer.json: no such file"
    else:
        raised = SafetensorError("Error while serializing: No space") if failure == "disk" else KeyboardInterrupt()

        def fails(state, path, **options):
            path.write_bytes(b"half")
            raise raised

        monkeypatch.setattr("safetensors.torch.save_file", fails)
        expected = expected if failure == "disk" else (KeyboardInterrupt, None)
    with pytest.raises(expected[0], match=expected[1]):
        export(source, folder)
    assert folder.exists() == exists
    assert not exists or not list(folder.iterdir())


@pytest.mark.parametrize("damage", ["truncated", "another model", "not safetensors", "one bit"])
def test_a_wrong_file_is_one_line_and_nothing_is_written(run, tmp_path, damage, capsys):
    from zoo import cli

    folder = tmp_path / "run"
    folder.mkdir()
    content = bytearray((run / "model.safetensors").read_bytes())
    (folder / "model.yaml").write_text((run / "model.yaml").read_text())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "not safetensors":
        content = bytearray(b"\x80\x04\x95 a pickle is not even opened")
    elif damage == "one bit":
        content[-100] ^= 1
    else:
        (folder / "model.yaml").write_text(unsealed(run).replace("d_ff: 96", "d_ff: 97"))
    (folder / "model.safetensors").write_bytes(content)
    assert cli.run(["export", str(folder), str(tmp_path / "new")]) == 2
    assert cli.run(["generate", str(folder), "--prompt", "a"]) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 2
    assert all(line.startswith(f"{folder / 'model.safetensors'}: ") for line in lines)
    assert not (tmp_path / "new").exists()


def test_files_have_the_permissions_of_the_umask(run, tmp_path):
    before = os.umask(0o027)
    try:
        files = export(run, tmp_path / "exported")
    finally:
        os.umask(before)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == {path.name: 0o640 for path in files}
    assert json.loads((tmp_path / "exported" / "generation_config.json").read_text())["bos_token_id"] == 256
