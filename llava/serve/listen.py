"""The address that a server listens at, taken before anything else takes time.

Called by :mod:`llava.serve.api` and :mod:`llava.serve.demo`.
"""

from __future__ import annotations

import os
import socket


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for connections.

    Raises:
        ValueError: the port is taken, or there is no such host here.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        code = getattr(error, "errno", None)
        reason = os.strerror(code) if code and code > 0 else error
        raise ValueError(
            f"cannot listen at {host}, port {port} ({reason}): choose others with --host and --port"
        ) from None
