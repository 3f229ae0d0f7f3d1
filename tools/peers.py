"""Run one explainer on one model, in an environment of its own: the worker of `measure_peers.py`.

Each is used as the first example of its own documentation does. Besides the explainer, only NumPy
is needed. What was found is printed as the last line, in JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

_WARM_UP, _LEAST, _SECONDS, _SLOW = 2, 3, 20.0, 5.0
"""Turns that do not count; turns at least; time for all; a call as long as this is made once."""


@dataclass
class Opened:
    """A model in a library.

    Attributes:
        plain: one inference.
        explain: one explanation, as documented; None where only plain inference was asked for.
        saliency: what `explain` gave -> the map [H,W] before it is drawn, at its own grid.
        how: what is done, in a few words; node: where it was cut.
        stages: other calls that are timed by the way.
    """

    plain: Callable[[], Any]
    explain: Callable[[], Any] | None = None
    saliency: Callable[[Any], np.ndarray] = np.asarray
    how: str = ""
    node: str = ""
    stages: dict[str, Callable[[], Any]] = field(default_factory=dict)


def ov_recipro(model: str, image: np.ndarray, target: int, extra: str, only_plain: bool) -> Opened:
    from ov_recipro import Explainer
    from ov_recipro.options import Cut, Running
    from ov_recipro.runtimes import plain_runner
    from ov_recipro.splitting.bundle_cache import cached_split

    running = Running(precision="native" if extra == "native" else "f32")
    bundle = cached_split(Path(model), Cut())
    plain = plain_runner(bundle, running)
    if only_plain:
        return Opened(lambda: plain(image))
    explainer = Explainer(bundle, device=running)
    manifest = bundle.manifest
    targets: Any = "top1" if manifest.task == "detector" else target
    return Opened(
        lambda: plain(image),
        lambda: explainer.explain_tensor(image, targets),
        lambda explanation: explanation.raw[0],
        f"mask {explainer.mask}, plan {explainer.plan.name}",
        manifest.cut.tensor,
    )


def openvino_xai(
    model: str, image: np.ndarray, target: int, extra: str, only_plain: bool
) -> Opened:
    import openvino as ov
    import openvino_xai as xai
    from openvino_xai.inserter.model_parser import IRParserCls
    from openvino_xai.methods.black_box.base import BlackBoxXAIMethod

    compiled = ov.Core().compile_model(model, "CPU")
    if only_plain:
        return Opened(lambda: compiled(image))
    options: dict[str, Any] = {"task": xai.Task.CLASSIFICATION}
    if extra.startswith("heads:"):
        heads = extra.removeprefix("heads:").split(",")
        options = {"task": xai.Task.DETECTION, "target_layer": heads}
    elif extra == "detection":
        options = {"task": xai.Task.DETECTION}
    elif extra == "postprocess":
        options["postprocess_fn"] = lambda outputs: outputs[0]
    explainer = xai.Explainer(model, **options)
    method = explainer.method
    black = isinstance(method, BlackBoxXAIMethod)
    node = ""
    if type(method).__name__ == "ReciproCAM":
        whole = ov.Core().read_model(model)
        node = IRParserCls.get_target_node(whole, method.model_type).get_friendly_name()

    def white_map() -> np.ndarray:
        return method.generate_saliency_map(image)[0, target]

    def saliency(_: Any) -> np.ndarray:
        if black:
            return method.generate_saliency_map(image, target_indices=[target])[target]
        return white_map()

    return Opened(
        lambda: compiled(image),
        lambda: explainer(data=image, targets=target),
        saliency,
        f"{type(method).__name__}, {'black' if black else 'white'} box, {_precision(compiled)}",
        node,
        {} if black else {"map alone": white_map},
    )


def inserted_xai(
    model: str, image: np.ndarray, target: int, extra: str, only_plain: bool
) -> Opened:
    import openvino as ov
    import openvino_xai as xai

    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(model, "CPU", precision)
    if only_plain:
        return Opened(lambda: compiled(image))
    explained = xai.insert_xai(
        ov.Core().read_model(model), xai.Task.CLASSIFICATION, embed_scaling=extra != "raw"
    )
    explaining = ov.Core().compile_model(explained, "CPU", precision)
    return Opened(
        lambda: compiled(image),
        lambda: explaining(image),
        lambda outputs: outputs["saliency_map"][0, target],
        f"insert_xai, {'not scaled, ' * (extra == 'raw')}{_precision(explaining)}",
    )


def _precision(compiled: Any) -> str:
    """Return in which precision a model runs on this CPU by OpenVINO's own choice."""
    return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())


def dianna(model: str, image: np.ndarray, target: int, extra: str, only_plain: bool) -> Opened:
    import onnxruntime as ort

    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def plain() -> Any:
        return session.run(None, {name: image})

    if only_plain:
        return Opened(plain)
    from dianna import explain_image

    method = extra or "RISE"

    def explain() -> np.ndarray:
        return explain_image(model, image[0], method, labels=[target], axis_labels={0: "channels"})

    return Opened(plain, explain, lambda maps: maps[0], method)


