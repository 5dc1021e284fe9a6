"""A server on this machine that answers as Google's metadata server does, or fails to."""

import itertools
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

INSTANCE = "/computeMetadata/v1/instance/"


class MetadataServer:
    """With `with`: serves `values`, keys below instance/; requests that wait get their answer from `announce`.

    Attributes:
        host: For GCE_METADATA_HOST.
        fails: How it answers instead: a function of the request's handler that says whether it has answered.
        requests: Key and whether it waits, of each request that came.
    """

    def __init__(self, *, fails=None):
        self.values = {"maintenance-event": "NONE", "preempted": "FALSE"}
        self.fails, self.requests = fails, []
        self._changed, self._etags, self._closed = threading.Condition(), itertools.count(1), False
        self._etag = dict.fromkeys(self.values, "0")
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                owner.answer(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("localhost", 0), Handler)
        self.host = f"localhost:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def announce(self, key, value):
        with self._changed:
            self.values[key], self._etag[key] = value, str(next(self._etags))
            self._changed.notify_all()

    def until(self, condition, timeout=60):
        """Waits for a state of this server, such as a request."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout), self.requests

    def until_somebody_waits(self):
        self.until(lambda: {key for key, waits in self.requests if waits} == set(self.values))

    def answer(self, handler):
        url = urlsplit(handler.path)
        key, query = url.path.removeprefix(INSTANCE), {k: v for k, (v,) in parse_qs(url.query).items()}
        with self._changed:
            self.requests.append((key, "wait_for_change" in query))
            self._changed.notify_all()
            if self.fails and self.fails(handler):
                return
            if handler.headers["Metadata-Flavor"] != "Google" or key not in self.values:
                handler.send_error(403)
                return
            if query.get("wait_for_change") == "true":
                changed = lambda: self._closed or self._etag[key] != query["last_etag"]  # noqa: E731
                self._changed.wait_for(changed, int(query["timeout_sec"]))
            reply(handler, self.values[key], ETag=self._etag[key], **{"Metadata-Flavor": "Google"})


def reply(handler, text, **headers):
    handler.send_response(200)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(text.encode())


# Ways to fail.


def drop(handler):
    handler.close_connection = True
    return True


def drop_what_waits(handler):
    return "wait_for_change" in handler.path and drop(handler)


def garbage(handler):
    handler.wfile.write(b"\xff\0 no HTTP\r\n" * 3)
    return True


def other_page(handler):
    """As of the network of a hotel."""
    reply(handler, "TRUE")
    return True


def unavailable(handler):
    handler.send_error(503)
    return True
