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
        bias = self.weights.get("projection.input.bias")
        self.biases = {} if bias is None else self.of_input(bias)

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

    def mapped(self, name, t, heads):
        """W x + b, by head."""
        return (self.maps[name] @ self.x[t] + self.biases.get(name, 0)).view(heads, -1)

    def positioned(self, heads, position, norm):
        """Heads [n, D] of a grouped projection, normed and partly rotated, in the order that the config says."""
        p = self.projection
        if p.qk_norm and p.qk_norm_place == "before":
            heads = self.normed_heads(heads, norm)
        width = round(p.head_dim * p.rope_fraction) if p.position.rotates else 0
        turned = [rotated(head[:width], position, p.position.theta) if width else head[:0] for head in heads]
        heads = torch.stack([torch.cat((part, head[width:])) for part, head in zip(turned, heads, strict=True)])
        return self.normed_heads(heads, norm) if p.qk_norm and p.qk_norm_place == "after" else heads

    def normed_heads(self, heads, norm):
        p = self.projection
        weight = self.weights.get(f"projection.{norm}.weight", torch.ones((), dtype=torch.float64))
        if p.qk_norm_over == "width":
            return normed(heads.flatten(), weight, p.norm_eps).view_as(heads)
        return torch.stack([normed(head, weight, p.norm_eps) for head in heads])

    def query(self, t, h):
        """That of token t, times what its position makes of it."""
        grows = self.projection.position_temperature
        return self.plain_query(t, h) * (1 + grows.scale * math.log(1 + (t + 1) // grows.every) if grows else 1)

    def plain_query(self, t, h):
        p, w, x = self.projection, self.weights, self.x[t]
        if not self.latents:
            return self.positioned(self.mapped("query", t, p.n_heads), t, "query_norm")[h]
        if p.q_rank:
            x = normed(self.maps["query_latent"] @ x, w["projection.query_norm.weight"], p.norm_eps) * p.q_latent_scale
        query = w["projection.query.weight"] if p.q_rank else self.maps["query"]
        q = query[h * p.qk_dim : (h + 1) * p.qk_dim] @ x
        return torch.cat((q[: p.head_dim], self.turned(q[p.head_dim :], t)))

    def turned(self, part, position):
        """The rotary part of a latent projection, if it is rotated."""
        embedding = self.projection.position
        return rotated(part, position, embedding.theta) if embedding.rotates and len(part) else part

    def raw(self, t, g, which):
        """Entries of token t that group g reads, before rotation; of grouped keys those of all heads."""
        p, w, x = self.projection, self.weights, self.x[t]
        if self.latents:
            width, head = p.kv_rank // p.n_latent_heads, g // (p.n_kv_heads // p.n_latent_heads)
            rows = slice(head * width, (head + 1) * width)
            c = self.maps["latent"][rows] @ x
            if p.latent_norm:
                c = normed(c, w["projection.latent_norm.weight"][rows], p.norm_eps) * p.latent_scale
            return {"latent": c, "rope_key": self.maps["rope_key"] @ x}
        key, value = (self.mapped(f"{name}{which}", t, p.n_kv_heads) for name in ("key", "value"))
        if p.qk_norm and p.qk_norm_place == "before":
            key = self.normed_heads(key, f"key_norms.{which}")
        return {"key": key, "value": value[g]}

    def rotate(self, entries, position):
        p = self.projection
        if self.latents:
            return entries | {"rope_key": self.turned(entries["rope_key"], position)}
        width = round(p.head_dim * p.rope_fraction) if p.position.rotates else 0
        turned = [rotated(head[:width], position, p.position.theta) if width else head[:0] for head in entries["key"]]
        key = torch.stack([torch.cat((part, k[width:])) for part, k in zip(turned, entries["key"], strict=True)])
        if p.qk_norm and p.qk_norm_place == "after":
            key = self.normed_heads(key, "key_norms.0")
        return entries | {"key": key}

    def key_value(self, entries, g):
        if not self.latents:
            return entries["key"][g], entries["value"]
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
        if vectors[0].dim() == 2:  # the keys of all heads, which share the maps
            return torch.stack([self.pool(list(of_head), name) for of_head in zip(*vectors, strict=True)])
        prefix = f"patterns.compression.pool.{name}"
        w = {n: self.weights[f"{prefix}.{n}"] for n in ("offset", "hidden.weight", "pooled.weight")}
        z = w["hidden.weight"] @ torch.cat([v + p for v, p in zip(vectors, w["offset"], strict=True)])
        return w["pooled.weight"] @ (z / (1 + torch.exp(-z)))

    def attend(self, q, keys_values, h=None):
        """Softmax attention of one query; zeros and no weights where there is nothing to see.

        h: its head, for patterns that can have sinks.
        """
        if not keys_values:
            return torch.zeros(self.projection.v_head_dim, dtype=torch.float64), []
        scale = self.projection.score_scale or 1 / math.sqrt(len(q))
        scores = [float(q @ k) * scale for k, _ in keys_values]
        if cap := self.projection.score_softcap:
            scores = [cap * math.tanh(s / cap) for s in scores]
        scores = [math.exp(s) for s in scores]
        sink = math.exp(float(self.weights["projection.sinks"][h])) if self.projection.sinks else 0.0
        weights = [s / (sum(scores) + sink) for s in scores]
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
        if kind == "moba":
            size = self.config.pattern(kind).selection_block
            tokens = [s for m in self.liked(t, g) for s in range(m * size, (m + 1) * size) if s <= t]
        if kind == "selection":
            size = self.config.pattern(kind).selection_block
            tokens = [s for m in self.chosen(t, g) for s in range(m * size, (m + 1) * size) if s <= t]
        return self.attend(self.query(t, h), [self.token(s, g, which) for s in tokens], h)[0]

    def liked(self, t, g):
        """The query's own block, and the past ones whose mean keys have the largest share of the group's softmax."""
        pattern, which = self.config.pattern("moba"), self.set_of("moba")
        size, heads = pattern.selection_block, self.projection.n_heads // self.projection.n_kv_heads
        own, whole = t // size, (t + 1) // size
        means = [sum(self.token(s, g, which)[0] for s in range(m * size, (m + 1) * size)) / size for m in range(whole)]
        importance = [0.0] * whole
        for h in range(g * heads, (g + 1) * heads):
            for m, weight in enumerate(self.attend(self.query(t, h), [(k, k[: len(k)]) for k in means])[1]):
                importance[m] += weight
        past = sorted(range(min(own, whole)), key=lambda m: (-importance[m], m))
        return sorted([*past[: pattern.n_selected - 1], own])

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
                logits = w["gate.weight"] @ self.x[t] + w.get("gate.bias", 0.0)
                gate = 1 / (1 + torch.exp(-logits.view(heads, n_patterns)))
            row = []
            for h in range(heads):
                g = h // (heads // self.projection.n_kv_heads)
                parts = [self.pattern(pattern.kind, t, h, g) for pattern in self.config.patterns]
                row.append(sum(gate[h, i] * part for i, part in enumerate(parts)))
            attended = torch.stack(row)
            if self.config.output_gate:
                logits = (w["output_gate.weight"] @ self.x[t]).view(heads, -1)
                attended = attended / (1 + torch.exp(-logits))
            rows.append(w["output.weight"] @ attended.flatten() + w.get("output.bias", 0))
        return torch.stack(rows)


def test_every_block_equals_the_loops(grid_case, make, noise):
    """27 tokens: seven blocks of four, the last of them ragged, and more selection blocks than are chosen."""
    block, x_TC = make(*grid_case), noise(27, 24)
    expected = Loops(block, x_TC).output()
    torch.testing.assert_close(block(x_TC[None], Context.for_tokens(1, 27))[0], expected, rtol=0, atol=1e-10)
