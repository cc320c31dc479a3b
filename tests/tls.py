"""TLS before a server that has none: certificates of a test's own, and a port that speaks it and passes on the rest."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def certificates(folder: Path) -> Path:
    """A folder with ca.pem, server.pem, client.pem and their keys; a test without openssl is skipped, and says so."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (apt-get install openssl): no certificates can be made")
    folder.mkdir()
    new = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    for name, more in {
        "ca": ["-subj", "/CN=a test's own authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign"],
        "server": ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", *_signed(folder)],
        "client": ["-subj", "/CN=client", *_signed(folder)],
    }.items():
        pair = ["-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.pem"]
        subprocess.run([*new, *pair, *more], check=True, capture_output=True)
    return folder


def _signed(folder: Path) -> list[str]:
    return ["-CA", str(folder / "ca.pem"), "-CAkey", str(folder / "ca.key"), "-addext", "basicConstraints=CA:FALSE"]


@contextmanager
def secured(to: int, folder: Path, *, clients_too: bool = False) -> Iterator[int]:
    """A port on loopback that speaks TLS, before the server on port `to`.

    Args:
        clients_too: Only who shows a certificate of the same authority is let in.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    if clients_too:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "ca.pem")
    loop, ports = asyncio.new_event_loop(), []
    listens = threading.Event()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while some := await source.read(65_536):
                sink.write(some)
                await sink.drain()
        sink.close()

    async def each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, before = await asyncio.open_connection("127.0.0.1", to)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(pump(reader, before), pump(behind, writer))

    async def serve(done: asyncio.Event) -> None:
        server = await asyncio.start_server(each, "127.0.0.1", 0, ssl=context)
        ports.append(server.sockets[0].getsockname()[1])
        listens.set()
        await done.wait()
        server.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    done = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve(done)), daemon=True)
    thread.start()
    assert listens.wait(60)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(60)
