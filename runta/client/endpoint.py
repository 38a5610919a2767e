"""Where the service is and with which token: argument, then settings, then the Unix socket of this host."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import runta
from runta.errors import ConfigError
from runta.settings import Settings, load_settings

SOCKET_URL = "http://localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A service: its URL and, where it is reached that way, its Unix socket."""

    url: str
    socket: Path | None = None
    token: str | None = field(default=None, repr=False)
    embedded: bool = False
    """Nobody configured it: where it does not answer, it is started."""
    settings: Settings = field(default_factory=Settings, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        headers = {"User-Agent": f"runta-python/{runta.__version__}"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        return headers

    @property
    def secure(self) -> bool:
        return urlsplit(self.url).scheme == "https"

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or "localhost"

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or (443 if self.secure else 80)

    @property
    def base_path(self) -> str:
        return urlsplit(self.url).path.rstrip("/")

    def __str__(self) -> str:
        return str(self.socket) if self.socket else self.url


def resolve_endpoint(
    *, endpoint: str | None = None, token: str | None = None, config_path: str | Path | None = None
) -> Endpoint:
    """Find the service.

    `endpoint` is an `http://` or `https://` URL, or `unix:PATH`. Raises ConfigError where it is neither, where
    a TCP endpoint has no token, or where the configuration can't be read.
    """
    settings = load_settings(config_path=None if config_path is None else Path(config_path))
    wanted = _clean(endpoint) or settings.endpoint
    token = _clean(token) or settings.token
    if wanted is None:
        return Endpoint(url=SOCKET_URL, socket=settings.socket, token=token, embedded=True, settings=settings)
    if wanted.startswith("unix:"):
        socket = Path("/" + wanted.removeprefix("unix:").lstrip("/"))
        return Endpoint(url=SOCKET_URL, socket=socket, token=token, settings=settings)
    _check_url(wanted)
    if token is None:
        raise ConfigError(
            f"no token for {wanted}\n"
            "why: a service reached over TCP asks for one, and neither the token argument nor RUNTA_TOKEN is set\n"
            'what to do: on the service\'s host run: eval "$(sudo runta env)"'
        )
    return Endpoint(url=wanted.rstrip("/"), token=token, settings=settings)


def _clean(value: str | None) -> str | None:
    return (value or "").strip() or None


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"{url!r} is not an endpoint\n"
            "what to do: give http://HOST:PORT, https://HOST[:PORT] or unix:/PATH/runta.sock"
        )
