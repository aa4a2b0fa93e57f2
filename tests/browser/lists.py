"""Checks of filters, of older jobs, and of a job's details and images."""

import json

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from browser import JOB, require, unique
from server import wait_until


def _ended(page, job_id):
    wait_until("it ends", lambda: page.server.job(job_id)["status"] not in ("pending", "running"), JOB)
    return page.server.job(job_id)


def filters_are_kept_in_the_address(page):
    word = unique("needle").split()[1]
    wanted = page.server.submit(f"a needle {word}", steps=4, label="hay", model="Diffusers/tiny-sd")
    other = page.server.submit("something else", steps=4, label="hay")
    for job_id in (wanted, other):
        _ended(page, job_id)
    page.open()
    page.find("filters-fold").click()
    page.set("filter-label", "hay")
    page.until("the label alone is shown", lambda: page.job_ids() == {wanted, other})
    page.set("filter-text", f"NEEDLE {word}")
    page.until("the text alone is shown", lambda: page.job_ids() == {wanted})
    require("label=hay" in page.address() and "text=" in page.address(), f"the address is {page.address()}")

    page.open(page.address())
    page.until("a link shows the same", lambda: page.job_ids() == {wanted})
    require(page.find("filter-text").get_attribute("value") == f"NEEDLE {word}", "the field does not say so")
    page.choose_status("failed")
    page.until("nothing is left", lambda: page.find("jobs-none").is_displayed())
    page.driver.back()
    page.until("Back undoes a filter", lambda: page.job_ids() == {wanted})
    page.find("filters-clear").click()
    page.until("everything is back", lambda: other in page.job_ids())

    page.open("/?model=Diffusers/tiny-sd&backend=nobody")
    page.until("the server filters too", lambda: page.find("jobs-none").is_displayed())
    page.open("/?batch=nonsense")
    page.until("a bad filter is explained", lambda: "batch" in page.find("jobs-error").text)
    page.forgive_console()


def older_jobs_come_page_by_page(page):
    page.server.tell_backends("pause")
    label = unique("pages")
    batch = page.server.batch(job={"prompt": "paged", "steps": 4, "label": label}, seeds=list(range(1, 46)))
    page.server.call("POST", f"/generation/batch/{batch}/cancel")
    page.server.tell_backends("resume")
    wait_until("all have ended", lambda: page.server.get("/generation/jobs/active")["jobs"] == [], JOB)
    page.open(f"/?batch={batch}")
    for count in (20, 40, 45):
        page.until(f"{count} are shown", lambda count=count: len(page.all("job-card")) == count)
        if count == 20:
            # A reconnect reads the list again; whichever is answered last, the page that was asked for stays.
            page.driver.execute_script("document.getElementById('older').click(); jobList.refresh();")
        elif count == 40:
            page.find("older").click()
    require(len(page.job_ids()) == 45, "a job is shown twice")
    require(not page.find("older").is_displayed(), "more is offered than there is")


def details_open_by_link_and_close_by_back(page):
    page.open()
    prompt = unique("<b>all</b> about it")
    job_id = page.server.submit(prompt, steps=4, seed=42, label="shown", sdnext={"enable_hr": False})
    page.until("it has ended", lambda: job_id in page.job_ids() and page.status(job_id) == "completed", JOB)
    page.part(job_id, "open-job").click()
    page.until("the details open", lambda: page.find("detail").is_displayed())
    require(f"job={job_id}" in page.address(), f"the address is {page.address()}")
    require(page.find("detail-prompt").text == prompt, "the prompt is another")
    require(not page.find("detail").find_elements(By.TAG_NAME, "b"), "a prompt became markup")
    page.until("facts are told", lambda: job_id in page.find("detail-facts").text)
    require("42" in page.find("detail-facts").text, "the seed is missing")
    require("sdnext.enable_hr" in page.find("detail-params").text, "a setting is missing")
    timeline = page.find("detail-timeline").text
    require("Queued" in timeline and "Started" in timeline and "Ended" in timeline, f"the timeline reads {timeline!r}")
    page.driver.back()
    page.until("Back closes them", lambda: not page.find("detail").is_displayed())

    page.open(f"/?job={job_id}")
    page.until("a link opens them", lambda: prompt in page.find("detail").text)
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.until("Escape closes them", lambda: not page.find("detail").is_displayed())
    page.until("the address names no job", lambda: "job=" not in page.address())

    page.open("/?job=01a20613-13a1-7151-9bbe-50f27a70ee82")
    page.until("a job that is not there is no riddle", lambda: "no such job" in page.find("detail-missing").text)
    page.forgive_console()


