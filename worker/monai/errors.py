"""What goes wrong in a MONAI bundle, in one sentence that says what to do. It stays in the site's own case."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping

import torch

from protocol.errors import DataError, FledgeError, OutOfMemory, TrainingError

_Say = Callable[[re.Match[str]], str]
_KNOWN: tuple[tuple[type[TrainingError], str, _Say], ...] = (
    (
        DataError,
        r"No such file(?: or no access)?[^\n]*?'([^'\n]+)'|no such file or directory: '?([^'\n]+)'?|"
        r"cannot find a suitable reader for file: ([^\n]+?)\.\n",
        lambda m: (
            f"{m[1] or m[2] or m[3]} cannot be read, and the bundle's list of data names it; put the file there, "
            "or correct dataset_dir or the list"
        ),
    ),
    (
        DataError,
        r"Unexpected UTF-8 BOM|'utf-8' codec can't decode byte 0xf[ef] in position 0",
        lambda m: (
            "the bundle's list of data is in UTF-16 or begins with a byte order mark, which MONAI does not read; save "
            "it as UTF-8 without one"
        ),
    ),
    (
        DataError,
        r"expected input\[[^\]]*\] to have (\d+) channels, but got (\d+) channels",
        lambda m: (
            f"the bundle's network takes images with {m[1]} channels, and an image here has {m[2]}; give it the "
            "images it was made for"
        ),
    ),
    (
        DataError,
        r"running_mean should contain (\d+) elements not (\d+)",
        lambda m: f"the bundle's network takes {m[2]} channels, and an image here has {m[1]}",
    ),
    (
        DataError,
        r"Target (-?\d+) is out of bounds|index (-?\d+) is out of bounds for dimension \d+ with size (\d+)|"
        r"class values must be (?:less|smaller) than|device-side assert",
        lambda m: (
            f"a label here has {f'the value {m[1] or m[2]}' if m[1] or m[2] else 'a value'} that is none of the "
            "classes that the bundle's network tells apart; correct the labels"
        ),
    ),
    (
        DataError,
        r"num_samples should be a positive integer value, but got num_samples=0|Input data has zero size|"
        r"dataset is empty|zero-size array|empty dataset",
        lambda m: "the bundle finds no training data below dataset_dir; correct it in the site's options",
    ),
    (
        DataError,
        r"Expected more than 1 (?:value per channel|spatial element) when training",
        lambda m: (
            "a batch has a single example of a single value per channel, by which the network's norm cannot be "
            "trained; make the batch or the crop larger with overrides in the site's options, or add images"
        ),
    ),
    (
        TrainingError,
        r"No module named '([^']+)'|cannot (?:locate|import) (?:class or function path: )?'?([\w.]+)",
        lambda m: f"the bundle needs {m[1] or m[2]}, which is not installed here; install it where the worker runs",
    ),
    (
        TrainingError,
        r"the referring item `@([^`]+)` is not defined|id='([^']+)' is not found in the config",
        lambda m: f"the bundle's configuration refers to {m[1] or m[2]}, which it does not have",
    ),
)
_MEMORY = (
    *("out of memory", "can't allocate memory", "Cannot allocate memory", "unable to mmap"),
    # What torch says of its loading processes that the kernel ended.
    *("is killed by signal: Killed", "is killed by signal: Bus error"),
)
_TRANSFORM = re.compile(r"applying transform <(?:[\w.]*\.)?(\w+) object")
_IN_LOADER = re.compile(r"Original Traceback.*?^(?:\w+\.)*(\w+(?:Error|Exception)): ([^\n]+)", re.DOTALL | re.MULTILINE)
_EXAMPLE = ("data_i", "item")
"""What MONAI's datasets call an example of their list while they load it."""


def explained(error: BaseException, doing: str) -> FledgeError:
    """One of our errors for whatever a bundle raised while `doing` something.

    Errors of ours stay as they are. The text of the innermost cause is looked at first, and the whole chain of them.
    """
    chain = _chain(error)
    for each in chain:
        if isinstance(each, FledgeError):
            return each
    if any(isinstance(each, MemoryError | torch.OutOfMemoryError) for each in chain) or any(
        word in str(each) for each in chain for word in _MEMORY
    ):
        return OutOfMemory(
            f"the memory did not suffice for {doing}; make the batch or the crop smaller with overrides in the site's "
            "options, or give the worker more memory"
        )
    for each in reversed(chain):
        for kind, pattern, say in _KNOWN:
            if found := re.search(pattern, str(each), re.IGNORECASE):
                return kind(f"{doing} failed: {say(found)}")
    name, told = _innermost(chain)
    for each in chain:
        if found := _TRANSFORM.search(str(each)):
            given = _given(chain)
            where = f"{found[1]} of {given}" if given else found[1]
            return DataError(f"{doing} failed in {where}: {name}: {told}; look at what this transform was given")
    return TrainingError(f"{doing} failed: {name}: {told}")


def _innermost(chain: list[BaseException]) -> tuple[str, str]:
    """The innermost cause's type and first line; a loading process tells its errors in one long text."""
    text = str(chain[-1]).strip()
    if found := _IN_LOADER.search(text):
        return found[1], found[2]
    return type(chain[-1]).__name__, text.partition("\n")[0]


def _given(chain: list[BaseException]) -> str:
    """The files of the example that MONAI was about to load, as its own frames know them; empty if they do not."""
    for error in chain:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if str(frame.f_globals.get("__name__")).startswith("monai.data."):
                for variable in _EXAMPLE:
                    example = frame.f_locals.get(variable)
                    if isinstance(example, Mapping) and (files := [v for v in example.values() if isinstance(v, str)]):
                        return " and ".join(files)
    return ""


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found
