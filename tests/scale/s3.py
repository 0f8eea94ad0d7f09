"""As much of S3's protocol as one object at a time needs, on the loopback interface; and ways to fail."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class Bucket:
    """A bucket in memory."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        #: An HTTP status that every request gets, or None.
        self.status: int | None = None
        #: Requests wait until this is set.
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.may_answer.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        bucket = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def answer(self, status: int, body: bytes = b"", length: int | None = None) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.send_header("ETag", '"1"')
                self.send_header("Last-Modified", "Sun, 01 Nov 2026 00:00:00 GMT")
                self.end_headers()
                self.wfile.write(body)

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                bucket.may_answer.wait()
                if bucket.status is not None:
                    self.answer(bucket.status, b"<Error><Code>Told</Code></Error>")
                elif self.command == "PUT":
                    bucket.objects[self.path] = body
                    self.answer(200)
                elif self.command == "POST":  # ?delete, with the names in its body
                    for name in re.findall(rb"<Key>(.*?)</Key>", body):
                        bucket.objects.pop(f"{self.path.partition('?')[0]}/{name.decode()}", None)
                    self.answer(200, b"<DeleteResult></DeleteResult>")
                elif self.path not in bucket.objects:
                    self.answer(404)
                elif self.command == "HEAD":
                    self.answer(200, length=len(bucket.objects[self.path]))
                else:
                    self.answer(200, bucket.objects[self.path])

            do_GET = do_HEAD = do_PUT = do_POST = handle_one

        return Handler
