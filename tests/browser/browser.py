"""The page as its checks see it: a browser, and elements by their stable names."""

import struct
import time
import zlib

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

BROWSER = "/usr/bin/chromium"
DRIVER = "/usr/bin/chromedriver"
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Seconds. A demo job takes a few; the deadlines are for a machine that is busy building.
SOON = 20
JOB = 120


def start_browser(profile):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(60)
    driver.set_script_timeout(30)
    return driver


def tiny_png(size=64):
    """A grey square: enough for an upload, and needs no image library."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    rows = (b"\x00" + b"\x80" * size) * size
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


class Failure(AssertionError):
    """A check that did not hold, in words for the person who reads the output."""


def require(condition, message):
    if not condition:
        raise Failure(message)


def unique(words):
    return f"{words} {time.time_ns() % 10**9}"


class Page:
    """The page under test, by its stable `data-testid` names."""

    def __init__(self, driver, url, server, link):
        self.driver = driver
        self.url = url
        self.server = server
        self.link = link
        self.complaints = []

    def find(self, name):
        return self.driver.find_element(By.CSS_SELECTOR, f'[data-testid="{name}"]')

    def all(self, name):
        return self.driver.find_elements(By.CSS_SELECTOR, f'[data-testid="{name}"]')

    def until(self, what, condition, seconds=SOON):
        wait = WebDriverWait(
            self.driver, seconds, 0.05, ignored_exceptions=[StaleElementReferenceException]
        )
        return wait.until(lambda _: condition(), f"within {seconds} s: {what}")

    def set(self, name, text):
        field = self.find(name)
        field.clear()
        field.send_keys(text)
        return field

    def reveal(self, name):
        """Opens the folded part of the form that a field sits in."""
        self.driver.execute_script(
            "const d = arguments[0].closest('details'); if (d) d.open = true;", self.find(name)
        )

    def job_ids(self):
        return {card.get_attribute("data-job-id") for card in self.all("job-card")}

    def card(self, job_id):
        return self.driver.find_element(
            By.CSS_SELECTOR, f'[data-testid="job-card"][data-job-id="{job_id}"]'
        )

    def part(self, job_id, name):
        return self.card(job_id).find_element(By.CSS_SELECTOR, f'[data-testid="{name}"]')

    def status(self, job_id):
        return self.card(job_id).get_attribute("data-status")

    def state(self):
        return self.find("connection-state").get_attribute("data-state")

    def wait_connected(self):
        self.until("the connection is shown as connected", lambda: self.state() == "connected")

    def open(self, address="/"):
        self.driver.get(self.url + address.removeprefix(self.url))
        self.wait_connected()

    def view(self, name):
        self.find(f"nav-{name}").click()

    def address(self):
        return self.driver.current_url

    def press(self, within, name):
        within.find_element(By.CSS_SELECTOR, f'[data-testid="{name}"]').click()

    def active_id(self):
        return self.driver.switch_to.active_element.get_attribute("id")

    def active_text(self):
        return self.driver.switch_to.active_element.text

    def backend(self, name):
        return self.driver.find_element(By.CSS_SELECTOR, f'[data-testid="backend-card"][data-backend-id="{name}"]')

    def backend_state(self, name):
        return self.backend(name).find_element(By.CSS_SELECTOR, '[data-testid="backend-state"]').text

    def queue(self):
        """The ids in the queue view, in its order."""
        return [row.get_attribute("data-job-id") for row in self.all("queue-row")]

    def queue_part(self, job_id, name):
        row = f'[data-testid="queue-row"][data-job-id="{job_id}"]'
        return self.driver.find_element(By.CSS_SELECTOR, f'{row} [data-testid="{name}"]')

    def heard(self, kind):
        """Whether a message of this type has come: the choice of types in the log knows."""
        options = self.find("log-type").find_elements(By.TAG_NAME, "option")
        return kind in {option.get_attribute("value") for option in options}

    def choose_status(self, status):
        radio = self.driver.find_element(By.CSS_SELECTOR, f'input[name="filter-status"][value="{status}"]')
        radio.click()

    def grant_clipboard(self):
        for name in ("clipboard-read", "clipboard-write"):
            setting = {"permission": {"name": name}, "setting": "granted", "origin": self.url}
            self.driver.execute_cdp_cmd("Browser.setPermission", setting)

    def clipboard(self):
        return self.driver.execute_async_script(
            "const done = arguments[0]; navigator.clipboard.readText().then(done, (error) => done(String(error)));"
        )

    def forgive_console(self):
        """After a check that provokes refusals: the browser itself reports each. Ours are never forgiven."""
        kinds = ("Failed to load resource", "WebSocket connection to")
        self.complaints = [error for error in self.console() if not any(kind in error for kind in kinds)]

    def console(self):
        """What the browser has complained about, but for what was forgiven."""
        log = self.driver.get_log("browser")
        self.complaints += [entry["message"] for entry in log if entry["level"] == "SEVERE"]
        return self.complaints

    def new_job(self, prompt, submit):
        """Runs `submit`, returns the id of the card that it brought."""

        def appeared():
            for card in self.all("job-card"):
                if prompt in card.text:
                    return card.get_attribute("data-job-id")
            return None

        submit()
        return self.until(f"a card for {prompt!r} appears", appeared)

    def set_size(self, width, height, mobile=False):
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile},
        )

    def set_scheme(self, scheme):
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )

    def luminance(self, selector, name):
        """Perceived lightness (0 to 1) of a colour of an element, read off a canvas pixel
        since the computed text may be in any colour space."""
        return self.driver.execute_script(
            """
            const colour = getComputedStyle(document.querySelector(arguments[0]))[arguments[1]];
            const context = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d');
            context.fillStyle = colour;
            context.fillRect(0, 0, 1, 1);
            const [r, g, b] = context.getImageData(0, 0, 1, 1).data;
            return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
            """,
            selector,
            name,
        )
