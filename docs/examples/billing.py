#!/usr/bin/env python3
"""Count the images and steps of each owner: what a bill is made of.

    pip install -r requirements.txt
    NATS_USER=operator NATS_PASSWORD=... python billing.py create      # once: makes the durable consumer
    NATS_USER=reader NATS_PASSWORD=... python billing.py count         # until it is stopped, and again
    python billing.py report

Nothing is missed and nothing is counted twice, whenever it is killed: the consumer remembers what was acknowledged, an
event is acknowledged after it is in the ledger, and the ledger takes each Nats-Msg-Id once. Away for more than the seven
days that the stream keeps, it misses what was removed meanwhile.
"""

import argparse
import asyncio
import json
import os
import sqlite3
import sys

import nats
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

STREAM = "STEPCAST_EVENTS"
DEFAULT_STEPS = 20

TABLES = """
CREATE TABLE IF NOT EXISTS started (id TEXT PRIMARY KEY, job TEXT, attempt INTEGER, steps INTEGER);
CREATE TABLE IF NOT EXISTS completed (id TEXT PRIMARY KEY, job TEXT, attempt INTEGER, owner TEXT, images INTEGER);
"""

REPORT = """
SELECT owner, count(*), sum(images), sum(images * coalesce(steps, 0))
FROM completed LEFT JOIN started USING (job, attempt) GROUP BY owner ORDER BY owner
"""


def record(ledger, messages):
    """Puts events into the ledger, all in one transaction; those that are there already change nothing."""
    with ledger:
        for message in messages:
            # stepcast.v1.event.<owner>.<job>.<kind>
            owner, _, kind = message.subject.split(".")[3:]
            id, data = message.headers["Nats-Msg-Id"], json.loads(message.data)["data"]
            job, attempt = data["job_id"], data["attempt"]
            if kind == "started":
                steps = data["params"].get("steps") or DEFAULT_STEPS
                ledger.execute("INSERT OR IGNORE INTO started VALUES (?, ?, ?, ?)", (id, job, attempt, steps))
            elif kind == "completed":
                row = (id, job, attempt, owner, len(data["images"]))
                ledger.execute("INSERT OR IGNORE INTO completed VALUES (?, ?, ?, ?, ?)", row)


async def count(jetstream, consumer, ledger):
    events = await jetstream.pull_subscribe_bind(consumer=consumer, stream=STREAM)
    while True:
        try:
            messages = await events.fetch(100, timeout=5)
        except nats.errors.TimeoutError:
            continue
        except nats.errors.Error as error:
            print(f"NATS is away ({error}); trying again", file=sys.stderr)
            await asyncio.sleep(1)
            continue
        record(ledger, messages)
        for message in messages:
            await message.ack()


async def create(jetstream, consumer, ack_wait):
    """Makes the consumer, or leaves it as it is. Only an operator may."""
    config = ConsumerConfig(
        name=consumer, durable_name=consumer, deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT, ack_wait=ack_wait,
    )
    await jetstream.add_consumer(STREAM, config)
    print(f"{consumer} is there")


async def run(options):
    # A user hears only answers to its own questions: on its own inbox.
    client = await nats.connect(
        options.nats.split(","), user=options.user, password=os.environ.get("NATS_PASSWORD"),
        inbox_prefix=f"_INBOX.{options.user or 'reader'}".encode(), max_reconnect_attempts=-1,
    )
    jetstream = client.jetstream()
    try:
        if options.what == "create":
            await create(jetstream, options.consumer, options.ack_wait)
        else:
            await jetstream.consumer_info(STREAM, options.consumer)
            print("counting", flush=True)
            await count(jetstream, options.consumer, opened(options.ledger))
    finally:
        await client.close()


def opened(path):
    ledger = sqlite3.connect(path)
    ledger.executescript(TABLES)
    return ledger


def arguments():
    parser = argparse.ArgumentParser(description="Count the images and steps of each owner.")
    parser.add_argument("what", choices=["create", "count", "report"])
    parser.add_argument("--nats", default=os.environ.get("NATS_URL", "nats://localhost:4222"), metavar="URL[,URL…]")
    parser.add_argument("--user", default=os.environ.get("NATS_USER"), help="the password is read from NATS_PASSWORD")
    parser.add_argument("--consumer", default="reader", help="the durable consumer, named as the user who reads it")
    parser.add_argument(
        "--ack-wait", type=float, default=30, metavar="SECONDS",
        help="to create: when an event comes again that was not acknowledged, as after a crash",
    )
    parser.add_argument("--ledger", default="billing.db", metavar="FILE")
    return parser.parse_args()


def main():
    options = arguments()
    if options.what == "report":
        for owner, jobs, images, steps in opened(options.ledger).execute(REPORT):
            print(json.dumps({"owner": owner, "jobs": jobs, "images": images, "steps": steps}))
        return 0
    try:
        asyncio.run(run(options))
        return 0
    except KeyboardInterrupt:
        return 0
    except NotFoundError:
        print(f"there is no consumer {options.consumer}: an operator makes it with `create`", file=sys.stderr)
    except nats.errors.Error as error:
        print(f"NATS did not do it ({error}); whether this user may, is in its configuration", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
