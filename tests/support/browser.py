"""Debian's Chromium without a window, driven by Selenium through Debian's chromedriver; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from speeds import require
from waiting import eventually

SIZE = (1500, 640)


class Browser:
    """One window."""

    def __init__(self, driver: webdriver.Chrome, base: str) -> None:
        self.driver = driver
        self._base = base

    def open(self, path: str, shows: str) -> str:
        """The text that a person sees on a page, once it has come to show ``shows``."""
        self.driver.get(self._base + path)
        return self.until(shows)

    def until(self, shows: str) -> str:
        """The text of the page it has open, once it shows this; without loading it again."""
        eventually(lambda: shows in self.text, f"{shows!r} on {self.driver.current_url}: {self.text}")
        return self.text

    @property
    def text(self) -> str:
        """What is visible, its words separated by spaces."""
        shown: object = self.driver.execute_script("return document.body.innerText")  # pyright: ignore[reportUnknownMemberType] - untyped
        return " ".join(str(shown).split())

    def click(self, text: str) -> None:
        """Follow a link or press a tab by its text."""

        def clicked() -> bool:
            try:
                self.driver.find_element(By.LINK_TEXT, text).click()
            except (StaleElementReferenceException, NoSuchElementException):
                return False  # the page was just drawing it anew
            return True

        eventually(clicked, f"a link {text!r}")

    def complaints(self) -> list[str]:
        """What its console has said of errors since it was last asked."""
        entries = self.driver.get_log("browser")  # pyright: ignore[reportUnknownVariableType] - untyped
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]  # pyright: ignore[reportUnknownVariableType]


@contextmanager
def browser(base: str) -> Generator[Browser]:
    """A window for pages below ``base``; it ends afterwards."""
    options = Options()
    options.binary_location = require("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.add_argument(f"--window-size={SIZE[0]},{SIZE[1]}")
    options.set_capability("goog:loggingPrefs", {"browser": "SEVERE"})
    driver = webdriver.Chrome(options=options, service=Service(require("chromedriver")))
    try:
        driver.set_page_load_timeout(60)
        yield Browser(driver, base)
    finally:
        driver.quit()
