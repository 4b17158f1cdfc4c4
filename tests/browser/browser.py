"""A headless Chromium that reports the console messages and requests of a page."""

import base64
import json
import shutil
import sys
import time

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
]  # fmt: skip


def waited(holds, what):
    """Waits until a condition holds."""
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end, f"still not so: {what}"
        time.sleep(0.05)


def _program(*names):
    found = next(filter(None, map(shutil.which, names)), None)
    return found or sys.exit(
        f"none of {', '.join(names)} is installed: Debian has chromium and chromium-driver"
    )


class Browser:
    def __init__(self, profile):
        options = webdriver.ChromeOptions()
        options.binary_location = _program("chromium", "chromium-browser", "google-chrome")
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(_program("chromedriver")))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.driver.quit()

    def look(self, scheme, width, height, mobile):
        """Sets colour scheme and window size."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def open(self, page):
        """Opens a file, and returns the seconds until its layout is done."""
        begun = time.perf_counter()
        self.driver.get(page.as_uri())
        self.run("return document.body.offsetHeight")
        return time.perf_counter() - begun

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def click(self, element):
        """Clicks with the mouse, in the middle of the element."""
        webdriver.ActionChains(self.driver).move_to_element(element).click().perform()

    def screenshot(self):
        """Returns the whole page as PNG."""
        width, height = self.run("return [innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        taken = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
        )
        return base64.b64decode(taken["data"])

    def said(self):
        """Returns console messages and requested addresses since the last call."""
        messages = [entry["message"] for entry in self.driver.get_log("browser")]
        requests = []
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                requests.append(event["params"]["request"]["url"])
        return messages, requests
