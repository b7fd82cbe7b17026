"""The reference of every key of a recipe, written from the config classes. No torch."""

from zoo.docs.families import FOLDER as PARTS
from zoo.docs.kinds import FOLDER as BLOCKS
from zoo.errors import ZooError
from zoo.recipe.keys import Key, all_keys

PATH = "reference/keys.md"
SECTIONS = {
    "": "The top of a recipe",
    "model": "model",
    "model.multi_token": "model.multi_token",
    "data": "data",
    "train": "train",
    "train.stop_at": "train.stop_at",
    "train.checkpoint": "train.checkpoint",
    "train.optimizer": "train.optimizer: learning rate, weight decay",
    "train.schedule": "train.schedule: the learning rate over time, warm-up and decay",
    "eval": "eval",
}
# An example of each key, as YAML that is laid over zoo:tiny/full; a test reads them all.
EXAMPLES = {
    "extends": "extends: zoo:tiny/full",
    "name": "name: my_experiment",
    "summary": "summary: Three windows to one full layer",
    "seed": "seed: 1",
    "plugins": "plugins: [zoo.blocks]          # a module of your own that registers kinds",
    "model.d_model": "model: {d_model: 256}",
    "model.n_layers": "model: {n_layers: 12, layers: full ...}",
    "model.vocab_size": "model: {vocab_size: 32000}",
    "model.max_seq_len": "model: {max_seq_len: 8192}",
    "model.ffn": "model: {ffn: {kind: geglu, d_ff: 512}}",
    "model.ffns": "model:\n  ffn: null\n  ffns: {narrow: {d_ff: 256}, wide: {d_ff: 512}}\n  ffn_layers: narrow*3 wide",
    "model.ffn_layers": "model:\n  ffn: null\n  ffns: {dense: {d_ff: 352}, moe: {kind: moe, d_ff: 88}}\n  "
    "ffn_layers: dense moe*3",
    "model.tie_embeddings": "model: {tie_embeddings: false}",
    "model.norm": "model: {norm: layer}",
    "model.norm_eps": "model: {norm_eps: 1e-6}",
    "model.norm_bias": "model: {norm: layer, norm_bias: true}",
    "model.norm_place": "model: {norm_place: after}",
    "model.parallel": "model: {parallel: true}",
    "model.residual_scale": "model: {residual_scale: 0.22}",
    "model.stream_scale": "model: {norm_place: stream, stream_scale: 3.5}",
    "model.embedding_scale": "model: {embedding_scale: 16.0}",
    "model.logit_scale": "model: {logit_scale: 0.25}",
    "model.logit_softcap": "model: {logit_softcap: 30.0}",
    "model.multi_token": "model: {multi_token: {weight: 0.3}}",
    "model.multi_token.weight": "model: {multi_token: {weight: 0.1}}",
    "model.multi_token.depth": "model: {multi_token: {depth: 2}}",
    "model.multi_token.block": "model: {multi_token: {block: full}}",
    "model.multi_token.ffn": "model:\n  ffn: null\n  ffns: {narrow: {d_ff: 256}, wide: {d_ff: 512}}\n  "
    "ffn_layers: narrow wide*3\n  multi_token: {ffn: narrow}",
    "model.init_std": "model: {init_std: 0.006}",
    "model.document_mask": "model: {document_mask: true}",
    "model.blocks": "model:\n  blocks:\n    local: {kind: window, n_heads: 4, window: 64}\n    "
    "global: {kind: full, n_heads: 4}\n  layers: (local*3 global)*2",
    "model.layers": "model: {layers: full*8}",
    "data.seq_len": "data: {seq_len: 128}",
    "data.source": "data: {source: {kind: text, paths: [my_texts], on_error: skip}}",
    "data.sources": "data:\n  source: null\n  sources:\n    - {kind: python-stdlib, proportion: 3}\n    "
    "- {kind: jsonl, paths: [notes.jsonl], proportion: 1}",
    "data.tokenizer": "model: {vocab_size: 4096}\ndata: {tokenizer: {kind: bpe, vocab_size: 4096}}",
    "data.validation_fraction": "data: {validation_fraction: 0.05}",
    "data.validation_source": "data: {validation_source: {kind: text, paths: [held_out]}}",
    "data.shuffle": "data: {shuffle: false}",
    "data.workers": "data: {workers: 4}",
    "data.cache_dir": "data: {cache_dir: /scratch/rows}",
    "train.duration": "train: {duration: 15Btok}",
    "train.batch_size": "train: {batch_size: 64}",
    "train.batch_tokens": "train: {batch_size: null, batch_tokens: 65_536}",
    "train.stop_at": "data: {tokenizer: null, source: {kind: synthetic, task: copy, vocab_size: 200}}\n"
    "train: {stop_at: {accuracy: 0.99}}",
    "train.micro_batch": "train: {micro_batch: 4}",
    "train.init_from": "train: {init_from: runs/first}",
    "train.freeze": "train: {freeze: [embedding, layers.0]}",
    "train.optimizer": "train: {optimizer: {kind: adamw, lr: 0.001, weight_decay: 0.1}}",
    "train.schedule": "train: {schedule: {kind: wsd, warmup: 15ba, decay: 30ba}}",
    "train.optimizer.lr": "train: {optimizer: {kind: adamw, lr: 0.001}}",
    "train.optimizer.lr_multipliers": "train: {optimizer: {kind: adamw, lr_multipliers: {'*norm*': 2}}}",
    "train.optimizer.betas": "train: {optimizer: {kind: adamw, betas: [0.9, 0.99]}}",
    "train.optimizer.eps": "train: {optimizer: {kind: adamw, eps: 1e-10}}",
    "train.optimizer.weight_decay": "train: {optimizer: {kind: adamw, weight_decay: 0.05}}",
    "train.optimizer.decay_embeddings": "train: {optimizer: {kind: adamw, decay_embeddings: true}}",
    "train.schedule.warmup": "train: {schedule: {kind: cosine, warmup: 200ba}}",
    "train.schedule.final_lr_ratio": "train: {schedule: {kind: linear, final_lr_ratio: 0.0}}",
    "train.schedule.decay": "train: {schedule: {kind: wsd, decay: 0.3dur}}",
    "train.clip_norm": "train: {clip_norm: 0.5}",
    "train.precision": "train: {precision: fp32}",
    "train.residual_stream": "train: {residual_stream: fp32}",
    "train.activation_checkpointing": "train: {activation_checkpointing: true}",
    "train.kernels": "train: {kernels: reference}",
    "train.cuda_graph": 'train: {cuda_graph: "off"}',
    "train.parallelism": "train: {parallelism: fsdp2}",
    "train.reshard_after_forward": "train: {parallelism: fsdp2, reshard_after_forward: false}",
    "train.gradient_sync": "train: {parallelism: fsdp2, gradient_sync: batch}",
    "train.workers": "train: {workers: 0}",
    "train.stall_minutes": "train: {stall_minutes: 5}",
    "train.checkpoint": "train: {checkpoint: {every: 1000ba, keep: 3}}",
    "train.loggers": "train: {loggers: [wandb]}",
    "train.stop_at.accuracy": "data: {tokenizer: null, source: {kind: synthetic, task: copy, vocab_size: 200}}\n"
    "train: {stop_at: {accuracy: 0.9}}",
    "train.checkpoint.every": "train: {checkpoint: {every: 0.05dur}}",
    "train.checkpoint.keep": "train: {checkpoint: {keep: all}}",
    "eval.every": "eval: {every: 200ba}",
    "eval.batches": "eval: {batches: all}",
    "eval.tasks": "eval: {tasks: [loss_by_position]}",
}


