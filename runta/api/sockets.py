"""The service's listening sockets and the token: made here, with their modes, before anybody can connect."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import secrets
import socket
import stat
from pathlib import Path

from runta.errors import FailedPrecondition, InvalidArgument

log = logging.getLogger(__name__)

TOKEN_PREFIX = "rt_"


def open_unix_socket(path: Path) -> socket.socket:
    """Bind the Unix socket, mode 0600; a stale one is replaced, a living one is FailedPrecondition."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)  # Nobody can connect yet: that takes listen().
    except OSError as err:
        listener.close()
        raise FailedPrecondition(
            f"can't open the socket {path}",
            cause=err.strerror or str(err),
            hint="set RUNTA_RUN_DIR to a short, writable path",
        ) from err
    return listener


def open_tcp_socket(listen: str, *, needed: bool) -> socket.socket | None:
    """Bind the loopback address. A taken port is an error where the address was asked for, else a warning and None."""
    host, port = parse_listen(listen)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # Here, since two sockets may bind one port and only one may listen.
    except OSError as err:
        listener.close()
        hint = "set RUNTA_LISTEN to another port, or to nothing for the Unix socket alone"
        cause = "the port is taken" if err.errno == errno.EADDRINUSE else err.strerror
        if needed:
            raise FailedPrecondition(f"can't listen on {listen}", cause=cause, hint=hint) from err
        log.warning("no TCP listener: can't listen on %s: %s; %s", listen, cause, hint)
        return None
    return listener


def parse_listen(listen: str) -> tuple[str, int]:
    """`127.0.0.1:7878`, `[::1]:7878` or `localhost:7878`; InvalidArgument for what other hosts could reach."""
    host, _, port = listen.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isdecimal() or int(port) > 65535 or not host:
        raise InvalidArgument(f"{listen!r} is not an address to listen on", hint="write host:port, as 127.0.0.1:7878")
    if host == "localhost":
        return "127.0.0.1", int(port)
    if not _is_loopback(host):
        raise InvalidArgument(
            f"{host} is not a loopback address",
            cause="the token goes over the wire as it is, and who holds it is root on this host",
            hint="listen on 127.0.0.1, and reach it from elsewhere through ssh -L or a proxy with TLS",
        )
    return host, int(port)


def ensure_token(path: Path) -> str:
    """The TCP listener's bearer token; made at the first start, mode 0600."""
    try:
        if token := path.read_text().strip():
            path.chmod(0o600)
            return token
    except FileNotFoundError:
        pass
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _remove_stale(path: Path) -> None:
    """Remove the socket of a service that is gone."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FailedPrecondition(f"{path} exists and is not a socket", hint="remove it, or set RUNTA_RUN_DIR")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise FailedPrecondition(f"a service already answers at {path}", hint="stop it first, or set RUNTA_RUN_DIR")
