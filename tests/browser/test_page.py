#!/usr/bin/env python3
"""Drives the page in a real browser, against a running `stepcast up --demo`.

    python tests/browser/test_page.py --url http://127.0.0.1:8000 [--screenshot-dir DIR]

The browser and its driver are the installed ones, so that nothing is downloaded.
Every wait has a deadline; the last line says how many checks passed and failed.
"""

import argparse
import base64
import pathlib
import sys
import tempfile
import time
import traceback

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

import lists
import panels
from browser import JOB, Failure, Page, require, start_browser, tiny_png, unique
from contrast import faint_texts
from server import Link, Server

VIEWS = ("jobs", "new", "queue", "backends", "statistics", "api")

# Follows a card from inside the page, where no sample between two polls is missed.
WATCH_PROGRESS = """
const id = arguments[0];
window.seenProgress = [];
const note = () => {
  const card = document.querySelector(`[data-testid="job-card"][data-job-id="${id}"]`);
  const bar = card?.querySelector('[data-testid="progress"]');
  if (!bar) return;
  window.seenProgress.push([Number(card.dataset.attempt), Number(bar.getAttribute('aria-valuenow'))]);
};
new MutationObserver(note).observe(document.body, {
  subtree: true, attributes: true, attributeFilter: ['aria-valuenow', 'data-attempt'],
});
note();
"""


def connects(page):
    page.open()
    text = page.find("connection-state").text
    require("Connected" in text, f"connection state reads {text!r}")


def submitted_job_completes_with_images(page):
    prompt = unique("a beautiful landscape")
    page.set("prompt", prompt)
    page.set("steps", "12")
    job_id = page.new_job(prompt, lambda: page.find("submit").click())
    page.driver.execute_script(WATCH_PROGRESS, job_id)
    page.until("the job ends", lambda: page.status(job_id) in ("completed", "failed", "cancelled"), JOB)
    require(page.status(job_id) == "completed", f"the job is {page.status(job_id)}: {page.card(job_id).text}")

    seen = page.driver.execute_script("return window.seenProgress")
    require(len(seen) >= 2, f"progress never moved: {seen}")
    for before, after in zip(seen, seen[1:]):
        require(
            after[0] > before[0] or after[1] >= before[1],
            f"progress fell within an attempt: {before} then {after} in {seen}",
        )
    require(seen[-1][1] == 100, f"a completed job shows {seen[-1][1]} %")

    images = page.until(
        "thumbnails appear",
        lambda: page.card(job_id).find_elements(By.CSS_SELECTOR, '[data-testid="thumbnail"]'),
    )
    for image in images:
        page.until(
            "the thumbnail decodes",
            lambda image=image: page.driver.execute_script(
                "return arguments[0].complete && arguments[0].naturalWidth > 0", image
            ),
        )
    target = images[0].find_element(By.XPATH, "./ancestor::a").get_attribute("href")
    require(target.startswith(page.url), f"a thumbnail links to {target}")


def several_images_are_all_shown(page):
    prompt = unique("two at once")
    page.set("prompt", prompt)
    page.set("steps", "8")
    page.set("n_iter", "2")
    job_id = page.new_job(prompt, lambda: page.find("submit").click())
    page.set("n_iter", "1")
    page.until("the job completes", lambda: page.status(job_id) == "completed", JOB)
    count = len(page.card(job_id).find_elements(By.CSS_SELECTOR, '[data-testid="thumbnail"]'))
    require(count == 2, f"asked for 2 images, {count} thumbnails")


def newest_card_is_first(page):
    ids = [card.get_attribute("data-job-id") for card in page.all("job-card")]
    require(ids == sorted(ids, reverse=True), f"cards are not newest first: {ids}")


def invalid_steps_are_explained_at_the_field(page):
    before = page.job_ids()
    page.set("prompt", "never to be rendered")
    page.set("steps", "1000000")
    page.find("submit").click()
    error = page.until("the steps field has an error", lambda: page.find("error-steps").text.strip())
    require(len(error) > 3, f"the error says only {error!r}")
    field = page.find("steps")
    require(field.get_attribute("aria-invalid") == "true", "the field is not marked invalid")
    require("error-steps" in field.get_attribute("aria-describedby"), "the error is not tied to its field")
    require(page.driver.switch_to.active_element == field, "the wrong field did not get the focus")
    require(page.job_ids() == before, "a refused job got a card")
    page.set("steps", "8")
    require(not page.find("error-steps").is_displayed(), "the error stays once the field is changed")
    page.forgive_console()


def keyboard_submits(page):
    prompt = unique("by keyboard")
    field = page.set("prompt", prompt)
    job_id = page.new_job(prompt, lambda: field.send_keys(Keys.CONTROL, Keys.ENTER))
    require(job_id, "Ctrl+Enter queued nothing")
    page.until("the job completes", lambda: page.status(job_id) == "completed", JOB)