def keys_page() -> str:
    """Markdown of the page: each key of the sections with type, bounds, default, meaning and an example; an index.

    Raises ZooError for a key whose example is missing, and for an example of a key that there is not.
    """
    keys = all_keys()
    own = {key.path: key for key in keys if key.path in EXAMPLES or not (key.kinds or key.types == "mapping")}
    if wrong := sorted(EXAMPLES.keys() - own.keys()):
        raise ZooError(f"the reference of recipe keys: examples of keys that do not exist: {', '.join(wrong)}")
    parts = [_FRONT, _INTRO]
    for section, title in SECTIONS.items():
        inside = [key for key in own.values() if key.path.rpartition(".")[0] == section]
        parts += [f"## {title}", *map(_entry, inside)]
    return "\n\n".join([*parts, _fields(keys)]) + "\n"


_FRONT = "---\nsearch:\n  boost: 3\n---"  # who looks for "learning rate" wants the key before the pages that mention it
_INTRO = """# Recipe keys

Every key that a recipe may have, written from the config classes that check it. `zoo keys` prints the same in a
terminal, and `zoo keys train.workers` one key. The keys inside a mapping with a `kind` depend on the kind;
[the last section](#fields-of-parts) lists them. Only `name` and `model` are required, and of `model` the keys that are
marked so. [The guide](../recipes.md) explains how a recipe is put together."""


