"""Print the minimum versions that pyproject.toml declares, as constraints for pip.

python tools/floors.py > floors.txt && pip install --constraint floors.txt '.[hub,ort,ray]'
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for text in [*project["dependencies"], *extras["hub"], *extras["ort"], *extras["ray"]]:
    requirement = Requirement(text)
    floors = [each.version for each in requirement.specifier if each.operator == ">="]
    print(f"{requirement.name}=={floors[0]}")
