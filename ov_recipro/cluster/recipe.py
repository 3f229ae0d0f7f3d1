"""An explainer taken apart to travel: a machine fetches its files once, each actor rebuilds it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ov_recipro.cluster import pool
from ov_recipro.cut.bundle import SUFFIX, Bundle, new_folder, open_bundle
from ov_recipro.errors import DeviceError, ModelError
from ov_recipro.explainer import Explainer
from ov_recipro.splitting.bundle_cache import bundles, cached_or_created


@dataclass(frozen=True)
class Recipe:
    """What it takes to make an explainer elsewhere.

    Attributes:
        files: reference to the bundle's files, by name, in the object store.
        key: identifies the bundle.
        options: of `Explainer`.
        plan: the plan that every explainer must run.
        cpus: the most threads to run.
    """

    files: Any
    key: str
    options: dict[str, Any]
    plan: str
    cpus: int

    def explainer(self) -> Explainer:
        """Make the explainer, in an actor.

        Raises:
            DeviceError: it can't be made here, or would run another plan.
        """
        os.environ["OMP_NUM_THREADS"] = str(self.cpus)
        cv2.setNumThreads(self.cpus)
        folder = bundles() / f"{self.key}{SUFFIX}"
        bundle = cached_or_created(folder, lambda: self._unpacked(folder))
        explainer = Explainer(bundle, **self.options)
        if explainer.plan.name != self.plan:
            raise DeviceError(
                f"A machine would run the plan '{explainer.plan.name}' ({explainer.plan_reason}), "
                f"but the machine that started the run uses '{self.plan}'."
            )
        return explainer

    def _unpacked(self, folder: Path) -> Bundle:
        with new_folder(folder) as work:
            for name, data in pool.get(self.files).items():
                (work / name).write_bytes(memoryview(data))
        return open_bundle(folder)


def recipe_of(explainer: Explainer, cpus: int) -> Recipe:
    """Take an explainer apart; its files go into the object store.

    Args:
        explainer: ready to run here; all others will run its plan.
        cpus: threads of each explainer that is rebuilt.

    Raises:
        ModelError: a file of its bundle can't be read.
    """
    folder = explainer.bundle.folder
    try:
        contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    except OSError as error:
        raise ModelError(f"{folder}: {error.strerror or error}.") from error
    digest = hashlib.sha256()
    for name, data in contents.items():
        digest.update(f"{name} {len(data)}\n".encode())
        digest.update(data)
    arrays = {name: np.frombuffer(data, np.uint8) for name, data in contents.items()}
    plan = explainer.plan.name
    return Recipe(pool.put(arrays), digest.hexdigest()[:24], explainer.options(), plan, cpus)
