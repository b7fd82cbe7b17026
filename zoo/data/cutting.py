"""Where text can be cut so that the tokens of the pieces are those of the whole.

A pre-tokenizer splits text into words, and the model encodes each word by itself.  So a place where the pre-tokenizer
always splits, whatever stands before and after, is safe, and no rule below looks at more than one character on each
side.  Which rules hold is read from the tokenizer's JSON; a part that is not known here has no safe place.
"""

import re
from collections.abc import Iterator

# What any library takes for white space (U+2581 is how SentencePiece writes a space).
SPACES = "\t-\r\x1c-\x20\x85\xa0\u1680\u180e\u2000-\u200b\u2028\u2029\u202f\u205f\u2060\u2581\u3000\ufeff"
LETTERS = "A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3"
MARKS = "!-&(-/:-@\\[-`{-~，。！？；：、"  # without the apostrophe, which begins "'s"

BEFORE_SPACE = re.compile(f"(?<=[^{SPACES}])(?= )")
BETWEEN_CLASSES = re.compile(
    f"(?<=[^{SPACES}])(?= )|(?<=[{LETTERS}])(?=[0-9\n{MARKS}])|(?<=[0-9])(?=[\n{LETTERS}{MARKS}])"
)
WINDOW = 4096

_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# The regular expressions of GPT-2, Llama 3, Qwen 2 and GPT-4o.  Each puts letters, digits, and what is neither into
# different words, and none looks back.
KNOWN = {
    _GPT2,
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
SAFE_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"}


def safe_places(settings: dict) -> re.Pattern | None:
    """The places where text can be cut, as a pattern of no width, for a tokenizer's JSON; None if there are none."""
    if settings["model"].get("dropout") or not _added_tokens_stay_whole(settings):
        return None
    splitter, normalizers = settings.get("pre_tokenizer"), _listed(settings.get("normalizer"), "normalizers")
    # Digits set numbers apart first, which moves none of the places below.
    first = [part for part in _listed(splitter, "pretokenizers") if part["type"] != "Digits"][:1]
    kind = first[0]["type"] if first else None
    if kind == "BertPreTokenizer" and all(n["type"] == "BertNormalizer" for n in normalizers):
        # The normalizer drops control characters, so that the spaces around one can become one added token.
        return None if any(" " in token["content"] for token in added_tokens(settings)) else BEFORE_SPACE
    if joins_words(settings):
        return BEFORE_SPACE if _no_token_over_a_space(settings) else None
    if any(n["type"] not in SAFE_NORMALIZERS for n in normalizers):
        return None
    match kind:
        case "ByteLevel" if first[0].get("use_regex", True):
            return BEFORE_SPACE if first[0].get("add_prefix_space") else BETWEEN_CLASSES
        case "Split" if first[0]["pattern"].get("Regex") in KNOWN and not first[0].get("invert"):
            return BETWEEN_CLASSES if first[0]["behavior"] == "Isolated" and not _prefixes(splitter) else None
        case "Whitespace" | "WhitespaceSplit":
            return BEFORE_SPACE
        case "Metaspace" if first[0].get("split", True) and first[0].get("replacement") == "▁":
            return BEFORE_SPACE
    return None


def joins_words(settings: dict) -> bool:
    """Whether spaces become U+2581 and nothing splits the text, as in Llama 2: then words are kept apart by merges."""
    normalizers = _listed(settings.get("normalizer"), "normalizers")
    splitters = _listed(settings.get("pre_tokenizer"), "pretokenizers")
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepends = {"type": "Prepend", "prepend": "▁"}
    if not splitters:
        return replaces in normalizers and all(n in (replaces, prepends) for n in normalizers)
    first = splitters[0]
    whole = first["type"] == "Metaspace" and not first.get("split", True)  # older files do not say, and split
    return not normalizers and len(splitters) == 1 and whole


def without_prepended_space(settings: dict) -> dict | None:
    """The settings for text that continues a document: nothing is put before it.  None if they are the same."""
    normalizers = _listed(settings.get("normalizer"), "normalizers")
    kept = [n for n in normalizers if n["type"] != "Prepend"]
    return None if kept == normalizers else settings | {"normalizer": {"type": "Sequence", "normalizers": kept}}


def splits_like_gpt2(settings: dict) -> bool:
    """Whether words are those of GPT-2's byte-level pre-tokenizer, in the text's own case ("'S" is no "'s").

    Added tokens are found before words are split, and can be several words: runs of spaces are, in GPT-NeoX.
    """
    if added_tokens(settings) or any(
        n["type"] == "Lowercase" for n in _listed(settings.get("normalizer"), "normalizers")
    ):
        return False
    splitter = settings.get("pre_tokenizer") or {}
    plain = splitter.get("type") == "ByteLevel" and splitter.get("use_regex", True)
    return bool(plain and not splitter.get("add_prefix_space"))


def added_tokens(settings: dict) -> list[dict]:
    """The tokens that are found in a text before its words are split.  Special ones are read as text."""
    return [token for token in settings.get("added_tokens") or [] if not token.get("special")]


def last_cut(pattern: re.Pattern, text: str) -> int:
    """The last safe place inside a text; 0 if there is none."""
    end = len(text)
    while end > 1:
        begin = max(1, end - WINDOW)
        # One character more, so that the last place of the window sees what follows it.
        found = [match.start() for match in pattern.finditer(text, begin, min(end + 1, len(text)))]
        if found and found[-1] < len(text):
            return found[-1]
        end = begin if begin > 1 else 0
    return 0


def _listed(part: dict | None, name: str) -> list[dict]:
    if part is None:
        return []
    return part[name] if part["type"] == "Sequence" else [part]


def _prefixes(splitter: dict | None) -> bool:
    return any(part.get("add_prefix_space") for part in _listed(splitter, "pretokenizers"))


def _added_tokens_stay_whole(settings: dict) -> bool:
    """Whether no cut can fall into a token that is found before words are split."""
    found = added_tokens(settings)
    if found and joins_words(settings):
        return False
    plain = all(not (token.get("rstrip") or token.get("single_word")) for token in found)
    return plain and not any(BETWEEN_CLASSES.search(f"{token['content']}") for token in found)


def _no_token_over_a_space(settings: dict) -> bool:
    """Whether no token holds a space after something else: then nothing is ever merged over a cut before a space."""
    model = settings["model"]
    return model.get("type") == "BPE" and not any("▁" in token.lstrip("▁") for token in model["vocab"])


def in_order(pattern: re.Pattern, text: str) -> Iterator[str]:
    """Yield a text in pieces, cut at every safe place."""
    begin = 0
    for match in pattern.finditer(text):
        if match.start():
            yield text[begin : match.start()]
            begin = match.start()
    yield text[begin:]
