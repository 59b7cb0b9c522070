"""Projects to begin with: code, a test and a README that come with fledge, made one's own in a new folder."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path

from protocol.errors import ConfigError

TEMPLATES = {
    "torch": "a model in torch, its data and a loss",
    "monai": "a network of MONAI that segments images",
    "sklearn": "an estimator of scikit-learn; no torch needed",
    "strategy": "how the hub merges updates",
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*([_-][A-Za-z0-9]+)*")
_ENDING = ".in"


def new_project(folder: Path, template: str) -> list[str]:
    """Make a project of a template in a new folder, whose name becomes the project's; returns the files' names.

    Raises:
        ConfigError: there is no such template, the folder is in use, or its name is none for a project.
    """
    if template not in TEMPLATES:
        raise ConfigError(f"there is no template {template!r}; there are: {', '.join(TEMPLATES)}")
    name = folder.resolve().name
    module = name.lower().replace("-", "_")
    if len(name) > 64 or not _NAME.fullmatch(name) or keyword.iskeyword(module):
        raise ConfigError(f"{name!r} is no name for a project; use letters, digits and - between them, at most 64")
    if _is_taken(module):
        raise ConfigError(
            f"a project called {name!r} would hide the module {module!r} of Python or a package; call it {name}-study"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already, and nothing is ever overwritten; name a new folder")
    texts = {
        _called(each, module): _own(each.read_text(encoding="utf-8"), name, module)
        for each in sorted(_template(template).iterdir(), key=lambda entry: entry.name)
    }
    for file, text in texts.items():
        place = folder / file
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("x", encoding="utf-8") as opened:
                opened.write(text)
        except OSError as error:
            raise ConfigError(f"{place}: {error.strerror}; name a folder that can be made") from error
    return list(texts)


def _is_taken(module: str) -> bool:
    if module in sys.stdlib_module_names or module == "digits_task":
        return True
    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        return True
    # What lies in the present folder alone is no package that is installed.
    return found is not None and found.origin is not None


def _template(name: str) -> Traversable:
    return files("fledge") / "projects" / name


def _called(entry: Traversable, module: str) -> str:
    name = entry.name.removesuffix(_ENDING)
    return {"module.py": f"{module}.py", "test.py": f"test_{module}.py"}.get(name, name)


def _own(text: str, name: str, module: str) -> str:
    for word, value in (("name", name), ("module", module), ("strategy", module)):
        text = text.replace(f"{{{word}}}", value)
    return text
