"""Pictures from addresses that strangers name: never from private networks, bounded in size and time.

The address that was checked is the one that is connected to, so a name that changes its mind in between gains nothing.
Redirects and proxies are not followed.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Callable
from contextlib import suppress

from rapidetr.core.errors import ImageError
from rapidetr.pixels.decode import Encoded

Resolve = Callable[[str, int], list[str]]


def resolve(host: str, port: int) -> list[str]:
    """IP addresses of a name."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet, also where it carries an IPv4 address inside."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def fetch_public(url: str, *, max_bytes: int, timeout_s: float, resolve: Resolve = resolve) -> Encoded:
    """The picture at an http(s) address; ImageError where it lies in a private network, is too large, or does not come in time."""
    shown = url[:200]
    parts, port = split(url, shown)
    host = parts.hostname or ""
    try:
        addresses = resolve(host, port)
    except (OSError, UnicodeError):
        raise ImageError(f"{shown}: {host!r:.80} is not a known host; check the address") from None
    if not addresses or not all(map(is_public, addresses)):
        raise ImageError(f"{shown}: is not on the open internet; this server fetches from public addresses only, send the picture itself")
    try:
        return Encoded(download(parts, addresses[0], port, max_bytes, timeout_s, shown), shown)
    except (OSError, http.client.HTTPException, ValueError) as problem:
        if isinstance(problem, ImageError):
            raise
        raise ImageError(f"{shown}: did not deliver within {timeout_s:g} s ({type(problem).__name__}); send the picture itself") from None


def split(url: str, shown: str) -> tuple[urllib.parse.SplitResult, int]:
    """Parts and port of an http(s) address without user and password."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise ImageError(f"{shown!r}: is no address; expected http(s)://host/path") from None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.username is not None
        or not (url.isascii() and url.isprintable())
    ):
        raise ImageError(f"{shown!r}: expected http(s)://host/path in ASCII, without a user")
    return parts, port


def download(parts: urllib.parse.SplitResult, address: str, port: int, max_bytes: int, timeout_s: float, shown: str) -> bytes:
    """The body of a GET from this very address; a timer hangs up, however slowly bytes trickle."""
    wire = socket.create_connection((address, port), timeout_s)
    host = str(parts.hostname)
    if parts.scheme == "https":
        wire = ssl.create_default_context().wrap_socket(wire, server_hostname=host, do_handshake_on_connect=False)
    timer = threading.Timer(timeout_s, hang_up, (wire,))
    timer.start()
    try:
        if isinstance(wire, ssl.SSLSocket):
            wire.do_handshake()
        connection = http.client.HTTPConnection(host, port)
        connection.sock = wire
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), headers={"User-Agent": "rapidetr"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ImageError(f"{shown}: answered {answer.status}; expected 200 (redirects are not followed), check the address")
        data = answer.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise ImageError(f"{shown}: has more than {max_bytes} bytes; expected a smaller picture")
        if answer.length:
            raise ImageError(f"{shown}: broke off after {len(data)} bytes; try again")
        return data
    finally:
        timer.cancel()
        wire.close()


def hang_up(wire: socket.socket) -> None:
    with suppress(OSError):
        wire.shutdown(socket.SHUT_RDWR)
