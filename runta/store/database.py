"""The records: which runtimes and checkpoints there are (SQLite, WAL).

A record is its dataclass as JSON beside the few columns that are looked up. What a checkpoint needs to be restored
stands in its manifest too, so a lost database loses no checkpoint.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runta.errors import AlreadyExists, InternalError, NoSpace
from runta.models import Checkpoint, Runtime, Secret
from runta.store.codec import decode, encode

_SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runtimes (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS checkpoints (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS idempotency (key TEXT PRIMARY KEY, runtime_id TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS secrets (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL, value BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS idempotency_runtime ON idempotency (runtime_id);
"""
_MODE_PRIVATE = 0o600


class Database:
    """One connection, used under a lock: each call takes well under a millisecond."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open or make the database. Raises InternalError if a newer runta wrote it."""
        self._path.touch(mode=_MODE_PRIVATE)
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version > _SCHEMA_VERSION:
            connection.close()
            raise InternalError(
                f"{self._path} was written by a newer runta",
                cause=f"its schema is {version}, this program knows {_SCHEMA_VERSION}",
                hint="upgrade runta",
            )
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        self._connection = connection

    def write_out(self) -> None:
        """Let what was recorded survive a power failure, for who is about to remove files on the word of it.

        In WAL mode a commit alone does not (SQLite, "PRAGMA synchronous").
        """
        with self._lock:
            if self._connection is not None:
                self._connection.execute("PRAGMA wal_checkpoint(FULL)").fetchall()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self._connection is None:
            raise InternalError("the database is not open")
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.OperationalError as err:
                if "full" in str(err):
                    raise NoSpace(
                        "there is no room for the record", cause=str(err), hint="free some disk space"
                    ) from err
                raise InternalError("the database failed", cause=str(err)) from err

    def add_runtime(self, runtime: Runtime, idempotency_key: str | None = None) -> None:
        """Raises AlreadyExists if the name or the key is taken."""
        with self._transaction() as tables:
            if tables.execute("SELECT 1 FROM runtimes WHERE name = ?", (runtime.name,)).fetchone():
                raise AlreadyExists(
                    f"a runtime named {runtime.name} exists", hint=f"choose another name, or `runta rm {runtime.name}`"
                )
            tables.execute("INSERT INTO runtimes VALUES (?, ?, ?)", (runtime.id, runtime.name, _dump(runtime)))
            if idempotency_key is not None:
                tables.execute("INSERT INTO idempotency VALUES (?, ?)", (idempotency_key, runtime.id))

    def save_runtime(self, runtime: Runtime) -> None:
        """Replace a record; a removed one stays removed. Raises AlreadyExists if the new name is taken."""
        with self._transaction() as tables:
            try:
                tables.execute(
                    "UPDATE runtimes SET name = ?, body = ? WHERE id = ?", (runtime.name, _dump(runtime), runtime.id)
                )
            except sqlite3.IntegrityError as err:
                raise AlreadyExists(f"a runtime named {runtime.name} exists", hint="choose another name") from err

    def remove_runtime(self, runtime_id: str) -> None:
        with self._transaction() as tables:
            tables.execute("DELETE FROM runtimes WHERE id = ?", (runtime_id,))
            tables.execute("DELETE FROM idempotency WHERE runtime_id = ?", (runtime_id,))

    def runtimes(self) -> list[Runtime]:
        """Oldest first: ids sort by time."""
        with self._transaction() as tables:
            rows = tables.execute("SELECT body FROM runtimes ORDER BY id").fetchall()
        return [decode(Runtime, json.loads(row[0])) for row in rows]

    def find_runtime(self, ref: str) -> Runtime | None:
        """By id or name."""
        with self._transaction() as tables:
            row = tables.execute("SELECT body FROM runtimes WHERE id = ? OR name = ?", (ref, ref)).fetchone()
        return decode(Runtime, json.loads(row[0])) if row else None

    def find_by_key(self, idempotency_key: str) -> Runtime | None:
        """The runtime an earlier request with this key made."""
        query = "SELECT body FROM runtimes JOIN idempotency ON runtimes.id = runtime_id WHERE key = ?"
        with self._transaction() as tables:
            row = tables.execute(query, (idempotency_key,)).fetchone()
        return decode(Runtime, json.loads(row[0])) if row else None

    def add_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Raises AlreadyExists if the name is taken."""
        with self._transaction() as tables:
            if tables.execute("SELECT 1 FROM checkpoints WHERE name = ?", (checkpoint.name,)).fetchone():
                raise AlreadyExists(
                    f"a checkpoint named {checkpoint.name} exists",
                    hint=f"choose another name, or `runta snapshot rm {checkpoint.name}`",
                )
            tables.execute(
                "INSERT INTO checkpoints VALUES (?, ?, ?)", (checkpoint.id, checkpoint.name, _dump(checkpoint))
            )

    def save_checkpoints(self, checkpoints: Iterable[Checkpoint]) -> None:
        with self._transaction() as tables:
            for checkpoint in checkpoints:
                tables.execute("UPDATE checkpoints SET body = ? WHERE id = ?", (_dump(checkpoint), checkpoint.id))

    def remove_checkpoint(self, checkpoint_id: str) -> None:
        with self._transaction() as tables:
            tables.execute("DELETE FROM checkpoints WHERE id = ?", (checkpoint_id,))

    def checkpoints(self) -> list[Checkpoint]:
        """Oldest first."""
        with self._transaction() as tables:
            rows = tables.execute("SELECT body FROM checkpoints ORDER BY id").fetchall()
        return [decode(Checkpoint, json.loads(row[0])) for row in rows]

    def find_checkpoint(self, ref: str) -> Checkpoint | None:
        """By id or name."""
        with self._transaction() as tables:
            row = tables.execute("SELECT body FROM checkpoints WHERE id = ? OR name = ?", (ref, ref)).fetchone()
        return decode(Checkpoint, json.loads(row[0])) if row else None

    def save_secret(self, secret: Secret, value: bytes) -> None:
        """Add or replace a secret; `value` is encrypted."""
        with self._transaction() as tables:
            tables.execute(
                "INSERT INTO secrets VALUES (?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET body = excluded.body, value = excluded.value",
                (secret.id, secret.name, _dump(secret), value),
            )

    def secrets(self) -> list[Secret]:
        """Oldest first."""
        with self._transaction() as tables:
            rows = tables.execute("SELECT body FROM secrets ORDER BY id").fetchall()
        return [decode(Secret, json.loads(row[0])) for row in rows]

    def find_secret(self, ref: str) -> Secret | None:
        """By id or name."""
        with self._transaction() as tables:
            row = tables.execute("SELECT body FROM secrets WHERE id = ? OR name = ?", (ref, ref)).fetchone()
        return decode(Secret, json.loads(row[0])) if row else None

    def read_secret(self, secret_id: str) -> bytes:
        """The encrypted value of a secret that is there."""
        with self._transaction() as tables:
            return bytes(tables.execute("SELECT value FROM secrets WHERE id = ?", (secret_id,)).fetchone()[0])

    def remove_secret(self, secret_id: str) -> None:
        with self._transaction() as tables:
            tables.execute("DELETE FROM secrets WHERE id = ?", (secret_id,))


def _dump(record: Runtime | Checkpoint | Secret) -> str:
    return json.dumps(encode(record), separators=(",", ":"))