def running_job_can_be_cancelled_and_deleted(page):
    prompt = unique("long and cancelled")
    page.set("prompt", prompt)
    page.set("steps", "100")
    job_id = page.new_job(prompt, lambda: page.find("submit").click())
    page.set("steps", "8")
    page.part(job_id, "cancel").click()
    page.until("the job is cancelled", lambda: page.status(job_id) == "cancelled", JOB)
    require(not page.part(job_id, "cancel").is_displayed(), "an ended job still offers to cancel")
    page.part(job_id, "delete").click()
    page.until("the card is gone", lambda: job_id not in page.job_ids())


def uploaded_image_starts_a_job(page):
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        file.write(tiny_png())
        file.flush()
        page.reveal("init_image")
        page.find("init_image").send_keys(file.name)
        prompt = unique("from an image")
        page.set("prompt", prompt)
        page.set("denoising_strength", "0.5")
        job_id = page.new_job(prompt, lambda: page.find("submit").click())
    page.driver.find_element(By.ID, "init-clear").click()
    page.until("the job completes", lambda: page.status(job_id) == "completed", JOB)


def log_filter_filters(page):
    page.view("api")
    page.until("messages are logged", lambda: len(page.all("log-entry")) > 3)
    page.find("log-pause").click()
    kinds = {row.get_attribute("data-type") for row in page.all("log-entry")}
    require("generation_complete" in kinds, f"the log holds only {kinds}")

    choice = Select(page.find("log-type"))
    choice.select_by_value("generation_complete")
    kinds = {row.get_attribute("data-type") for row in page.all("log-entry")}
    require(kinds == {"generation_complete"}, f"the type filter lets through {kinds}")
    choice.select_by_value("")

    everything = len(page.all("log-entry"))
    page.set("log-filter", "generation_COMPLETE")
    rows = page.all("log-entry")
    require(0 < len(rows) < everything, f"the text filter shows {len(rows)} of {everything}")
    page.set("log-filter", "no message says this")
    require(not page.all("log-entry"), "rows remain although nothing matches")
    field = page.find("log-filter")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(Keys.DELETE)
    page.until("all rows are back", lambda: len(page.all("log-entry")) >= everything)

    page.find("log-pause").click()
    page.find("log-clear").click()
    page.until("the log is empty", lambda: len(page.all("log-entry")) == 0)
    page.view("jobs")


def disconnects_and_connects_again(page):
    page.find("connect-button").click()
    page.until("the page is disconnected", lambda: page.state() == "disconnected")
    page.find("connect-button").click()
    page.wait_connected()
    prompt = unique("after reconnecting")
    page.set("prompt", prompt)
    job_id = page.new_job(prompt, lambda: page.find("submit").click())
    page.until("the job completes", lambda: page.status(job_id) == "completed", JOB)


def reload_lists_recent_jobs(page):
    before = page.job_ids()
    page.open()
    page.until("recent jobs are listed", lambda: len(page.job_ids() & before) >= min(3, len(before)))
    completed = [card for card in page.all("job-card") if card.get_attribute("data-status") == "completed"]
    require(completed, "no completed job in the list")
    require(
        completed[0].find_elements(By.CSS_SELECTOR, '[data-testid="thumbnail"]'),
        "a listed completed job shows no thumbnail",
    )


def examples_name_this_origin(page):
    for name in ("curl", "javascript", "python"):
        text = page.find(f"example-{name}").get_attribute("textContent")
        host = page.url.split("://", 1)[1]
        require(host in text, f"the {name} example does not name {host}")


def markup_in_a_prompt_stays_text(page):
    prompt = unique('<img src=x onerror="window.injected=1"><b>bold</b>')
    page.set("prompt", prompt)
    job_id = page.new_job(prompt, lambda: page.find("submit").click())
    require(not page.card(job_id).find_elements(By.TAG_NAME, "b"), "a prompt became markup")
    require(page.driver.execute_script("return window.injected") is None, "a prompt ran as script")


def every_control_has_a_name(page):
    nameless = page.driver.execute_script(
        """
        return [...document.querySelectorAll('button, input, select, textarea, a')].filter((node) =>
          !node.textContent.trim() && !node.labels?.length && !node.getAttribute('aria-label')
          && !node.querySelector?.('img[alt]')).map((node) => node.outerHTML.slice(0, 120));
        """
    )
    require(not nameless, f"controls without a name: {nameless}")


def no_sideways_scroll(page):
    for view in VIEWS:
        page.open(f"/?view={view}")
        page.driver.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        for width in (360, 768, 1400):
            page.set_size(width, 900, mobile=True)
            actual = page.driver.execute_script("return document.documentElement.scrollWidth")
            require(actual <= width, f"at {width} px the view {view} is {actual} px wide")
    page.set_size(1400, 1000)
    page.open()


