"""What happened: a log in a SQLite file of its own, bounded, written by one thread in batches.

An event costs its maker a queue's append; a reader waits until what was recorded before is written. The last moments
before a power cut may be lost, the records of runtimes and checkpoints are elsewhere and are not.
"""

from __future__ import annotations

import json
import logging
import queue
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

from runta.errors import InternalError, InvalidArgument
from runta.models import Event, EventFilter
from runta.store.codec import decode, encode

log = logging.getLogger(__name__)

LIMIT = 100_000
"""Events kept; the oldest go first."""
_SLACK = 1_000
_BATCH = 500
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    place INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
    runtime_id TEXT, runtime_name TEXT, kind TEXT NOT NULL, body TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS events_runtime ON events (runtime_id, place);
CREATE INDEX IF NOT EXISTS events_kind ON events (kind, place);
"""
_MODE_PRIVATE = 0o600
_Row = tuple[str, str | None, str | None, str, str]


class EventLog:
    """The log. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[_Row | threading.Event | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._writer: threading.Thread | None = None

    def open(self) -> None:
        """Open or make the log. A file that is no database is set aside."""
        self._path.touch(mode=_MODE_PRIVATE)
        try:
            self._connection = _connect(self._path)
        except sqlite3.DatabaseError as err:
            aside = self._path.with_suffix(".damaged")
            log.warning("%s can't be read (%s): set aside as %s", self._path, err, aside.name)
            self._path.replace(aside)
            self._path.touch(mode=_MODE_PRIVATE)
            self._connection = _connect(self._path)
        self._writer = threading.Thread(target=self._run, name="events", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Write what was recorded, and close."""
        if self._writer is not None:
            self._queue.put(None)
            self._writer.join()
            self._writer = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def record(self, event: Event) -> None:
        """Keep an event; it is on its way to the disk when this returns."""
        body = json.dumps(encode(event), separators=(",", ":"), default=str)
        self._queue.put((event.id, event.runtime_id, event.runtime_name, event.kind, body))

    def find(self, event_id: str) -> Event | None:
        rows = self._read("SELECT body FROM events WHERE id = ?", (event_id,))
        return decode(Event, json.loads(rows[0][0])) if rows else None

    def select(self, wanted: EventFilter) -> Sequence[Event]:
        """Events in the order asked for, at most `wanted.limit`.

        Raises InvalidArgument where `wanted.after` names no event of the log.
        """
        clauses, values = ["1"], list[str | int]()
        if wanted.runtime is not None:
            clauses.append("(runtime_id = ? OR runtime_name = ?)")
            values += [wanted.runtime, wanted.runtime]
        if wanted.kind is not None:
            clauses.append("kind = ?")
            values.append(wanted.kind)
        if wanted.after is not None:
            clauses.append("place > ?" if wanted.oldest_first else "place < ?")
            values.append(self._place(wanted))
        where, order = " AND ".join(clauses), "ASC" if wanted.oldest_first else "DESC"
        query = f"SELECT body FROM events WHERE {where} ORDER BY place {order} LIMIT ?"
        return [decode(Event, json.loads(row[0])) for row in self._read(query, (*values, wanted.limit))]

    def _place(self, wanted: EventFilter) -> int:
        """Where the event `wanted.after` stands. One that was dropped as too old came before all that is left."""
        rows = self._read("SELECT place FROM events WHERE id = ?", (wanted.after,))
        if rows:
            return int(rows[0][0])
        if wanted.oldest_first:
            return 0
        raise InvalidArgument("page_token is not one of this log", hint="pass next_page_token of the page before")

    def _read(self, query: str, values: Sequence[object]) -> list[tuple[str]]:
        self._flush()
        with self._lock:
            if self._connection is None:
                raise InternalError("the event log is not open")
            return self._connection.execute(query, tuple(values)).fetchall()

    def _flush(self) -> None:
        """Return when what was recorded before is written."""
        if self._writer is not None:
            written = threading.Event()
            self._queue.put(written)
            written.wait()

    def _run(self) -> None:
        """The writer's thread: what lies in the queue goes into one transaction."""
        ending = False
        while not ending:
            batch = [self._queue.get()]
            while len(batch) < _BATCH and not self._queue.empty():
                batch.append(self._queue.get())
            ending = None in batch
            if ending:
                while not self._queue.empty():
                    batch.append(self._queue.get())
            try:
                self._write([item for item in batch if isinstance(item, tuple)])
            except sqlite3.Error as err:
                log.warning("events were lost: %s", err)
            for item in batch:
                if isinstance(item, threading.Event):
                    item.set()

    def _write(self, rows: Sequence[_Row]) -> None:
        with self._lock:
            if not rows or self._connection is None:
                return
            with self._connection as tables:
                tables.executemany(
                    "INSERT INTO events (id, runtime_id, runtime_name, kind, body) VALUES (?, ?, ?, ?, ?)", rows
                )
                (newest,) = tables.execute("SELECT max(place) FROM events").fetchone()
                tables.execute("DELETE FROM events WHERE place < ?", (newest - LIMIT - newest % _SLACK,))


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(_SCHEMA)
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection
