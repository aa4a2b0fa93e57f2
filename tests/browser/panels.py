"""Checks of the queue, the backends, the statistics, and of a connection that is lost."""

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from browser import JOB, require, unique
from server import wait_until


def first_impression_says_what_to_do(page):
    page.open()
    page.until("the empty state is shown", lambda: page.find("jobs-empty").is_displayed())
    require("Queue your first image" in page.find("jobs-empty").text, "the empty state explains nothing")
    example = page.find("try-example")
    words = example.text
    example.click()
    require(page.find("prompt").get_attribute("value") == words, "an example does not fill the form")
    require(page.active_id() == "prompt", "the prompt has not got the focus")
    page.view("queue")
    page.until("the queue says that nothing waits", lambda: page.find("queue-empty").is_displayed())


def views_are_kept_in_the_address(page):
    page.open()
    page.view("backends")
    require("view=backends" in page.address(), f"the address is {page.address()}")
    current = page.driver.find_elements(By.CSS_SELECTOR, ".topbar-nav [aria-current=page]")
    require([it.text.split()[0] for it in current] == ["Backends"], "the navigation marks another view")
    page.driver.back()
    page.until("Back leads back", lambda: page.find("submit").is_displayed())
    page.open("/?view=statistics&window=24h")
    require(page.find("stats-window").is_displayed(), "a link to a view does not open it")
    chosen = page.driver.find_element(By.CSS_SELECTOR, "input[name=stats-window]:checked")
    require(chosen.get_attribute("value") == "24h", "a link does not choose its window")


def backend_is_paused_and_resumed(page):
    page.open("/?view=backends")
    page.until("both backends are shown", lambda: len(page.all("backend-card")) == 2)
    card = page.backend("demo-slow")
    require("demo-slow" in card.text and "Diffusers/tiny-sd" in card.text, f"the card reads {card.text!r}")
    button = card.find_element(By.CSS_SELECTOR, '[data-testid="backend-pause"]')
    button.send_keys(Keys.ENTER)
    page.until("it is shown as paused", lambda: page.backend_state("demo-slow") == "Paused")
    require("no jobs until" in page.backend("demo-slow").text, "nothing says what a pause means")
    require(page.active_text() == "Resume", f"the focus is on {page.active_text()!r}")
    paused = {it["id"]: it["paused"] for it in page.server.backends()}
    require(paused == {"demo-fast": False, "demo-slow": True}, f"the server says {paused}")
    page.press(card, "backend-resume")
    page.until("it is ready again", lambda: page.backend_state("demo-slow") == "Ready")


def backend_is_drained(page):
    page.press(page.backend("demo-fast"), "backend-drain")
    page.until("it is drained", lambda: page.backend_state("demo-fast") == "Drained")
    require("can be shut down" in page.backend("demo-fast").text, "nothing says what drained means")
    page.press(page.backend("demo-fast"), "backend-resume")
    page.until("it is ready again", lambda: page.backend_state("demo-fast") == "Ready")


def backend_shows_its_job(page):
    prompt = unique("seen on its backend")
    job_id = page.server.submit(prompt, steps=400, backend="demo-slow")

    def shown():
        text = page.backend("demo-slow").text
        return prompt in text and "Step " in text and page.backend_state("demo-slow") == "Rendering"

    page.until("the job is shown where it renders", shown, JOB)
    page.server.cancel(job_id)
    page.until("it is gone", lambda: page.backend_state("demo-slow") == "Ready", JOB)


def quarantine_is_explained(page):
    page.server.arm("demo-slow", "no_images", jobs=3)
    for _ in range(3):
        page.server.submit("fails", steps=2, backend="demo-slow", max_attempts=1)
    page.until("it is in quarantine", lambda: page.backend_state("demo-slow") == "In quarantine", JOB)
    text = page.backend("demo-slow").text
    require("failures in a row" in text and "returns by itself" in text, f"the card reads {text!r}")
    require("1" in page.find("nav-backends").text, "the navigation does not say that a backend is in trouble")
    page.until("it returns by itself", lambda: page.backend_state("demo-slow") == "Ready", JOB)


