"""What transformers runs after `from_pretrained(folder, trust_remote_code=True)`: the model is in attention-zoo."""

try:
    from zoo.export.transformers_model import ZooConfig, ZooForCausalLM
except ImportError as error:  # a package of another kind is called zoo on the package index
    raise ImportError(f"this model needs the package attention-zoo, which cannot be imported: {error}") from error

__all__ = ["ZooConfig", "ZooForCausalLM"]