def dark_scheme_is_dark(page):
    for scheme, dark in (("dark", True), ("light", False)):
        page.set_scheme(scheme)
        ground = page.luminance("body", "backgroundColor")
        ink = page.luminance("body", "color")
        require((ground < 0.2) == dark, f"the {scheme} ground has luminance {ground:.2f}")
        require(abs(ground - ink) > 0.6, f"text hardly stands out in {scheme}: {ground:.2f} against {ink:.2f}")


def text_stands_out(page):
    for scheme in ("dark", "light"):
        page.set_scheme(scheme)
        for view in VIEWS:
            page.open(f"/?view={view}")
            # What is asked for colours its parts by what it finds: the last to come is waited for.
            if view == "statistics":
                page.until("figures are shown", lambda: page.find("stats-body").is_displayed())
            if view == "backends":
                page.until("backends are shown", lambda: page.all("backend-card"))
            faint = faint_texts(page.driver)
            require(not faint, f"hard to read in {view}, {scheme}: {faint}")


def nothing_is_loaded_from_elsewhere(page):
    names = page.driver.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    allowed = (page.url + "/", "data:", f"blob:{page.url}/")
    foreign = [name for name in names if not name.startswith(allowed)]
    require(not foreign, f"requests to other origins: {foreign}")
    files = {name.split("?")[0] for name in names if name.endswith((".js", ".css", ".ico", ".svg"))}
    require(not files, f"the page is not self-contained: {files}")


CHECKS = [
    *panels.CHECKS_BEFORE,
    connects,
    submitted_job_completes_with_images,
    several_images_are_all_shown,
    invalid_steps_are_explained_at_the_field,
    keyboard_submits,
    newest_card_is_first,
    running_job_can_be_cancelled_and_deleted,
    uploaded_image_starts_a_job,
    log_filter_filters,
    disconnects_and_connects_again,
    reload_lists_recent_jobs,
    examples_name_this_origin,
    markup_in_a_prompt_stays_text,
    *lists.CHECKS,
    *panels.CHECKS,
    every_control_has_a_name,
    no_sideways_scroll,
    dark_scheme_is_dark,
    text_stands_out,
    nothing_is_loaded_from_elsewhere,
]


def take_screenshots(page, directory):
    directory.mkdir(parents=True, exist_ok=True)
    page.set_size(1400, 1000)
    for scheme in ("light", "dark"):
        page.set_scheme(scheme)
        page.open()
        page.set("prompt", "an old lighthouse in the fog, oil on canvas")
        page.set("steps", "60")
        before = page.job_ids()
        page.find("submit").click()
        job_id = page.until("the card appears", lambda: next(iter(page.job_ids() - before), None))
        page.until("it moves", lambda: page.part(job_id, "progress").get_attribute("aria-valuenow") != "0", JOB)
        for width, height in ((1400, 1000), (768, 1000), (360, 780)):
            page.set_size(width, height, mobile=True)  # Without a scroll bar in the picture.
            page.driver.execute_script("scrollTo(0, 0)")
            shot = page.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
            (directory / f"page-{scheme}-{width}.png").write_bytes(base64.b64decode(shot["data"]))
        page.set_size(1400, 1000)
        page.part(job_id, "cancel").click()


def run(page, screenshot_dir, only):
    passed, failed = 0, 0

    def check(name, action):
        nonlocal passed, failed
        started = time.monotonic()
        try:
            action()
        except Exception as error:  # One failed check must not hide what the others find.
            failed += 1
            print(f"FAIL {name}: {error}", flush=True)
            if not isinstance(error, Failure):
                traceback.print_exc()
            if screenshot_dir:
                screenshot_dir.mkdir(parents=True, exist_ok=True)
                page.driver.save_screenshot(str(screenshot_dir / f"failed-{name}.png"))
            page.server.settle()
        else:
            passed += 1
            print(f"ok   {name} ({time.monotonic() - started:.1f} s)", flush=True)

    page.set_size(1400, 1000)
    for action in CHECKS:
        if only and action.__name__ not in only:
            continue
        check(action.__name__, lambda action=action: action(page))
    if screenshot_dir:
        check("screenshots", lambda: take_screenshots(page, screenshot_dir))

    def console_is_clean():
        errors = page.console()
        require(not errors, f"console errors: {errors}")

    check("console_is_clean", console_is_clean)
    return passed, failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="origin of the running server")
    parser.add_argument("--screenshot-dir", type=pathlib.Path, help="where to put pictures of the page")
    parser.add_argument("--only", nargs="*", help="names of checks to run, rather than all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stepcast-browser-", ignore_cleanup_errors=True) as profile:
        driver = start_browser(profile)
        try:
            server = Server(arguments.url.rstrip("/"))
            link = Link(server.url)
            page = Page(driver, link.url, server, link)
            passed, failed = run(page, arguments.screenshot_dir, arguments.only)
        finally:
            driver.quit()
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
