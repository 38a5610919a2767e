"""The secrets' operations, as steps."""

from __future__ import annotations

from urllib.parse import quote

from runta.client.answers import data_of, raise_for_status
from runta.client.steps import BUSY, Request, Steps
from runta.client.types import SecretInfo


def set_secret(name: str, value: str, cache_ttl_secs: int) -> Steps[SecretInfo]:
    """Store or replace a secret; an injected value may be kept `cache_ttl_secs` seconds."""
    body = {"value": value, "cache_ttl_secs": cache_ttl_secs}
    return SecretInfo.from_json(data_of((yield Request(method="PUT", path=_path(name), json=body))))


def get_secret(name: str) -> Steps[SecretInfo]:
    """By id or name."""
    return SecretInfo.from_json(data_of((yield Request(method="GET", path=_path(name), retry_on=BUSY))))


def list_secrets() -> Steps[list[SecretInfo]]:
    """All of them, without their values."""
    return [
        SecretInfo.from_json(item) for item in data_of((yield Request(method="GET", path="/v2/secrets", retry_on=BUSY)))
    ]


def delete_secret(name: str) -> Steps[None]:
    """By id or name."""
    info = yield from get_secret(name)
    raise_for_status((yield Request(method="DELETE", path=_path(info.id))))


def _path(name: str) -> str:
    return f"/v2/secrets/{quote(name, safe='')}"
