#!/usr/bin/env python3
"""Watch the jobs of a Stepcast server over its WebSocket.

    pip install -r requirements.txt
    python test_websocket.py                                         # watch everything, until Ctrl-C
    python test_websocket.py --submit "a lighthouse" --until-complete 1
    python test_websocket.py ws://stepcast.example:8000/ws/progress

Exit code: 0 once enough jobs have completed, 1 if one failed or was cancelled or the server refused us, 2 on timeout.
"""

import argparse
import asyncio
import json
import random
import shutil
import sys
import urllib.error
import urllib.parse
import urllib.request

import websockets
from websockets.exceptions import ConnectionClosed, InvalidHandshake

DEFAULT_URL = "ws://localhost:8000/ws/progress"
OK, FAILED, TIMED_OUT = 0, 1, 2
BAR_WIDTH = 30
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
# Close codes after which coming back changes nothing until something else does.
STAY_AWAY = {1008, 4401, 4403}


class Display:
    """One line per job: redrawn in place on a terminal, appended elsewhere."""

    def __init__(self):
        self.live = sys.stdout.isatty()
        self.bars = {}

    def say(self, text):
        self.erase()
        print(text)
        self.draw()

    def show(self, job_id, line):
        if not self.live:
            print(line, flush=True)
            return
        self.erase()
        self.bars[job_id] = line
        self.draw()

    def end(self, job_id, line):
        self.erase()
        self.bars.pop(job_id, None)
        print(line, flush=True)
        self.draw()

    def erase(self):
        if self.live and self.bars:
            sys.stdout.write(f"\x1b[{len(self.bars)}A\x1b[J")

    def draw(self):
        width = shutil.get_terminal_size().columns - 1
        for line in self.bars.values():
            print(line[:width])  # a line that wraps could not be erased
        sys.stdout.flush()


class Watcher:
    """What the messages mean, without a socket."""

    def __init__(self, display, wanted, submitted):
        self.display = display
        self.wanted = wanted
        self.only = submitted
        self.open = set(submitted)
        self.places = {}
        self.completed = 0
        self.exit_code = None
        self.come_back_in = None

    def handle(self, message):
        kind, data = message.get("type"), message.get("data") or {}
        job_id = data.get("job_id")
        if job_id and not self.is_news(job_id, data):
            return
        handler = getattr(self, f"on_{kind}", None)
        if handler:  # a type that is not known here belongs to a newer server
            handler(data)

    def subscriptions(self):
        """All active jobs; by id also those that may have ended while nobody listened."""
        yield {"type": "subscribe", "job_ids": None}
        if self.open:
            yield {"type": "subscribe", "job_ids": sorted(self.open)}

    def is_news(self, job_id, data):
        """(attempt, seq) grows within a job; what does not go beyond is a repeat after a reconnect."""
        if self.only and job_id not in self.only:
            return False
        place = (data.get("attempt", 0), data.get("seq", 0))
        if place <= self.places.get(job_id, (-1, -1)):
            return False
        self.places[job_id] = place
        self.open.add(job_id)
        return True

    def on_connected(self, data):
        self.display.say(f"connected: {data.get('connection_id')}")

    def on_subscription_confirmed(self, data):
        jobs = data.get("job_ids")
        self.display.say(f"subscribed: {'all jobs' if jobs is None else ', '.join(jobs)}")

    def on_generation_queued(self, data):
        self.show(data, f"queued, position {data.get('position') or '?'}")

    def on_generation_started(self, data):
        self.show(data, f"started on {data.get('backend', '?')}")

    def on_progress_update(self, data):
        progress = data.get("progress") or 0.0
        done = int(progress * BAR_WIDTH)
        text = f"[{'#' * done}{'.' * (BAR_WIDTH - done)}] {progress:6.1%}"
        text += f"  {data.get('stage', '')} {data.get('current_step', 0)}/{data.get('total_steps', 0)}"
        eta = data.get("eta_seconds")
        self.show(data, text + (f"  {eta:.0f} s left" if eta is not None else ""))

    def on_generation_retrying(self, data):
        pause = data.get("next_attempt_in_seconds", 0)
        self.show(data, f"attempt {data.get('attempt')} failed ({data.get('reason')}), next in {pause:.1f} s")

    def on_generation_complete(self, data):
        status, job_id = data.get("status"), data["job_id"]
        self.open.discard(job_id)
        if status == "completed":
            seconds = data.get("total_duration") or 0.0
            text = f"completed in {seconds:.1f} s: {' '.join(data.get('images', []))}"
            self.completed += 1
            if self.wanted and self.completed >= self.wanted and self.exit_code is None:
                self.exit_code = OK
        else:
            text = f"{status}: {data.get('error_message')}"
            if self.wanted:
                self.exit_code = FAILED
        self.display.end(job_id, f"{short(job_id)}  {text}")

    def on_error(self, data):
        self.display.say(f"error: {data.get('code')}: {data.get('message')}")

    def on_going_away(self, data):
        self.come_back_in = (data.get("reconnect_after_ms") or 0) / 1000

    def show(self, data, text):
        self.display.show(data["job_id"], f"{short(data['job_id'])}  {text}")


