"""Embedding: adding saliency outputs to a model."""

from ov_recipro.embedding.into_onnx import embed_onnx, save_onnx
from ov_recipro.embedding.into_openvino import embed, save

__all__ = ["embed", "embed_onnx", "save", "save_onnx"]
