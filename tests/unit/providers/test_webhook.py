"""What a web hook is sent: signed as Standard Webhooks has it, in the form that its host takes, and without secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ratelimit_worker.config import read_settings, signing_secret
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.providers.webhook import NotTaken, Webhook, key_of, signed, slack

#: The example of the specification (github.com/standard-webhooks/standard-webhooks, its libraries' tests).
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NAME, AT_S, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'


def test_the_signature_is_the_one_of_the_specification() -> None:
    """So receivers can check it with the libraries that there are."""
    assert signed(SECRET, NAME, AT_S, BODY) == {
        "webhook-id": NAME,
        "webhook-timestamp": str(AT_S),
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_time_id_body_and_secret_are_all_signed() -> None:
    """A notice that is sent again later, or changed, does not fit its signature."""
    first = signed(SECRET, NAME, AT_S, BODY)["webhook-signature"]
    others = [
        signed(SECRET, NAME, AT_S + 1, BODY),
        signed(SECRET, "other", AT_S, BODY),
        signed(SECRET, NAME, AT_S, BODY + b" "),
        signed("another secret of mine", NAME, AT_S, BODY),
    ]
    assert all(one["webhook-signature"] != first for one in others)
    assert signed("", NAME, AT_S, BODY) == {}


def test_a_secret_is_base64_or_its_letters() -> None:
    """Also one that only begins as if it were."""
    assert key_of("whsec_c2VjcmV0") == b"secret"
    assert key_of("whsec_not base64!") == b"whsec_not base64!"
    assert key_of("sixteen letters!") == b"sixteen letters!"


def test_an_id_is_a_header() -> None:
    """Whatever stands in it."""
    assert signed(SECRET, "é\u2028", AT_S, b"")["webhook-id"] == "??"


def test_slack_gets_a_sentence_in_which_no_name_calls_anybody() -> None:
    """Names of lanes come from outside."""
    body = json.dumps({"text": "<!channel> & <http://x|y>: halted", "severity": "critical"}).encode()
    said = json.loads(slack(body))
    assert said["text"] == "*critical* &lt;!channel&gt; &amp; &lt;http://x|y&gt;: halted"


def test_where_a_secret_stands(tmp_path: Path) -> None:
    """In the setting, a variable or a file; one that is not there, or too short, is said without its value."""
    file = tmp_path / "secret"
    file.write_text("  from a file, sixteen\n")
    assert signing_secret({}, "sixteen letters!") == "sixteen letters!"
    assert signing_secret({"HOOK": "from the variable"}, "env:HOOK") == "from the variable"
    assert signing_secret({}, f"file:{file}") == "from a file, sixteen"
    for text in ("env:HOOK", f"file:{tmp_path}/none"):
        with pytest.raises(ConfigurationError, match="ALERT_WEBHOOK_SECRET"):
            signing_secret({"HOOK": "hunter2"}, text)
    assert read_settings({"MAISD_ALERT_WEBHOOK_SECRET": f"file:{file}"}).alert_webhook_secret == f"file:{file}"


def test_a_secret_that_is_gone_is_a_failure_as_any_other() -> None:
    """It is read anew for each notice; a worker does not start without it."""
    found = ["sixteen letters!"]

    def secret() -> str:
        if not found:
            raise ConfigurationError("MAISD_ALERT_WEBHOOK_SECRET: file:x cannot be read")
        return found[0]

    hook = Webhook("http://127.0.0.1:9/x", "json", secret)
    found.clear()
    with pytest.raises(NotTaken, match="cannot be read"):
        hook.post(b"{}", "id")
    hook.close()
    with pytest.raises(ConfigurationError):
        Webhook("http://127.0.0.1:9/x", "json", secret)
