import subprocess
import sys

import pytest
from pydantic import ValidationError

from zoo.data.config import BpeTokenizer, ByteTokenizer, DataConfig


def config(**data):
    return DataConfig.model_validate(data)


MQAR = {"kind": "synthetic", "task": "mqar", "vocab_size": 512}


def test_default_is_the_standard_library_as_bytes():
    data = config()
    assert [s.kind for s in data.streams()] == ["python-stdlib"]
    assert isinstance(data.resolved_tokenizer(), ByteTokenizer)
    assert data.problems(vocab_size=257, max_seq_len=64) == []


def test_dump_loads_to_the_same_config():
    data = config(
        sources=[{"kind": "text", "paths": ["a"], "proportion": 2}, {**MQAR, "proportion": 1}],
        tokenizer={"kind": "bpe"},
    )
    assert DataConfig.model_validate(data.model_dump(mode="json")) == data


def test_reading_a_data_section_imports_nothing_heavy():
    heavy = "{'torch', 'streaming', 'composer', 'numpy'}"
    code = f"import sys, zoo.data, zoo.data.config; print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": {"kind": "python-stdlib"}, "sources": [{"kind": "python-stdlib"}]}, "not both"),
        ({"sources": [{"kind": "python-stdlib", "proportion": 1}, {"kind": "text", "paths": ["a"]}]}, "or none does"),
        ({"source": {"kind": "mds"}}, "state `local`"),
        ({"source": {"kind": "text", "paths": ["a"], "pathz": 1}}, "Extra inputs"),
        ({"source": {"kind": "txt"}}, "does not match any of the expected tags"),
        ({"validation_fraction": 1.0}, "less than 1"),
        ({"workers": 1_000_000}, "less than or equal to 1024"),
    ],
)
def test_what_pydantic_refuses(data, message):
    with pytest.raises(ValidationError, match=message):
        config(**data)


@pytest.mark.parametrize(
    ("data", "key", "message"),
    [
        ({}, (), "the byte tokenizer uses 257 tokens; model.vocab_size must be at least 257, found 256"),
        ({"tokenizer": {"kind": "bpe", "vocab_size": 300}}, ("tokenizer",), "at least 300, found 256"),
        ({"seq_len": 65}, ("seq_len",), "at most model.max_seq_len = 64; found 65"),
        ({"source": MQAR}, ("source", "vocab_size"), "at most model.vocab_size = 256; found 512"),
        ({"sources": [{**MQAR, "pairs": 17}]}, ("sources", 0, "pairs"), "34 for its queries, of 64; found pairs = 17"),
        ({"source": {**MQAR, "length": 63}}, ("source", "length"), "even number"),
        ({"source": {**MQAR, "vocab_size": 64}}, ("source", "vocab_size"), "more than the row's 64 tokens"),
        ({"source": {"kind": "synthetic", "task": "copy", "span": 32}}, ("source", "span"), "2 \\* span \\+ 1 <= 64"),
        ({"source": {"kind": "synthetic", "task": "induction", "gap": 61}}, ("source", "span"), "span >= 2"),
        ({"source": MQAR, "tokenizer": {"kind": "bpe"}}, ("tokenizer",), "no source here has any"),
        (
            {"sources": [{**MQAR, "proportion": 1}, {**MQAR, "proportion": 2}]},
            ("sources", 1),
            r"the same as sources\[0\]",
        ),
        ({"source": {"kind": "mds", "local": "a"}}, ("validation_fraction",), "state `validation_source`"),
    ],
)
def test_what_disagrees_with_the_model(data, key, message):
    problems = config(**data).problems(vocab_size=256, max_seq_len=64)
    assert key in dict(problems)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(dict(problems)[key])


def test_sources_of_numbers_need_no_tokenizer():
    assert config(source=MQAR).resolved_tokenizer() is None
    stated = config(source={"kind": "mds", "local": "a"}, tokenizer={"kind": "bpe"}, validation_fraction=0)
    assert isinstance(stated.resolved_tokenizer(), BpeTokenizer)