def queue_shows_places_and_reasons(page):
    page.server.tell_backends("pause")
    prompts = [unique(f"waits {number}") for number in range(4)]
    ids = [page.server.submit(prompt, steps=4) for prompt in prompts]
    page.open("/?view=queue")
    page.until("all are listed", lambda: page.queue() == ids)
    require(page.queue_part(ids[3], "queue-position").text == "4", "the last is not the fourth")
    why = page.queue_part(ids[0], "queue-why").text
    require("paused" in why.lower(), f"the reason reads {why!r}")

    Select(page.queue_part(ids[3], "queue-priority")).select_by_value("high")
    page.until("a raised job is first", lambda: page.queue() == [ids[3], *ids[:3]])
    page.until("its place is told", lambda: page.queue_part(ids[3], "queue-position").text == "1")
    require(page.server.job(ids[3])["priority"] == "high", "the server was not told")

    page.queue_part(ids[1], "queue-pick").click()
    page.find("queue-raise").click()
    page.until("the selected one is raised", lambda: page.queue() == [ids[1], ids[3], ids[0], ids[2]])

    page.server.tell_backends("resume")
    page.until("all are served", lambda: page.queue() == [], JOB)
    page.until("the queue says so", lambda: page.find("queue-empty").is_displayed())


def queue_tells_when_a_job_starts(page):
    # Enough has been rendered by then for a guess.
    ids = [page.server.submit(unique("long"), steps=100) for _ in range(8)]
    words = ("About", "Any moment")
    page.until("it is told", lambda: page.queue_part(ids[7], "queue-time").text.startswith(words), JOB)
    page.until("a running one moves", lambda: "Sampling" in page.find("queue-rows").text, JOB)
    page.server.clear_queue()
    page.until("the queue is empty", lambda: page.queue() == [], JOB)


def selected_jobs_and_batches_are_cancelled(page):
    page.server.tell_backends("pause")
    others = [page.server.submit(unique("cancelled with others"), steps=4) for _ in range(3)]
    batch = page.server.batch(job={"prompt": "a batch", "steps": 4}, seeds=[1, 2])
    page.until("all wait", lambda: len(page.queue()) == 5)

    in_batch = next(job_id for job_id in page.queue() if job_id not in others)
    page.queue_part(in_batch, "queue-batch").click()
    page.until("the batch alone is shown", lambda: len(page.queue()) == 2)
    require(batch in page.address(), f"the address is {page.address()}")
    page.find("batch-cancel").click()
    page.find("confirm-act").click()
    page.until("the batch is gone", lambda: page.queue() == [], JOB)
    page.find("batch-retry").click()
    page.until("what was cancelled is a batch again", lambda: len(page.queue()) == 2)
    require(batch not in page.address(), "the address names the first batch")
    page.find("batch-cancel").click()
    page.find("confirm-act").click()
    page.until("that batch is gone too", lambda: page.queue() == [], JOB)
    page.find("filters-clear").click()

    page.until("the others are left", lambda: page.queue() == others)
    page.find("pick-all").click()
    page.find("queue-cancel").click()
    page.find("confirm-keep").click()
    require(page.queue() == others, "they are cancelled although that was taken back")
    page.find("queue-cancel").click()
    page.find("confirm-act").click()
    page.until("they are gone", lambda: page.queue() == [], JOB)
    note = page.find("queue-note").text
    require("3 jobs" in note, f"the outcome reads {note!r}")
    page.server.tell_backends("resume")


def hundreds_of_jobs_are_held(page):
    page.server.tell_backends("pause")
    job = {"prompt": "one of many", "steps": 4, "label": "many"}
    batch = page.server.batch(job=job, seeds=list(range(1, 401)))
    page.until("the queue is shown in part", lambda: len(page.queue()) == 100)
    page.until("all are counted", lambda: "400 waiting" in page.find("queue-summary").text)
    page.find("pick-all").click()
    page.until("all can be selected", lambda: "400" in page.find("queue-cancel").text)
    page.find("pick-all").click()
    page.view("jobs")
    page.until("they are listed", lambda: len(page.all("job-card")) >= 400)
    wide = page.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    require(wide, "many jobs make the page scroll sideways")
    page.server.call("POST", f"/generation/batch/{batch}/cancel")
    page.server.tell_backends("resume")
    page.until("each is told to be cancelled", lambda: "waiting" not in page.find("jobs-summary").text, JOB)


