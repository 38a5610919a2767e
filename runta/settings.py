"""The only reader of environment and configuration files.

Environment first, then a table of the configuration file, then the default. The service reads
`/etc/runta/config.toml`, clients `~/.config/runta/config.toml`; the official SDK reads the same user file, so our
own keys stand in a table of their own there (`[local]`) and never disturb its `endpoint` and `token`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runta.errors import ConfigError

SERVICE_CONFIG = Path("/etc/runta/config.toml")
_SWITCH = {"1": True, "on": True, "yes": True, "true": True, "0": False, "off": False, "no": False, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where the service keeps things and how it is reached."""

    state_dir: Path = Path("/var/lib/runta")
    run_dir: Path = Path("/run/runta")
    lib_dir: Path = Path("/usr/local/lib/runta")
    """What `runta setup` installs for this host (the private CRIU)."""
    listen: str = "127.0.0.1:7878"
    """Address of the TCP listener, `host:port`; empty: the Unix socket alone."""
    endpoint: str | None = None
    """What clients talk to; None: the Unix socket in `run_dir`."""
    token: str | None = None
    runtime: str = "runc"
    """The OCI runtime's program."""
    dump_dir: Path | None = None
    """Where CRIU writes dumps while a runtime stands still, in memory (tmpfs) best; None: in `state_dir` at once."""
    ksm: bool = False
    """Whether the kernel may merge equal memory of runtimes, which lets it do so on the whole host."""
    config_file: Path | None = None
    """The file the values came from, if there was one."""

    @property
    def socket(self) -> Path:
        """The service's Unix socket."""
        return self.run_dir / "runta.sock"


def load_settings(environ: Mapping[str, str] | None = None, *, config_path: Path | None = None) -> Settings:
    """Read the settings of this process, from the given configuration file if there is one.

    Raises ConfigError if a configuration file exists but can't be read.
    """
    env = os.environ if environ is None else environ
    path = config_path or _config_path(env)
    table = _read_local_table(path)

    def value(name: str) -> str | None:
        """Environment, else file; blank counts as unset except for `listen`, where empty means none."""
        raw = env.get(f"RUNTA_{name.upper()}")
        if raw is None:
            found = table.get(name)
            raw = None if found is None else str(found)
        if raw is None:
            return None
        raw = raw.strip()
        return raw if raw or name == "listen" else None

    default = Settings()
    listen = value("listen")
    return Settings(
        state_dir=Path(value("state_dir") or default.state_dir),
        run_dir=Path(value("run_dir") or default.run_dir),
        lib_dir=Path(value("lib_dir") or default.lib_dir),
        listen=default.listen if listen is None else listen,
        endpoint=_strip_slash(value("endpoint")),
        token=value("token"),
        runtime=value("runtime") or default.runtime,
        dump_dir=Path(found) if (found := value("dump_dir")) else None,
        ksm=_parse_switch("ksm", value("ksm"), default.ksm),
        config_file=path,
    )


def tool_path(environ: Mapping[str, str] | None = None) -> str:
    """PATH for the host's tools: what the caller has, and the system directories, which a cron job or a unit may
    lack."""
    env = os.environ if environ is None else environ
    wanted = [
        *env.get("PATH", "").split(":"),
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ]
    return ":".join(dict.fromkeys(part for part in wanted if part))


def terminal_type(environ: Mapping[str, str] | None = None) -> str | None:
    """What kind of terminal the user sits at, as programs name it; None without one."""
    env = os.environ if environ is None else environ
    return env.get("TERM") or None


def _parse_switch(name: str, text: str | None, default: bool) -> bool:
    """On or off. Raises ConfigError for anything else."""
    if text is None:
        return default
    if text.lower() not in _SWITCH:
        raise ConfigError(f"{name} is {text!r}: it must be one of {', '.join(_SWITCH)}")
    return _SWITCH[text.lower()]


def _strip_slash(value: str | None) -> str | None:
    return value.rstrip("/") if value else value


def _config_path(env: Mapping[str, str]) -> Path | None:
    """The file to read: RUNTA_CONFIG, else the user's, else the host's."""
    if env.get("RUNTA_CONFIG"):
        return Path(env["RUNTA_CONFIG"])
    home = env.get("HOME")
    candidates = [Path(home) / ".config/runta/config.toml"] if home else []
    return next((path for path in [*candidates, SERVICE_CONFIG] if path.is_file()), None)


def _read_local_table(path: Path | None) -> Mapping[str, object]:
    """Our keys of a configuration file: its `[local]` table over its top level (where the official SDK's keys
    stand)."""
    if path is None or not path.exists():
        return {}
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, ValueError) as err:
        raise ConfigError(f"can't read the configuration file {path}: {err}") from err
    local = data.get("local", {})
    top = {key: data[key] for key in ("endpoint", "token", "state_dir", "run_dir", "listen", "runtime") if key in data}
    return {**top, **(local if isinstance(local, dict) else {})}
