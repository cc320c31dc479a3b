"""Sends a notice: one POST of JSON to an address that is itself secret, and so is in no log and no error.

With a secret it is signed as in Standard Webhooks (https://www.standardwebhooks.com), so that the receiver knows
who sent it and when: HMAC-SHA256 of id, time and body, with the time in a header against replay.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import httpx2 as httpx

import ratelimit_worker
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.providers import network

#: Longest wait for a connection, and longest silence, seconds.
TIMEOUT_S = 5.0
SLACK_HOST = "hooks.slack.com"
_ENCODED = "whsec_"  #: prefix of secrets in base64


class NotTaken(Exception):
    """The web hook has not accepted it. `str()` says why, without the address.

    Args:
        refused: The web hook says that this notice is invalid, rather than that it can accept none now.
    """

    def __init__(self, why: str, refused: bool = False) -> None:
        super().__init__(why, refused)
        self.why, self.refused = why, refused

    def __str__(self) -> str:
        return self.why


class Webhook:
    """The web hook at `url`. Proxies and certificates of the environment are honoured.

    Args:
        form: "json", "slack", or "auto": depends on the host.
        secret: Signs notices; read again for each one, so that a changed secret is used at once; "": no signature.
        clock: Seconds since the epoch.
    Raises:
        ConfigurationError: These cannot be used, or there is no such secret.
    """

    def __init__(
        self,
        url: str,
        form: str = "auto",
        secret: Callable[[], str] = lambda: "",
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = httpx.URL(url)
        self._slack = form == "slack" or (form == "auto" and self._url.host == SLACK_HOST)
        self._secret, self._clock = secret, clock
        secret()
        network.check()
        self._client = httpx.Client(
            timeout=TIMEOUT_S,
            follow_redirects=False,
            headers={"user-agent": f"ratelimit-worker/{ratelimit_worker.__version__}"},
        )
        # httpx logs the whole address of each request at INFO
        logging.getLogger("httpx2").addFilter(self._is_another)

    @property
    def digest(self) -> str:
        """A digest of the address: it differs for other addresses, and does not reveal this one."""
        return hashlib.sha256(str(self._url).encode()).hexdigest()[:16]

    def post(self, body: bytes, name: str = "") -> None:
        """Send one notice; of the answer only its status is read.

        Args:
            body: JSON.
            name: Id of its event: the same whenever it is sent again.
        Raises:
            NotTaken: no answer, or one that is not 2xx.
        """
        content = slack(body) if self._slack else body
        headers = {"content-type": "application/json"}
        try:
            headers |= signed(self._secret(), name, int(self._clock()), content)
            request = self._client.build_request("POST", self._url, content=content, headers=headers)
            answer = self._client.send(request, stream=True)
        except ConfigurationError as error:
            raise NotTaken(str(error)) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise NotTaken(type(error).__name__) from None
        status = answer.status_code
        answer.close()
        if not 200 <= status < 300:
            raise NotTaken(f"HTTP {status}", refused=300 <= status < 500 and status not in {408, 425, 429})

    def close(self) -> None:
        """Close the connections."""
        logging.getLogger("httpx2").removeFilter(self._is_another)
        self._client.close()

    def _is_another(self, record: logging.LogRecord) -> bool:
        return not (isinstance(record.args, tuple) and self._url in record.args)


def signed(secret: str, name: str, at_s: int, body: bytes) -> dict[str, str]:
    """Headers that say which notice this is, when it is sent, and who sends it; none without a secret."""
    if not secret:
        return {}
    name = name.encode("ascii", "replace").decode()
    digest = hmac.new(key_of(secret), f"{name}.{at_s}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": name,
        "webhook-timestamp": str(at_s),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def key_of(secret: str) -> bytes:
    """The key of a secret: base64 after `whsec_`, otherwise the bytes of its text."""
    if secret.startswith(_ENCODED):
        try:
            return base64.b64decode(secret[len(_ENCODED) :], validate=True)
        except binascii.Error:  # a plain text that happens to begin with the prefix
            return secret.encode()
    return secret.encode()


def slack(body: bytes) -> bytes:
    """The notice in Slack's format: its sentence, in which no name can notify a channel or make a link."""
    said: dict[str, Any] = json.loads(body)
    text = str(said.get("text", ""))
    for letter, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(letter, written)
    bold = "*critical* " if said.get("severity") == "critical" else ""
    return json.dumps({"text": f"{bold}{text}", "unfurl_links": False}).encode()
