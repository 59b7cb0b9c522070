"""`pytestmark` of tests that use MONAI."""

from __future__ import annotations

import pytest

MONAI = [
    pytest.mark.usefixtures("imports"),
    # MONAI's own, of torch's and of its own parts that will go, and of lists in the place of sequences.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*sequence was not ordered:UserWarning"),
]