def _entry(key: Key) -> str:
    default = {"": "", "required": " · **required**"}.get(key.default, f" · default `{key.default}`")
    link = f"\n\nKinds: [{key.family}]({_page(key.family)})." if key.family else ""
    if key.kinds:
        link = f"\n\nA field of {', '.join(f'`kind: {kind}`' for kind in key.kinds)}."
    values = key.values.replace("<", "&lt;").replace("*", "\\*")
    heading = f"### {key.path} {{ #{key.path.replace('.', '-')} }}"
    return f"{heading}\n\n{values}{default}\n\n{key.description}{link}\n\n```yaml\n{example(key)}\n```"


def example(key: Key) -> str:
    """YAML that sets the key: that of EXAMPLES, else the other truth value, the last choice, or the default."""
    if key.path in EXAMPLES:
        return EXAMPLES[key.path]
    value = key.default
    if key.types == "true or false":
        value = {"true": "false", "false": "true"}[value]
    elif " or " in key.types and "number" not in key.types:
        value = key.types.split(" or ")[-1]
    if value in ("", "required"):
        raise ZooError(f"the reference of recipe keys: {key.path} needs an example in zoo/docs/keys_page.py")
    for name in reversed(key.path.split(".")):
        value = f"{name}: {value}" if name == key.path.split(".")[0] else f"{{{name}: {value}}}"
    return value


def _page(family: str, kind: str = "") -> str:
    """The page of a family's kinds, relative to this one."""
    if family == "mixers":
        return f"../{BLOCKS}/{kind or 'index'}.md"
    return f"../{PARTS}/{family}.md{'#' + kind if kind else ''}"


def _fields(keys: list[Key]) -> str:
    """The index of the fields of parts: name, kinds, where."""
    families = {key.path: key.family for key in keys if key.family}
    rows: dict[tuple[str, str], dict[str, str]] = {}
    meanings: dict[tuple[str, str], str] = {}
    for key in keys:
        holder = max((path for path in families if key.path.startswith(f"{path}.")), key=len, default=None)
        if key.kinds and holder:
            family = families[holder]
            inner = key.path.removeprefix(f"{holder}.").removeprefix("<name>.").removeprefix("<n>.")
            members = {kind: _page(family, kind) for kind in key.kinds}
            rows.setdefault((family, inner), {}).update(members)
            meanings.setdefault((family, inner), key.description.replace("|", "\\|"))
    lines = ["| field | of | kinds | |", "|---|---|---|---|"]
    for (family, field), kinds in sorted(rows.items(), key=lambda row: (row[0][1], row[0][0])):
        shown = ", ".join(f"[{kind}]({page})" for kind, page in kinds.items())
        lines.append(f"| `{field}` | [{family}]({_page(family)}) | {shown} | {meanings[family, field]} |")
    intro = (
        "Fields of the mappings that have a `kind`, by name; the pages of the kinds have types, bounds and defaults."
    )
    return "## Fields of parts\n\n" + intro + "\n\n" + "\n".join(lines)
