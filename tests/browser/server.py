"""The server behind the page, as a program talks to it; and the link to it, which can be cut."""

import json
import select
import socket
import threading
import time
import urllib.error
import urllib.request


class Server:
    """The HTTP side of a running `stepcast up --demo`."""

    def __init__(self, url):
        self.url = url

    def call(self, method, path, body=None, url=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request((url or self.url) + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            text = response.read()
            return json.loads(text) if text else None

    def get(self, path):
        return self.call("GET", path)

    def submit(self, prompt, **fields):
        return self.call("POST", "/generation/queue-generation", {"prompt": prompt, **fields})["job_id"]

    def batch(self, **fields):
        return self.call("POST", "/generation/batch", fields)["batch_id"]

    def cancel(self, job_id):
        self.call("POST", f"/generation/jobs/{job_id}/cancel")

    def job(self, job_id):
        return self.get(f"/generation/jobs/{job_id}")

    def backends(self):
        return self.get("/generation/backends")["backends"]

    def tell_backends(self, what):
        """`pause`, `drain` or `resume` for each."""
        for backend in self.backends():
            self.call("POST", f"/generation/backends/{backend['id']}/{what}")

    def arm(self, backend, fault, jobs=1):
        """Makes the next jobs of a simulated backend fail."""
        address = next(it["url"] for it in self.backends() if it["id"] == backend)
        self.call("POST", "/sim/faults", {"fault": fault, "jobs": jobs}, url=address.rstrip("/"))

    def settle(self):
        """Leaves nothing behind of a check that broke off."""
        self.tell_backends("resume")
        self.clear_queue()

    def clear_queue(self):
        for job in self.get("/generation/jobs/active")["jobs"]:
            try:
                self.cancel(job["job_id"])
            except urllib.error.HTTPError as error:
                if error.code != 409:  # It has ended meanwhile.
                    raise


class Link:
    """Passes bytes on to a server until it is cut; then nobody answers at its address."""

    def __init__(self, url):
        host, port = url.rsplit("://", 1)[1].split(":")
        self.target = (host, int(port))
        self.listener = None
        self.ends = set()
        self.lock = threading.Lock()
        self.port = 0
        self.restore()
        self.url = f"http://127.0.0.1:{self.port}"

    def restore(self):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        self.listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self):
        with self.lock:
            # Shut down first: a thread that waits in accept would keep a closed socket open.
            self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None
            for end in self.ends:
                _shut(end)

    def _accept(self, listener):
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(listener, near), daemon=True).start()

    def _pass(self, listener, near):
        with near, socket.create_connection(self.target) as far:
            pair = {near, far}
            with self.lock:
                if self.listener is not listener:
                    return
                self.ends |= pair
            try:
                _copy(near, far)
            except OSError:
                pass
            finally:
                with self.lock:
                    self.ends -= pair


def _copy(near, far):
    """Until either end closes: a half of a connection serves neither HTTP nor WebSockets."""
    while True:
        for end in select.select([near, far], [], [])[0]:
            data = end.recv(65536)
            if not data:
                return
            (far if end is near else near).sendall(data)


def _shut(end):
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def wait_until(what, condition, seconds):
    """For what happens on the server alone."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.05)
