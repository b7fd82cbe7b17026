"""The decoder: embedding, layers, norms, head, its loss, its initial weights, its cache."""

from zoo.model.decoder import Decoder, build_model

__all__ = ["Decoder", "build_model"]
