"""Commands on this host: doctor, env."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Annotated

import typer

from runta.cli.complaints import ERROR
from runta.cli.door import Json, door_of
from runta.errors import ConfigError
from runta.layout import Layout
from runta.settings import Settings, load_settings


def doctor(
    ctx: typer.Context,
    as_json: Json = False,
    all_checks: Annotated[bool, typer.Option("--verbose", "-v", help="Also what each thing is for.")] = False,
) -> int:
    """Look at everything runta stands on. Changes nothing; exit code 1 where something required is missing."""
    from runta.kernel.host import check_host

    checks = check_host(load_settings())
    missing = [check for check in checks if check.required and not check.ok]
    lines = []
    for check in checks:
        mark = "ok" if check.ok else "MISSING" if check.required else "worse"
        lines.append(f"{mark:8} {check.name}: {check.found}")
        if not check.ok or all_checks:
            lines += [
                f"           {label}: {text}"
                for label, text in (("why", check.cost), ("what to do", check.mend))
                if text
            ]
    lines.append("this host is ready" if not missing else f"this host is not ready: {len(missing)} missing")
    door_of(ctx).show({"ok": not missing, "checks": [asdict(check) for check in checks]}, "\n".join(lines))
    return ERROR if missing else 0


def env(ctx: typer.Context, as_json: Json = False) -> None:
    """Print the `export` lines that make the official SDK, or a client without root, talk to this service."""
    door, settings = door_of(ctx), load_settings()
    if settings.endpoint is None:
        with door.client() as client:
            client.health()
    endpoint, token = settings.endpoint or _listening_url(settings), settings.token or _read_token(settings)
    variables = {"RUNTA_ENDPOINT": endpoint, "RUNTA_TOKEN": token}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    door.show(variables, "\n".join(lines))


def _listening_url(settings: Settings) -> str:
    """What a client of this host connects to."""
    if not settings.listen:
        raise ConfigError(
            "the service has no TCP listener\nwhy: RUNTA_LISTEN is empty\n"
            "what to do: set it to an address such as 127.0.0.1:7878 and restart the service"
        )
    host, _, port = settings.listen.rpartition(":")
    return f"http://{ {'0.0.0.0': '127.0.0.1', '': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}"


def _read_token(settings: Settings) -> str:
    path = Layout(settings.state_dir, settings.run_dir).token
    try:
        return path.read_text().strip()
    except OSError as err:
        raise ConfigError(
            f"can't read the service's token {path}\nwhy: {err.strerror}\n"
            "what to do: run this as root (sudo), on the host of a service with a TCP listener"
        ) from err