def statistics_are_shown(page):
    page.open("/?view=statistics&window=15m")
    page.until("figures are shown", lambda: page.find("stats-body").is_displayed())
    stats = page.server.get("/generation/stats?window=15m")
    completed = {it["id"]: it["jobs_completed"] for it in stats["backends"]}
    require(sum(completed.values()) > 3, f"so far {completed} jobs were completed")

    def rows():
        cells = [row.find_elements(By.CSS_SELECTOR, "th, td") for row in page.all("stats-backend")]
        return {row[0].text: int(row[1].text) for row in cells}

    page.until("each backend and all of them have a row", lambda: rows() == {**completed, "All": sum(completed.values())})
    require("%" in page.find("stats-failed").text, "no rate of failures is shown")
    require("no_images" in page.find("errors-table").text, "what failed is not told")
    for name in ("chart-history", "chart-outcomes", "chart-waiting"):
        chart = page.until(f"{name} is drawn", lambda name=name: page.find(name).find_element(By.TAG_NAME, "svg"))
        require(chart.get_attribute("aria-label"), f"{name} says nothing to a screen reader")
    page.until("nothing runs", lambda: page.find("stats-now").text == "0", JOB)
    job_id = page.server.submit(unique("counted"), steps=400, backend="demo-slow")
    page.until("what runs is counted", lambda: page.find("stats-now").text == "1", JOB)
    page.server.cancel(job_id)
    page.view("backends")
    page.until("a backend's card has its figures", lambda: "Completed" in page.backend("demo-fast").text)


def topics_tell_what_is_open(page):
    page.open("/?view=statistics")
    page.until("figures are shown", lambda: page.find("stats-body").is_displayed())
    page.until("statistics are told", lambda: page.heard("stats"))
    page.until("backends are told", lambda: page.heard("backend_update"))
    page.view("backends")
    page.server.call("POST", "/generation/backends/demo-slow/pause")
    page.until("what others ask of a backend is told", lambda: page.backend_state("demo-slow") == "Paused")
    page.server.tell_backends("resume")
    page.until("and that they take it back", lambda: page.backend_state("demo-slow") == "Ready")


def lost_connection_is_not_hidden(page):
    page.open()
    require(not page.find("banner").is_displayed(), "a page that is connected says that it is not")
    prompt = unique("ends while nobody looks")
    job_id = page.server.submit(prompt, steps=60, backend="demo-slow")
    page.until("it runs", lambda: job_id in page.job_ids() and page.status(job_id) == "running", JOB)
    page.link.cut()
    page.until("the page says that it is not live", lambda: page.find("banner").is_displayed())
    require("Not live" in page.find("banner").text, f"the line reads {page.find('banner').text!r}")
    require(page.state() == "reconnecting", f"the state is {page.state()}")
    eta = page.card(job_id).find_elements(By.CSS_SELECTOR, '[data-testid="eta"]')[0]
    page.until("no time left is claimed", lambda: not eta.is_displayed())
    wait_until("it ends unseen", lambda: page.server.job(job_id)["status"] == "completed", JOB)
    require(page.status(job_id) == "running", "the page knows what it cannot know")

    # A submit that cannot arrive says so, and keeps what was typed.
    page.set("prompt", prompt)
    page.find("submit").click()
    page.until("the form says that nothing was sent", lambda: "cannot be reached" in page.find("error-form").text)
    require(page.find("prompt").get_attribute("value") == prompt, "the prompt is lost")

    page.link.restore()
    page.find("banner-act").click()
    page.wait_connected()
    page.until("the page is live again", lambda: not page.find("banner").is_displayed())
    page.until("what was missed is told", lambda: page.status(job_id) == "completed")
    page.forgive_console()


CHECKS_BEFORE = [first_impression_says_what_to_do, views_are_kept_in_the_address]
CHECKS = [
    backend_is_paused_and_resumed,
    backend_is_drained,
    backend_shows_its_job,
    quarantine_is_explained,
    queue_shows_places_and_reasons,
    queue_tells_when_a_job_starts,
    selected_jobs_and_batches_are_cancelled,
    hundreds_of_jobs_are_held,
    statistics_are_shown,
    topics_tell_what_is_open,
    lost_connection_is_not_hidden,
]