def short(job_id):
    """The end of an id: it is random, while its beginning is the time and much the same for all."""
    return job_id[-12:]


async def watch(url, watcher):
    """Follow the server, through reconnects, until the watcher has seen enough."""
    failures = 0
    while True:
        why = "the server said goodbye"
        try:
            async with websockets.connect(url) as socket:
                failures = 0
                for message in watcher.subscriptions():
                    await socket.send(json.dumps(message))
                async for text in socket:
                    watcher.handle(json.loads(text))
                    if watcher.exit_code is not None:
                        return watcher.exit_code
        except ConnectionClosed as closed:
            if closed.rcvd and closed.rcvd.code in STAY_AWAY:
                watcher.display.say(f"refused: {closed}")
                return FAILED
            why = closed
        except (OSError, InvalidHandshake, asyncio.TimeoutError) as error:
            why = error
        # Half fixed, half random: clients that lost the same server do not return as one.
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**failures) * (0.5 + random.random() / 2)
        if watcher.come_back_in is not None:
            pause, watcher.come_back_in = watcher.come_back_in, None
        failures = min(failures + 1, 10)
        watcher.display.say(f"disconnected ({why}); trying again in {pause:.1f} s")
        await asyncio.sleep(pause)


def submit(url, prompt):
    """Post a job to the origin of the WebSocket, and return its id."""
    parts = urllib.parse.urlsplit(url)
    origin = f"{'https' if parts.scheme == 'wss' else 'http'}://{parts.netloc}"
    request = urllib.request.Request(
        f"{origin}/generation/queue-generation",
        data=json.dumps({"prompt": prompt}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["job_id"]


def arguments():
    parser = argparse.ArgumentParser(description="Watch the jobs of a Stepcast server.")
    parser.add_argument("url", nargs="?", default=DEFAULT_URL, help=f"default: {DEFAULT_URL}")
    parser.add_argument(
        "--submit", metavar="PROMPT", action="append", default=[],
        help="submit a job first, and watch only what was submitted; may be repeated",
    )
    parser.add_argument("--until-complete", metavar="N", type=int, default=0, help="stop once N jobs have completed")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, help="give up after so long")
    options = parser.parse_args()
    if not options.url.startswith(("ws://", "wss://")):
        parser.error(f"{options.url} does not begin with ws:// or wss://")
    return options


def main():
    options = arguments()
    try:
        submitted = {submit(options.url, prompt) for prompt in options.submit}
    except urllib.error.HTTPError as error:
        print(f"not accepted: {error.code}: {error.read().decode(errors='replace')}", file=sys.stderr)
        return FAILED
    except OSError as error:
        print(f"not submitted: {error}", file=sys.stderr)
        return FAILED
    watcher = Watcher(Display(), options.until_complete, submitted)
    try:
        return asyncio.run(asyncio.wait_for(watch(options.url, watcher), options.timeout))
    except asyncio.TimeoutError:
        print(f"timed out: {watcher.completed} jobs completed", file=sys.stderr)
        return TIMED_OUT
    except KeyboardInterrupt:
        return OK


if __name__ == "__main__":
    sys.exit(main())
