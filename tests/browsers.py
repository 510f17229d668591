"""A real browser for tests that carry the marker `browser`."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's Chromium, or the one that BROWSER names, driven by Playwright. Without them the tests are skipped, or
    fail where BROWSER_REQUIRED is set."""
    path = os.environ.get("BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
    missing = None
    if path is None:
        missing = "no Chromium: apt-get install chromium, or name one in BROWSER"
    elif importlib.util.find_spec("playwright") is None:
        missing = "no Playwright: pip install '.[browser]' (its own browsers are not needed)"
    if missing is not None:
        pytest.fail(missing) if os.environ.get("BROWSER_REQUIRED") else pytest.skip(missing)
    import playwright.sync_api as playwright

    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()
