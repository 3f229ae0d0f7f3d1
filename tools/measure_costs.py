"""The table of costs in docs/performance.md: plain inference against explaining, model by model.

The ResNets and VGG-16 are those that `tools/export_zoo.py --size 224` exports.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ov_recipro.bench import measure
from ov_recipro.cli.tables import markdown
from ov_recipro.options import Cut, PlanName, Running
from ov_recipro.sources.default_model import bundled_model
from ov_recipro.splitting.bundle_cache import cached_split

ROWS: Sequence[tuple[str, str, str, str, PlanName]] = (
    ("EfficientNet-Lite0", "", "auto", "CPU", "auto"),
    ("EfficientNet-Lite0", "", "auto", "CPU", "stream"),
    ("EfficientNet-Lite0", "", "auto", "ort-cpu", "auto"),
    ("EfficientNet-Lite0", "", "blocks.14", "CPU", "auto"),
    ("EfficientNet-Lite0", "", "blocks.14", "CPU", "stream"),
    ("EfficientNet-Lite0", "", "blocks.14", "ort-cpu", "auto"),
    ("EfficientNet-Lite0", "", "blocks.12", "CPU", "auto"),
    ("ResNet-50", "resnet50", "auto", "CPU", "auto"),
    ("ResNet-50", "resnet50", "layer3", "CPU", "auto"),
    ("ResNet-50", "resnet50", "layer3", "CPU", "stream"),
    ("ResNet-50", "resnet50", "auto", "ort-cpu", "auto"),
    ("ResNet-50", "resnet50", "layer3", "ort-cpu", "auto"),
    ("ResNet-18", "resnet18", "layer3", "CPU", "auto"),
    ("ResNet-18", "resnet18", "layer3", "ort-cpu", "auto"),
    ("VGG-16", "vgg16", "features.29", "CPU", "auto"),
)
HEADER = (
    "model, cut", "grid", "device", "plan", "plain ms", "explain ms", "ratio", "bound",
    "plain MB", "explain MB",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoo", type=Path, help="folder of the exported models")
    parser.add_argument("--runs", type=int, default=25)
    arguments = parser.parse_args()
    table: list[Sequence[str]] = [HEADER]
    for title, name, layer, device, plan in ROWS:
        model = arguments.zoo / f"{name}.onnx" if name else bundled_model()
        if not model.is_file():
            print(f"{model} is not there: left out")
            continue
        bundle = cached_split(model, Cut(layer))
        row = measure(bundle.folder, Running(device, plan=plan), arguments.runs)
        table.append(
            (
                f"{title}, `{layer}`",
                row.grid,
                row.device,
                row.plan,
                f"{row.plain_ms:.1f}",
                f"{row.explain_ms:.1f}",
                f"{row.ratio:.2f}",
                "" if row.bound is None else f"{row.bound:.2f}",
                f"{row.plain_rss_mb:.0f}",
                f"{row.peak_rss_mb:.0f}",
            )
        )
    print(markdown(table))


if __name__ == "__main__":
    main()
