"""Leaves out what reads DICOM where that cannot be installed."""

from __future__ import annotations

from tests.support.dicom import READABLE

collect_ignore = [] if READABLE else ["test_dicom.py", "test_untrusted_data.py", "test_gatekeeper.py"]
