"""A causal language model of transformers in a local folder, as a `Subject`: for reference beside runs of the zoo."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.subject import Subject

NO_LIMIT = 1 << 20  # what tokenizers without a limit state is larger


class TransformersTokenizer:
    """A tokenizer of transformers with the interface of the zoo's, without special tokens."""

    def __init__(self, tokenizer, end: int | None):
        self._tokenizer = tokenizer
        self.vocab_size = len(tokenizer)
        self.end_of_document = end
        self.identity = f"transformers:{tokenizer.name_or_path}"

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False), np.int64)

    def decode(self, numbers: Sequence[int]) -> str:
        kept = [int(n) for n in numbers if n != self.end_of_document]
        return self._tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)


class TransformersSubject(Subject):
    """A folder with config.json, safetensors and a tokenizer; nothing in it is unpickled or run.

    Folders that `zoo export` wrote hold code of their own. They are not loaded here: evaluate the run itself.
    """

    def __init__(self, folder: Path, device: str = "auto", dtype: str = "auto"):
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        from zoo.inference.loading import DTYPES

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "bf16" if device.startswith("cuda") else "fp32"
        if dtype not in DTYPES:
            raise EvaluationError(f"dtype: must be auto, {', '.join(DTYPES)}; found {dtype!r}")
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            config = AutoConfig.from_pretrained(folder, **local)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], use_safetensors=True, **local)
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        except Exception as error:  # the library's errors have no common base
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EvaluationError(f"{folder}: transformers cannot load it: {reason}") from error
        self.model = model.to(device).eval()
        self.name, self.device, self.dtype_name = str(folder), torch.device(device), dtype
        self.vocab_size = config.vocab_size
        self.max_len = min(getattr(config, "max_position_embeddings", None) or NO_LIMIT, NO_LIMIT)
        self.longest = self.max_len
        self.tokenizer = TransformersTokenizer(tokenizer, tokenizer.eos_token_id)
        self.start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self.digest = _digest(folder)

    @torch.no_grad()
    def logits(self, tokens_BT, row_N, position_N, document_starts_BT=None):
        return self.model(input_ids=tokens_BT, use_cache=False).logits[row_N, position_N].float()

    @torch.no_grad()
    def greedy(self, prompts, max_tokens):
        made = []
        for prompt in prompts:
            tokens_1T = torch.tensor([list(prompt)], device=self.device)
            out = self.model.generate(
                tokens_1T,
                attention_mask=torch.ones_like(tokens_1T),
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.end_of_document or 0,
            )[0, tokens_1T.shape[1] :].tolist()
            made.append(_until_end(out, self.tokenizer.end_of_document))
        return made


def _until_end(tokens: list[int], end: int | None) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def _digest(folder: Path) -> str | None:
    import hashlib

    from zoo.files import sha256

    files = sorted(folder.glob("*.safetensors"))
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest() if files else None
