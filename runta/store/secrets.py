"""Secrets at rest: values encrypted with this host's key file (Fernet: AES-128-CBC and HMAC-SHA256)."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from runta.errors import InternalError, NotFound
from runta.models import Secret, new_id, now
from runta.rules import check_secret, suggest
from runta.store.database import Database
from runta.store.staging import sync_directory

_MODE_PRIVATE = 0o600
_SHOWN = 4
_LONG = 16
_MASK = "****"


class Secrets:
    """The secrets of this host. What was read from the key file stays in memory."""

    def __init__(self, database: Database, key_file: Path) -> None:
        self._database = database
        self._key_file = key_file
        self._cipher: Fernet | None = None

    def put(self, ref: str, value: str, cache_ttl_secs: int) -> Secret:
        """Store a secret under its name, or replace the value of the one with this id or name."""
        check_secret(ref, value)
        known = self._database.find_secret(ref)
        moment = now()
        secret = Secret(
            id=known.id if known else new_id(),
            name=known.name if known else ref,
            cache_ttl_secs=cache_ttl_secs,
            preview=_mask(value),
            created_at=known.created_at if known else moment,
            updated_at=moment,
        )
        self._database.save_secret(secret, self._open_cipher().encrypt(value.encode()))
        return secret

    def get(self, ref: str) -> Secret:
        """By id or name. Raises NotFound."""
        found = self._database.find_secret(ref)
        if found is None:
            hint = suggest(ref, (secret.name for secret in self.list())) or "`runta secret set` stores one"
            raise NotFound(f"there is no secret {ref!r}", hint=hint)
        return found

    def list(self) -> list[Secret]:
        """Oldest first."""
        return self._database.secrets()

    def remove(self, ref: str) -> Secret:
        """Forget a secret; return what it was. Raises NotFound."""
        found = self.get(ref)
        self._database.remove_secret(found.id)
        return found

    def reveal(self, ref: str) -> str:
        """A secret's value. Raises NotFound, or InternalError where the key is not the one it was stored with."""
        token = self._database.read_secret(self.get(ref).id)
        try:
            return self._open_cipher().decrypt(token).decode()
        except InvalidToken as err:
            raise InternalError(
                f"the secret {ref!r} can't be decrypted",
                cause=f"{self._key_file} is not the key it was stored with",
                hint="put the key file back, or set the secret anew",
            ) from err

    def _open_cipher(self) -> Fernet:
        if self._cipher is None:
            try:
                self._cipher = Fernet(self._read_key())
            except ValueError as err:
                raise InternalError(
                    f"{self._key_file} holds no key", cause=str(err), hint="put the key file back from a backup"
                ) from err
        return self._cipher

    def _read_key(self) -> bytes:
        """The key; made at the first use, unless there are secrets that only a lost one could read."""
        try:
            key = self._key_file.read_bytes().strip()
        except FileNotFoundError:
            if self._database.secrets():
                raise InternalError(
                    f"the key file {self._key_file} is gone",
                    cause="the stored secrets were encrypted with it",
                    hint="put it back, or delete the secrets with `runta secret rm`",
                ) from None
            return self._make_key()
        self._key_file.chmod(_MODE_PRIVATE)
        return key

    def _make_key(self) -> bytes:
        """Written whole, under its name only when it is on the disk."""
        key = Fernet.generate_key()
        draft = self._key_file.with_name(f"{self._key_file.name}.{os.getpid()}")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _MODE_PRIVATE)
        try:
            os.write(fd, key + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        draft.replace(self._key_file)
        sync_directory(self._key_file.parent)
        return key


def _mask(value: str) -> str:
    """What may be shown: the end of a long value, nothing of a short one."""
    return _MASK + value[-_SHOWN:] if len(value) >= _LONG else _MASK
