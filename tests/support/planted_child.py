"""An isolated model's process with faults: images of one colour make it crash, hang or swell."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import numpy as np

from ov_recipro.isolation import child
from ov_recipro.runtimes import openvino_runtime

_RUNTIME: Any = openvino_runtime
_run = _RUNTIME.run_request


def planted(request: Any, values: Any) -> Any:
    """Run a request, unless its image is of one colour."""
    planes = np.asarray(values[0])[0]
    if planes.ndim == 3 and not np.ptp(planes, axis=(1, 2)).any():
        colour = planes[:, 0, 0]
        match int(colour.argmax()) if np.ptp(colour) else 3:  # red, green, blue, or grey
            case 0:
                ctypes.string_at(0)
            case 1:
                time.sleep(1000)
            case 2:
                np.ones(1 << 40, np.uint8)
            case _:
                raise RuntimeError("Failed to allocate 1 bytes of memory")
    return _run(request, values)


if __name__ == "__main__":
    _RUNTIME.run_request = planted
    child.main()
