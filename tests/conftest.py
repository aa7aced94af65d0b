"""Fixtures of all tests in this folder."""

import os
from pathlib import Path

import pytest
from filelock import FileLock

from tests.published import make_all


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """The folder with qwen-untied, qwen-tied, internvl and judge in it, made once and shared by pytest-xdist's workers.

    Tests must not change it: they take `copied` from tests/published.py.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "published"
    with FileLock(f"{root}.lock"):
        if not root.is_dir():
            make_all(root.with_suffix(".part")).rename(root)
    return root
