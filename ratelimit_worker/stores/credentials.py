"""The password of Redis from a file, which is read anew for each connection.

A URL is read once, when a process starts: after the password is changed, the process must be restarted. With a file, a
process that waits for Redis goes on by itself once the file is changed.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError

from ratelimit_worker.config import REDIS_PASSWORD_FILE, environment

MOST_BYTES = 4096  #: most bytes that are read, since the path may be a device without an end


class PasswordFile(CredentialProvider):
    """The password in a file, for a user or the server's default one."""

    def __init__(self, path: Path, user: str = "") -> None:
        self._path, self._user = path, user

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """The credentials, for redis-py.

        Raises:
            AuthenticationError: the file cannot be read or is empty; one line that names it. As with a wrong password,
                a process that waits for Redis tries again.
        """
        try:
            with self._path.open("rb") as file:
                password = file.read(MOST_BYTES).decode("utf-8").strip()
        except (OSError, ValueError) as error:
            said = f"{REDIS_PASSWORD_FILE}: {self._path} cannot be read ({type(error).__name__})"
            raise AuthenticationError(said) from None
        if not password:
            raise AuthenticationError(f"{REDIS_PASSWORD_FILE}: {self._path} is empty")
        return (self._user, password) if self._user else (password,)


def credentials_of(url: str) -> tuple[str, PasswordFile | None]:
    """(URL, source of the password). The source is None if MAISD_REDIS_PASSWORD_FILE is not set.

    With a source, the user is removed from the URL, since redis-py and kombu accept a user from one place only.
    """
    path = environment().get(REDIS_PASSWORD_FILE, "").strip()
    if not path:
        return url, None
    user, separator, _ = urlsplit(url).netloc.rpartition("@")
    scheme, between, rest = url.partition("://")  # urlunsplit would write unix:/path
    plain = f"{scheme}{between}{rest[len(user) + 1 :]}" if separator else url
    return plain, PasswordFile(Path(path).expanduser(), unquote(user.partition(":")[0]))
