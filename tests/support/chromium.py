"""Chromium without a screen, driven by Selenium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

PROGRAMS = tuple(map(shutil.which, ("chromium", "chromedriver")))
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    # Otherwise it asks for hosts that no test needs.
    *("--disable-quic", "--disable-background-networking", "--disable-component-update"),
)


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser that keeps its console's messages."""
    options = webdriver.ChromeOptions()
    for flag in _FLAGS:
        options.add_argument(flag)
    options.binary_location, driver = PROGRAMS
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def select(browser: webdriver.Chrome, name: str, text: str) -> None:
    """Chooses an option of a list, found by its name or id, as a user does."""
    Select(browser.find_element(By.CSS_SELECTOR, f"#{name}, [name={name}]")).select_by_visible_text(
        text
    )


def texts(browser: webdriver.Chrome, selector: str) -> list[str]:
    """What is seen of the elements of a selector; those that are hidden are left out."""
    script = """return [...document.querySelectorAll(arguments[0])]
        .filter((shown) => shown.checkVisibility()).map((shown) => shown.innerText.trim())"""
    return browser.execute_script(script, selector)


def width(browser: webdriver.Chrome, pixels: int) -> None:
    """Makes the window so wide, as a telephone's is."""
    size = {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": pixels < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
