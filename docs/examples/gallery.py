#!/usr/bin/env python3
"""Hang every finished image into a folder, with a page to look at them.

    pip install -r requirements.txt
    NATS_USER=reader NATS_PASSWORD=... python gallery.py --stepcast http://localhost:8000 --folder gallery

Live messages may be missed, while this is stopped or NATS is away. So whenever it begins to listen it also asks over
HTTP what there is; an image that hangs already is left as it is.
"""

import argparse
import asyncio
import html
import json
import os
import pathlib
import sys
import urllib.error
import urllib.request

import nats

SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}
PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Gallery</title>
<style>figure {{ display: inline-block; margin: 1em }} img {{ max-width: 20em }}</style>
{figures}
"""
FIGURE = '<figure><img src="{file}" loading="lazy" alt=""><figcaption>{prompt}</figcaption></figure>'


def completed(stepcast):
    """The ids of all completed jobs, newest first."""
    cursor = ""
    while cursor is not None:
        page = json.load(urllib.request.urlopen(f"{stepcast}/generation/jobs?status=completed&limit=500{cursor}"))
        yield from (job["job_id"] for job in page["jobs"])
        cursor = page["next_cursor"] and f"&cursor={page['next_cursor']}"


def hang(stepcast, folder, job_id):
    """Fetches the images of a job, and makes the page anew if there was one that did not hang yet."""
    try:
        job = json.load(urllib.request.urlopen(f"{stepcast}/generation/jobs/{job_id}"))
        news = [fetch(stepcast, folder, job, index) for index in range(len(job["images"]))]
    except urllib.error.HTTPError as error:
        if error.code not in (404, 410):  # removed since
            raise
        return
    if any(news):
        pictures = sorted(folder.glob("*.json"), reverse=True)
        figures = [FIGURE.format(**json.loads(picture.read_text())) for picture in pictures]
        write(folder / "index.html", PAGE.format(figures="\n".join(figures)).encode())
        print(f"{job_id}: {len(news)} images", flush=True)


def fetch(stepcast, folder, job, index):
    note = folder / f"{job['job_id']}-{index}.json"
    if note.exists():
        return False
    file = note.with_suffix(SUFFIXES.get(job["outputs"][index]["content_type"], ".bin"))
    write(file, urllib.request.urlopen(stepcast + job["images"][index]).read())
    caption = {"file": file.name, "prompt": html.escape(job["params"]["prompt"])}
    write(note, json.dumps(caption).encode())  # last: what it speaks of is there
    return True


def write(path, content):
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


ALL = None


async def run(options):
    wanted = asyncio.Queue()  # ids of jobs, or ALL

    async def heard(message):
        await wanted.put(json.loads(message.data)["data"]["job_id"])

    async def look_around():
        await wanted.put(ALL)

    client = await nats.connect(
        options.nats.split(","), user=options.user, password=os.environ.get("NATS_PASSWORD"),
        inbox_prefix=f"_INBOX.{options.user or 'reader'}".encode(), max_reconnect_attempts=-1,
        reconnected_cb=look_around,
    )
    # Listening first: what is completed between the two is heard of twice rather than never.
    await client.subscribe("stepcast.v1.job.*.*.completed", cb=heard)
    await client.flush()
    await look_around()
    print("listening", flush=True)
    while True:
        job_id = await wanted.get()
        try:
            if job_id is ALL:
                for found in await asyncio.to_thread(list, completed(options.stepcast)):
                    await wanted.put(found)
            else:
                await asyncio.to_thread(hang, options.stepcast, options.folder, job_id)
        except OSError as error:
            print(f"{error}; trying again", file=sys.stderr)
            await asyncio.sleep(1)
            await wanted.put(job_id)


def main():
    parser = argparse.ArgumentParser(description="Hang every finished image into a folder.")
    parser.add_argument("--nats", default=os.environ.get("NATS_URL", "nats://localhost:4222"), metavar="URL[,URL…]")
    parser.add_argument("--user", default=os.environ.get("NATS_USER"), help="the password is read from NATS_PASSWORD")
    parser.add_argument("--stepcast", default="http://localhost:8000", metavar="URL")
    parser.add_argument("--folder", default="gallery", type=pathlib.Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        asyncio.run(run(options))
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
