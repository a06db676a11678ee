"""Files at http(s) addresses that a stranger names: from public hosts alone, with bounds on size and time.

Called by :mod:`llava.serve.messages`.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from functools import partial
from typing import Any


def fetch(address: str, max_bytes: int, seconds: float) -> bytes:
    """The file at an address. Environment variables that name proxies are not followed.

    Raises:
        ValueError: the address, or one that it leads on to, is not of a public host, does not answer in time, or the
            file is too large.
    """
    line = _Line(seconds)
    opener = urllib.request.OpenerDirector()
    for handler in (
        _Handler(line),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    try:
        with opener.open(address, timeout=seconds) as response:
            content = response.read(max_bytes + 1)
    except urllib.error.URLError as error:
        raise ValueError(line.late or str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(line.late or str(error) or type(error).__name__) from error
    finally:
        line.end()
    if line.late:  # an end of file, as far as the reader could tell
        raise ValueError(line.late)
    if len(content) > max_bytes:
        raise ValueError(f"the file has more than {max_bytes} bytes")
    return content


def is_public(address: str | int) -> bool:
    """Whether an IP address is of the public internet: not of this machine, a private network or a cloud's own."""
    ip = ipaddress.ip_address(str(address).partition("%")[0])
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None) or ip
    return ip.is_global and inner.is_global and not inner.is_multicast


class _Line:
    """Connections to public hosts, all of which are cut when the time is over: a socket's own timeout begins anew
    with every byte.

    Attributes:
        late: what to say once they were cut.
    """

    def __init__(self, seconds: float) -> None:
        self.late = ""
        self._seconds = seconds
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def connect(self, host: str, port: int) -> socket.socket:
        """The addresses that are checked are those that are connected to, so that a name cannot stand for another
        address in between."""
        if port > 65535:
            raise ValueError(f"there is no port {port}")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        if not all(is_public(place[0]) for *_, place in found):
            raise ValueError(f"{host} is not a public host")
        family, kind, protocol, _, place = found[0]
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(self._seconds)
        with self._lock:
            self._open.append(connection.dup())
        connection.connect(place)
        return connection

    def _cut(self) -> None:
        with self._lock:
            self.late = f"the file did not come within {self._seconds:g} s"
            for connection in self._open:
                with suppress(OSError):  # not connected yet, or no longer
                    connection.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        self._timer.cancel()
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()


class _Plain(http.client.HTTPConnection):
    def __init__(self, *args: Any, line: _Line, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._line = line

    def connect(self) -> None:
        self.sock = self._line.connect(self.host, self.port)


class _Tls(_Plain):
    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


class _Handler(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    def __init__(self, line: _Line) -> None:
        super().__init__()
        self._line = line

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(partial(_Plain, line=self._line), req)

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(partial(_Tls, line=self._line), req)
