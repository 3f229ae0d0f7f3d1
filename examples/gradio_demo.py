"""A page to try a model with: an image and a class in, predictions and heat out.

pip install gradio ov-recipro
python examples/gradio_demo.py [MODEL]
"""

from __future__ import annotations

import sys
from typing import Any

import gradio as gr
import numpy as np

import ov_recipro as recipro


def demo(explainer: recipro.Explainer) -> gr.Blocks:
    """Return the page."""

    def explain(image: np.ndarray | None, target: str) -> tuple[Any, dict[str, float], str]:
        if image is None:
            raise gr.Error("Choose an image.")
        try:
            found = explainer(image[:, :, ::-1].copy(), targets=target or "top1")  # BGR
        except recipro.ReciproError as error:
            raise gr.Error(str(error)) from error
        cells = found.raw[0].size
        remarks = found.targets[0].remarks(cells, explainer.score, explainer.mask)
        scores = {str(each.label or each.index): each.score for each in found.predictions}
        return found.overlay()[:, :, ::-1], scores, "\n\n".join(remarks)

    return gr.Interface(
        explain,
        [gr.Image(label="Image"), gr.Textbox("top1", label="Class, or top1")],
        [gr.Image(label="Heat"), gr.Label(label="Predictions"), gr.Markdown()],
        title=f"Why {explainer.bundle.manifest.source.name} said what it said",
        flagging_mode="never",
    )


if __name__ == "__main__":
    demo(recipro.Explainer(*sys.argv[1:2])).launch()
