"""Checks the proxies and certificates that the environment names.

It is done once, before the first request, with an error in words: otherwise each call would fail when its client is
made.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from ratelimit_worker.errors import ConfigurationError

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
#: As OpenSSL and the client read them: a file of certificates, or a folder of them, in place of the system's.
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_READ = frozenset((*_PROXIES, *_CERTIFICATES))


def check(environ: Mapping[str, str] = os.environ) -> None:
    """Look at the proxies and certificates that an environment names.

    Raises:
        ConfigurationError: One of them cannot be used: one line with its name and the fix, and no password.
    """
    global _fine
    seen = tuple((name, environ[name]) for name in sorted(environ) if name.upper() in _READ)
    if seen == _fine:
        return
    told = problem(environ)
    if told is not None:
        raise ConfigurationError(told)
    _fine = seen


#: What was checked last, and is in order: a worker makes a client for each of its threads, and reading the
#: certificates takes most of that time.
_fine: tuple[tuple[str, str], ...] | None = None


def problem(environ: Mapping[str, str] = os.environ) -> str | None:
    """What is wrong with them, in one line; None: nothing."""
    for name, value in sorted(environ.items()):
        if name.upper() in _PROXIES and value.strip():
            told = _wrong_proxy(value.strip())
            if told is not None:
                return f"{name}: {told}"
    for name in _CERTIFICATES:
        if value := environ.get(name, ""):
            told = _wrong_certificates(name, value)
            if told is not None:
                return f"{name}={value}: {told}"
            break  # if the first is set, the second is not used
    return None


def _wrong_proxy(value: str) -> str | None:
    import httpx2 as httpx  # a process that only sends calls, or runs own functions, does without it

    url = value if "://" in value else f"http://{value}"
    try:
        transport = httpx.HTTPTransport(proxy=httpx.Proxy(url), verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    except ImportError:
        return f"{_place(url)} is a SOCKS proxy, which needs a package more: pip install 'ratelimit-worker[socks]'"
    except (httpx.InvalidURL, ValueError):
        return f"{_place(url)} is no proxy; use http://host:port, https://… or socks5://…"
    transport.close()
    return None if httpx.URL(url).host else f"{_place(url)} is no proxy; use http://host:port, https://… or socks5://…"


def _place(url: str) -> str:
    """A proxy's URL without user and password."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname or ''}{port}"
    except ValueError:
        return "the value"


def _wrong_certificates(name: str, value: str) -> str | None:
    folder = name.endswith("DIR")
    path = Path(value)
    try:
        if not (path.is_dir() if folder else path.is_file()):
            return f"no such {'folder' if folder else 'file'}; correct it or unset {name}"
        ssl.create_default_context(capath=value) if folder else ssl.create_default_context(cafile=value)
    except (OSError, ssl.SSLError) as error:
        said = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        return f"no certificates that can be read ({said or type(error).__name__}); correct it or unset {name}"
    return None
