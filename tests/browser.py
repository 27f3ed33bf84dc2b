"""A real Chromium without a window, for the tests of pages; driven by Selenium through Debian's own chromedriver.

Both come from one source package, so the driver always fits the browser. Playwright would bring 165 MB with a Node.js
of its own, and promises to work with no Chromium but the one that it downloads.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from servers import chromium_programs

WINDOW = (860, 860)


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Chrome]:
    """Give a browser with a fresh profile, and end it.

    Args:
        profile: An empty folder for the profile.

    Raises:
        NodeUnavailable: There is no Chromium, or no driver for it.
    """
    chromium, driver = chromium_programs()
    options = ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        f"--user-data-dir={profile}",
        f"--window-size={WINDOW[0]},{WINDOW[1]}",
        "--disable-dev-shm-usage",  # it is small in containers
        "--no-proxy-server",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
    ):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium refuses to run as root with one
    browser = Chrome(options, ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()
