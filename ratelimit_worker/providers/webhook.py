"""How does an alert leave? One POST of JSON to an address that is itself a secret: it stands in no log and no error."""

from __future__ import annotations

import logging

import httpx2 as httpx

import ratelimit_worker
from ratelimit_worker.providers import network

#: Longest wait for a connection, and longest silence, seconds.
TIMEOUT_S = 5.0


class NotTaken(Exception):
    """The web hook has not taken it. `str()` says why, without the address.

    Args:
        refused: It says that this one is wrong, rather than that it cannot take any now.
    """

    def __init__(self, why: str, refused: bool = False) -> None:
        super().__init__(why, refused)
        self.why, self.refused = why, refused

    def __str__(self) -> str:
        return self.why


class Webhook:
    """The web hook at `url`. Proxies and certificates of the environment are honoured.

    Raises:
        ConfigurationError: These cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._url = httpx.URL(url)
        network.check()
        self._client = httpx.Client(
            timeout=TIMEOUT_S,
            follow_redirects=False,
            headers={"user-agent": f"ratelimit-worker/{ratelimit_worker.__version__}"},
        )
        # httpx logs the whole address of each request at INFO
        logging.getLogger("httpx2").addFilter(self._is_another)

    def post(self, body: bytes) -> None:
        """Send one body of JSON; of the answer only its status is read.

        Raises:
            NotTaken: no answer, or one that is not 2xx.
        """
        request = self._client.build_request(
            "POST", self._url, content=body, headers={"content-type": "application/json"}
        )
        try:
            answer = self._client.send(request, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise NotTaken(type(error).__name__) from None
        status = answer.status_code
        answer.close()
        if not 200 <= status < 300:
            raise NotTaken(f"HTTP {status}", refused=300 <= status < 500 and status not in {408, 425, 429})

    def close(self) -> None:
        """Let go of connections."""
        logging.getLogger("httpx2").removeFilter(self._is_another)
        self._client.close()

    def _is_another(self, record: logging.LogRecord) -> bool:
        return not (isinstance(record.args, tuple) and self._url in record.args)
