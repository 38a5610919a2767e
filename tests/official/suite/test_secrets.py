"""Secrets."""

from __future__ import annotations

import pytest

from runta import ApiError

VALUE = "a-value-that-must-not-come-out"


def test_life_of_a_secret(client, name):
    secret = client.secrets.set(name, VALUE, cache_ttl_secs=60)
    try:
        assert (secret.display_name, secret.cache_ttl_secs) == (name, 60)
        assert VALUE not in repr(secret)
        again = client.secrets.set(name, VALUE + "2")
        assert again.id == secret.id
        assert client.secrets.get(name) == client.secrets.get(secret.id) == again
        assert name in [one.display_name for one in client.secrets.list()]
    finally:
        client.secrets.delete(name)
    with pytest.raises(ApiError) as gone:
        client.secrets.get(name)
    assert (gone.value.status_code, gone.value.code) == (404, "not_found")


def test_refusals(client):
    for wrong, value, status in (("RUNTA_X", "v", 403), ("a b", "v", 422), ("empty", "", 422)):
        with pytest.raises(ApiError) as refused:
            client.secrets.set(wrong, value)
        assert refused.value.status_code == status
