"""Every block against loops that know nothing of the implementation.

`Loops` takes a block's weights and one document, and computes every query by itself in float64, token by token, from
the text of the papers: it shares no function with blocks/ or kernels/.
"""

import math

import torch

from zoo.blocks.base import Context


def rotated(vector, position, theta):
    """Half-split rotation through complex numbers."""
    half = len(vector) // 2
    turned = [
        complex(vector[i], vector[i + half]) * complex(math.cos(angle), math.sin(angle))
        for i in range(half)
        for angle in [position * theta ** (-2 * i / (2 * half))]
    ]
    return torch.tensor([z.real for z in turned] + [z.imag for z in turned], dtype=torch.float64)


def normed(vector, weight, eps):
    return vector / torch.sqrt((vector * vector).mean() + eps) * weight


class Loops:
    """One document x_TC through an Attention block's weights."""

    def __init__(self, block, x_TC):
        self.config, self.x = block.config, x_TC
        self.projection = block.config.projection
        self.weights = {name: parameter.data for name, parameter in block.named_parameters()}
        self.latents = self.projection.kind != "gqa"
        self.maps = self.of_input(self.weights["projection.input.weight"])

    def of_input(self, weight):
        """The maps that read x, by name, whose rows lie one after the other."""
        p = self.projection
        rows = {"query": p.n_heads * p.qk_dim}
        if self.latents:
            rows = {"query_latent": p.q_rank} if p.q_rank else rows
            rows |= {"latent": p.kv_rank, "rope_key": p.rope_dim}
        else:
            for which in range(len(self.config.patterns) if self.config.separate_kv else 1):
                rows |= {f"key{which}": p.n_kv_heads * p.head_dim, f"value{which}": p.n_kv_heads * p.v_head_dim}
        assert sum(rows.values()) == len(weight)
        return dict(zip(rows, weight.split(list(rows.values())), strict=True))

    def query(self, t, h):
        p, w, x = self.projection, self.weights, self.x[t]
        if self.latents and p.q_rank:
            x = normed(self.maps["query_latent"] @ x, w["projection.query_norm.weight"], p.norm_eps)
        query = w["projection.query.weight"] if self.latents and p.q_rank else self.maps["query"]
        q = query[h * p.qk_dim : (h + 1) * p.qk_dim] @ x
        if self.latents:
            return torch.cat((q[: p.head_dim], rotated(q[p.head_dim :], t, p.rope_theta)))
        if p.qk_norm:
            q = normed(q, w["projection.query_norm.weight"], p.norm_eps)
        return rotated(q, t, p.rope_theta)

    def raw(self, t, g, which):
        """Entries of token t that group g reads, before rotation, each with whether it is to be rotated."""
        p, w, x = self.projection, self.weights, self.x[t]
        if self.latents:
            width, head = p.kv_rank // p.n_latent_heads, g // (p.n_kv_heads // p.n_latent_heads)
            rows = slice(head * width, (head + 1) * width)
            c = normed(self.maps["latent"][rows] @ x, w["projection.latent_norm.weight"][rows], p.norm_eps)
            return {"latent": c, "rope_key": self.maps["rope_key"] @ x}
        key, value = (self.maps[f"{name}{which}"].view(p.n_kv_heads, -1, len(x))[g] @ x for name in ("key", "value"))
        if p.qk_norm:
            key = normed(key, w[f"projection.key_norms.{which}.weight"], p.norm_eps)
        return {"key": key, "value": value}

    def rotate(self, entries, position):
        name = "rope_key" if self.latents else "key"
        return entries | {name: rotated(entries[name], position, self.projection.rope_theta)}

    def key_value(self, entries, g):
        if not self.latents:
            return entries["key"], entries["value"]
        kv_heads, w = self.projection.n_kv_heads, self.weights
        up = {n: w[f"projection.{n}_up.weight"].unflatten(0, (kv_heads, -1))[g] for n in ("key", "value")}
        return torch.cat((up["key"] @ entries["latent"], entries["rope_key"])), up["value"] @ entries["latent"]

    def token(self, t, g, which):
        return self.key_value(self.rotate(self.raw(t, g, which), t), g)

    def block(self, j, g, which):
        pattern = self.config.pattern("compression")
        tokens = [j * pattern.compression_stride + i for i in range(pattern.compression_block)]
        entries = [self.raw(t, g, which) for t in tokens]
        if pattern.pool_rotated:
            entries = [self.rotate(e, t) for e, t in zip(entries, tokens, strict=True)]
        pooled = {name: self.pool([e[name] for e in entries], name) for name in entries[0]}
        if not pattern.pool_rotated:
            pooled = self.rotate(pooled, sum(tokens) / len(tokens))
        return self.key_value(pooled, g)

    def pool(self, vectors, name):
        if self.config.pattern("compression").pooling == "mean":
            return sum(vectors) / len(vectors)
        prefix = f"patterns.compression.pool.{name}"
        w = {n: self.weights[f"{prefix}.{n}"] for n in ("offset", "hidden.weight", "pooled.weight")}
        z = w["hidden.weight"] @ torch.cat([v + p for v, p in zip(vectors, w["offset"], strict=True)])
        return w["pooled.weight"] @ (z / (1 + torch.exp(-z)))

    def attend(self, q, keys_values):
        """Softmax attention of one query; zeros and no weights where there is nothing to see."""
        if not keys_values:
            return torch.zeros(self.projection.v_head_dim, dtype=torch.float64), []
        scores = [math.exp(float(q @ k) / math.sqrt(len(q))) for k, _ in keys_values]
        weights = [s / sum(scores) for s in scores]
        return sum(p * v for p, (_, v) in zip(weights, keys_values, strict=True)), weights

    def visible_blocks(self, t):
        pattern = self.config.pattern("compression")
        stride, block = pattern.compression_stride, pattern.compression_block
        return [j for j in range(t + 1) if j * stride + block - 1 <= t]

    def compression(self, t, h, g, which):
        return self.attend(self.query(t, h), [self.block(j, g, which) for j in self.visible_blocks(t)])

    def chosen(self, t, g):
        """Blocks for query t: forced ones, then by shared pieces of `stride` tokens, weighted by attention."""
        compression, pattern = self.config.pattern("compression"), self.config.pattern("selection")
        which = self.set_of("compression")
        t = t - t % pattern.query_group
        heads, stride = self.projection.n_heads // self.projection.n_kv_heads, compression.compression_stride
        own = t // pattern.selection_block
        importance = [0.0] * (own + 1)
        for h in range(g * heads, (g + 1) * heads):
            weights = self.compression(t, h, g, which)[1]
            for j, weight in zip(self.visible_blocks(t), weights, strict=True):
                for start in range(j * stride, j * stride + compression.compression_block, stride):
                    if start // pattern.selection_block <= own:
                        importance[start // pattern.selection_block] += weight
        forced = set(range(min(pattern.n_init, own + 1))) | {m for m in range(own + 1) if m > own - pattern.n_local}
        others = sorted(set(range(own + 1)) - forced, key=lambda m: (-importance[m], m))
        return sorted([*forced, *others[: pattern.n_selected - len(forced)]])

    def set_of(self, kind):
        kinds = [pattern.kind for pattern in self.config.patterns]
        return kinds.index(kind) if self.config.separate_kv else 0

    def pattern(self, kind, t, h, g):
        which = self.set_of(kind)
        if kind == "compression":
            return self.compression(t, h, g, which)[0]
        tokens = range(t + 1) if kind == "full" else self.reached(kind, t)
        if kind == "window":
            tokens = range(max(0, t - self.config.pattern(kind).window + 1), t + 1)
        if kind == "selection":
            size = self.config.pattern(kind).selection_block
            tokens = [s for m in self.chosen(t, g) for s in range(m * size, (m + 1) * size) if s <= t]
        return self.attend(self.query(t, h), [self.token(s, g, which) for s in tokens])[0]

    def reached(self, kind, t):
        """The tokens that a query sees, by the config's `reach`; the pattern's own test compares that with a mask."""
        pattern = self.config.pattern(kind)
        return [s for s in range(t + 1) if pattern.reach(1 << s, t + 1) >> t & 1]

    def output(self):
        heads, n_patterns, w = self.projection.n_heads, len(self.config.patterns), self.weights
        rows = []
        for t in range(len(self.x)):
            gate = torch.ones(heads, 1)
            if n_patterns > 1:
                gate = 1 / (1 + torch.exp(-(w["gate.weight"] @ self.x[t]).view(heads, n_patterns)))
            row = []
            for h in range(heads):
                g = h // (heads // self.projection.n_kv_heads)
                parts = [self.pattern(pattern.kind, t, h, g) for pattern in self.config.patterns]
                row.append(sum(gate[h, i] * part for i, part in enumerate(parts)))
            rows.append(w["output.weight"] @ torch.cat(row))
        return torch.stack(rows)


def test_every_block_equals_the_loops(case, make, noise):
    """27 tokens: seven blocks of four, the last of them ragged, and more selection blocks than are chosen."""
    block, x_TC = make(*case), noise(27, 24)
    expected = Loops(block, x_TC).output()
    torch.testing.assert_close(block(x_TC[None], Context.for_tokens(1, 27))[0], expected, rtol=0, atol=1e-10)