def failure_is_told_and_tried_again(page):
    page.open()
    for backend in ("demo-fast", "demo-slow"):
        page.server.arm(backend, "no_images")
    job_id = page.server.submit(unique("fails twice"), steps=4, max_attempts=2)
    page.until("it fails", lambda: job_id in page.job_ids() and page.status(job_id) == "failed", JOB)
    require("no_images" in page.part(job_id, "card-error").text, "the card does not say why")
    page.open(f"/?job={job_id}")
    page.until("the attempts are told", lambda: "Attempt 2" in page.find("detail-attempts").text)
    require("demo-fast" in page.find("detail-attempts").text, "nothing says where they ran")
    require("no_images" in page.find("detail-failure").text, "nothing says why")
    page.find("detail-retry").click()
    page.until("another job is shown", lambda: f"job={job_id}" not in page.address())
    page.until("it completes", lambda: page.find("detail-status").text == "Completed", JOB)
    page.find("detail-close").click()


def images_open_large(page):
    page.open()
    job_id = page.server.submit(unique("two to look at"), steps=4, n_iter=2)
    page.until("it has ended", lambda: job_id in page.job_ids() and page.status(job_id) == "completed", JOB)
    thumbnail = page.part(job_id, "thumbnail")
    thumbnail.click()
    page.until("the image opens", lambda: page.find("lightbox").is_displayed())
    first = page.find("lightbox-save").get_attribute("href")
    require(page.find("lightbox-save").get_attribute("download").startswith(job_id), "it is saved without a name")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    page.until("the next is shown", lambda: page.find("lightbox-save").get_attribute("href") != first)
    page.find("lightbox-zoom").click()
    require(page.find("lightbox-zoom").get_attribute("aria-pressed") == "true", "it does not say that it is large")
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.until("Escape closes it", lambda: not page.find("lightbox").is_displayed())
    require(page.driver.execute_script("return document.activeElement.querySelector('img') !== null"), "the focus is lost")


def ids_and_seeds_are_copied(page):
    page.grant_clipboard()
    card = page.all("job-card")[0]
    job_id = card.get_attribute("data-job-id")
    page.press(card, "copy-id")
    page.until("it says so", lambda: page.part(job_id, "copy-id").text == "Copied")
    require(page.clipboard() == job_id, f"the clipboard holds {page.clipboard()!r}")
    page.press(card, "copy-seed")
    seed = str(page.server.job(job_id)["outputs"][0]["seed"])
    page.until("the seed is copied", lambda: page.clipboard() == seed)
    page.part(job_id, "open-job").click()
    page.driver.find_element(By.CSS_SELECTOR, '[aria-label="Copy the request as JSON"]').click()
    page.until("the request is copied", lambda: page.clipboard().startswith("{"))
    require(json.loads(page.clipboard()) == page.server.job(job_id)["params"], "another request was copied")
    page.find("detail-close").click()


CHECKS = [
    filters_are_kept_in_the_address,
    older_jobs_come_page_by_page,
    details_open_by_link_and_close_by_back,
    failure_is_told_and_tried_again,
    images_open_large,
    ids_and_seeds_are_copied,
]
