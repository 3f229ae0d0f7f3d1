"""Export Keras applications with randomised weights through tf2onnx: NHWC images, NCHW features.

Run it in an environment with ``tensorflow-cpu`` and ``tf2onnx``:

    python tools/export_keras.py build/zoo
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf2onnx

NETWORKS = ("MobileNetV2", "InceptionV3", "ResNet50", "DenseNet121", "Xception", "NASNetMobile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for name in NETWORKS:
        make = getattr(tf.keras.applications, name)
        network = make(weights=None, input_shape=(96, 96, 3), classes=100)
        for layer in network.layers:
            if type(layer).__name__ == "BatchNormalization":
                values = layer.get_weights()
                low_high = [(0.7, 1.3), (-0.3, 0.3), (-0.3, 0.3), (0.6, 1.4)][-len(values) :]
                layer.set_weights(
                    [random.uniform(*r, v.shape) for r, v in zip(low_high, values, strict=True)]
                )
        signature = (tf.TensorSpec((None, 96, 96, 3), tf.float32, name="image"),)

        @tf.function(input_signature=signature)
        def call(image: tf.Tensor, network: tf.keras.Model = network) -> tf.Tensor:
            return network(image, training=False)

        path = folder / f"{name}.tf2onnx.onnx"
        tf2onnx.convert.from_function(call, signature, opset=17, output_path=str(path))
        print(path.name, flush=True)


if __name__ == "__main__":
    main()
