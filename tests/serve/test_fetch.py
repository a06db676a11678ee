"""Images at addresses: of public hosts alone, within bounds of size and time."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llava.serve import fetch as module
from llava.serve.fetch import fetch, is_public


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.2:1/")
            self.end_headers()
        elif self.path == "/file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
        elif self.path == "/none":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            for _ in range(100 if self.path == "/slow" else 1):
                time.sleep(0.05 if self.path == "/slow" else 0)
                try:
                    self.wfile.write(b"0123456789")
                except OSError:
                    return

    def log_message(self, *args):
        pass


@contextmanager
def site():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1"]
    + [
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "ff02::1",
    ],
)
def test_private_addresses(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(address):
    assert is_public(address)


def test_this_machine_is_refused():
    with site() as address:
        for name in (
            address,
            address.replace("127.0.0.1", "localhost"),
            address.replace("127.0.0.1", "2130706433"),
        ):
            with pytest.raises(ValueError, match="is not a public host"):
                fetch(f"{name}/x", 100, 5)


def test_bounds(monkeypatch):
    monkeypatch.setattr(module, "is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.3:9")
    with site() as address:
        assert fetch(f"{address}/x", 10, 5) == b"0123456789"
        with pytest.raises(ValueError, match="more than 9 bytes"):
            fetch(f"{address}/x", 9, 5)
        start = time.monotonic()
        with pytest.raises(ValueError, match="did not come within 0.4 s"):
            fetch(f"{address}/slow", 10_000, 0.4)
        assert time.monotonic() - start < 3
        with pytest.raises(ValueError, match=r"127.0.0.2 is not a public host"):
            fetch(f"{address}/away", 100, 5)
        with pytest.raises(ValueError, match="not allowed"):
            fetch(f"{address}/file", 100, 5)
        with pytest.raises(ValueError, match="Not Found"):
            fetch(f"{address}/none", 100, 5)
    with pytest.raises(ValueError, match="refused"):
        fetch(f"{address}/x", 100, 5)
    with pytest.raises(ValueError, match="no port"):
        fetch(f"http://127.0.0.1:{10**20}/x", 100, 5)