def _module(name: str, image: np.ndarray) -> tuple[Any, Any, Callable[[], Any]]:
    import torch

    try:
        import torchvision
    except RuntimeError:  # built for CUDA beside a torch for CPUs: its kernels are not used here
        library = torch.library.Library("torchvision", "DEF")
        for operation in ("nms", "qnms", "roi_align", "qroi_align", "ps_roi_align", "roi_pool"):
            library.define(f"{operation}(Tensor input) -> Tensor")
        import torchvision

    torch.manual_seed(0)
    module = torchvision.models.get_model(name).eval()
    tensor = torch.from_numpy(image)

    def plain() -> Any:
        with torch.inference_mode():
            return module(tensor)

    return module, tensor, plain


def torchcam(model: str, image: np.ndarray, target: int, _: str, only_plain: bool) -> Opened:
    module, tensor, plain = _module(model, image)
    if only_plain:
        return Opened(plain)
    from torchcam.methods import LayerCAM

    extractor = LayerCAM(module)

    def explain() -> Any:
        return extractor(target, module(tensor))

    where = ", ".join(extractor.target_names)
    return Opened(
        plain, explain, lambda maps: maps[0][0].detach().numpy(), f"LayerCAM at {where}", where
    )


def grad_cam(model: str, image: np.ndarray, target: int, _: str, only_plain: bool) -> Opened:
    module, tensor, plain = _module(model, image)
    if only_plain:
        return Opened(plain)
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cam = GradCAM(model=module, target_layers=[module.layer4[-1]])

    def explain() -> np.ndarray:
        return cam(input_tensor=tensor, targets=[ClassifierOutputTarget(target)])

    return Opened(plain, explain, lambda maps: maps[0], "GradCAM at layer4[-1], named by the user")


def captum(model: str, image: np.ndarray, target: int, extra: str, only_plain: bool) -> Opened:
    module, tensor, plain = _module(model, image)
    if only_plain:
        return Opened(plain)
    import torch
    from captum.attr import IntegratedGradients, LayerGradCam

    if extra == "LayerGradCam":
        layer = LayerGradCam(module, module.layer4)

        def explain() -> Any:
            return layer.attribute(tensor, target=target)
    else:
        integrated, black = IntegratedGradients(module), torch.zeros_like(tensor)

        def explain() -> Any:
            return integrated.attribute(
                tensor, black, target=target, return_convergence_delta=True
            )[0]

    how = "LayerGradCam at layer4" if extra else "IntegratedGradients, 50 steps"
    return Opened(plain, explain, lambda given: given[0].sum(0).detach().numpy(), how)


PEERS: dict[str, tuple[str, Callable[..., Opened]]] = {
    "ov-recipro": ("ov-recipro", ov_recipro),
    "openvino-xai": ("openvino_xai", openvino_xai),
    "openvino-xai-inserted": ("openvino_xai", inserted_xai),
    "dianna": ("dianna", dianna),
    "torchcam": ("torchcam", torchcam),
    "grad-cam": ("grad-cam", grad_cam),
    "captum": ("captum", captum),
}


def in_turns(opened: Opened, turns: int) -> tuple[dict[str, list[float]], Any]:
    """Call one after the other, again and again.

    Returns:
        Milliseconds of plain inference, explaining and its stages; what was explained last.
    """
    calls = {"plain": opened.plain, "explain": opened.explain, **opened.stages}
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    result: Any = None
    for turn in range(-_WARM_UP, turns):
        slow = False
        for name, call in calls.items():
            started = time.perf_counter()
            given = call()
            taken = time.perf_counter() - started
            slow |= taken > _SLOW
            if turn >= 0 or taken > _SLOW:
                times[name].append(1e3 * taken)
            if name == "explain":
                result = given
        counted = len(times["explain"])
        if slow or (counted >= _LEAST and time.perf_counter() - began > _SECONDS):
            break
    while len(times["plain"]) < _LEAST:
        started = time.perf_counter()
        opened.plain()
        times["plain"].append(1e3 * (time.perf_counter() - started))
    return times, result


def peak_mb() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("model")
    parser.add_argument("image", type=Path)
    parser.add_argument("--target", type=int, required=True)
    parser.add_argument("--extra", default="")
    parser.add_argument("--do", choices=["time", "plain", "explain"], default="time")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--map", type=Path)
    arguments = parser.parse_args()
    distribution, open_model = PEERS[arguments.peer]
    found: dict[str, Any] = {"version": version(distribution)}
    image = np.load(arguments.image)
    try:
        only_plain = arguments.do == "plain"
        opened = open_model(arguments.model, image, arguments.target, arguments.extra, only_plain)
        found |= {"how": opened.how, "node": opened.node}
        if arguments.do == "time":
            found["times"], result = in_turns(opened, arguments.turns)
            if arguments.map:
                np.save(arguments.map, opened.saliency(result))
        else:
            call = opened.plain if only_plain else opened.explain
            call()
        found["peak_mb"] = peak_mb()
    except Exception as error:  # a refusal is a result
        found["refused"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
