"""What a client may be told."""

from __future__ import annotations

from runta.client.steps import MAX_ATTEMPTS


def check_client_options(timeout: float, attempts: int, pool: int) -> None:
    """Raise ValueError for options no client can work with."""
    if not timeout > 0:
        raise ValueError("timeout must be above 0 seconds")
    if not 1 <= attempts <= MAX_ATTEMPTS:
        raise ValueError(f"retry_max_attempts must be 1 to {MAX_ATTEMPTS}")
    if pool < 1:
        raise ValueError("connection_pool_maxsize must be at least 1")
