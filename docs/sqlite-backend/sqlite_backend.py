"""A backend for flask_serversession that needs nothing but the standard library."""

import contextlib
import dataclasses
import sqlite3
import time

from flask_serversession import Backend
from flask_serversession import BackendUnavailableError
from flask_serversession import Capability
from flask_serversession import RecordError
from flask_serversession.backends import Conflict
from flask_serversession.backends import Gone
from flask_serversession.backends import Replaced
from flask_serversession.record import decode_record
from flask_serversession.record import encode_record

TABLE = """
    CREATE TABLE IF NOT EXISTS records (
        key TEXT PRIMARY KEY,
        version INTEGER NOT NULL,
        touched_at REAL NOT NULL,
        expires_at REAL NOT NULL,
        body BLOB NOT NULL
    ) WITHOUT ROWID
"""


class SQLiteBackend(Backend):
    """Keeps records in a table of an SQLite file.

    :param path: The file.
    :param clock: Gives the current time in seconds since the epoch.
    """

    name = "sqlite"
    capabilities = Capability.COMPARE_AND_SWAP | Capability.PRUNE

    def __init__(self, path, clock=time.time):
        self._path = path
        self._clock = clock

    @classmethod
    def from_config(cls, config):
        return cls(config["SQLITE_PATH"])

    def load(self, key):
        with self._transaction("load", "DEFERRED") as db:
            return self._find(db, key)

    def create(self, key, record):
        with self._transaction("create") as db:
            try:
                if self._find(db, key) is not None:
                    return False
            except RecordError:
                return False
            self._store(db, key, record)
            return True

    def replace(self, key, record, expected):
        with self._transaction("replace") as db:
            current = self._find(db, key)
            if current is None:
                return Gone()
            if current.version != expected:
                return Conflict(current)
            self._store(db, key, dataclasses.replace(record, version=expected + 1))
            return Replaced(expected + 1)

    def delete(self, key):
        with self._transaction("delete") as db:
            try:
                record = self._find(db, key)
                if record is None or record.is_tombstone:
                    return False
            except RecordError as error:
                if error.reason == "newer":  # another version's; leave it alone
                    raise
            db.execute("DELETE FROM records WHERE key = ?", (key,))
            return True

    def touch(self, key, touched_at, expires_at):
        with self._transaction("touch") as db:
            try:
                record = self._find(db, key)
            except RecordError:
                return False
            if record is None or record.is_tombstone:
                return False
            if expires_at > self._clock():
                expires_at = max(expires_at, record.expires_at)
            db.execute(
                "UPDATE records SET touched_at = ?, expires_at = ? WHERE key = ?",
                (touched_at, expires_at, key),
            )
            return True

    def prune(self, limit):
        with self._transaction("prune") as db:
            return db.execute(
                "DELETE FROM records WHERE key IN"
                " (SELECT key FROM records WHERE expires_at <= ? LIMIT ?)",
                (self._clock(), limit),
            ).rowcount

    @contextlib.contextmanager
    def _transaction(self, operation, mode="IMMEDIATE"):
        # An immediate transaction takes the lock before it reads, so nobody comes in
        # between. A connection for each operation is safe with threads and forks.
        try:
            with contextlib.closing(sqlite3.connect(self._path, timeout=5)) as db:
                db.isolation_level = None
                db.execute(TABLE)
                db.execute(f"BEGIN {mode}")
                with db:  # commits, or rolls back
                    yield db
        except sqlite3.OperationalError as error:
            raise BackendUnavailableError(
                f"SQLite could not {operation!r} in {self._path!r}.",
                backend=self.name,
                operation=operation,
            ) from error

    def _find(self, db, key):
        row = db.execute(
            "SELECT body, version, touched_at, expires_at FROM records"
            " WHERE key = ? AND expires_at > ?",
            (key, self._clock()),
        ).fetchone()
        if row is None:
            return None
        body, version, touched_at, expires_at = row
        # Raises RecordError for what is damaged or of a newer format.
        record = decode_record(body)
        return dataclasses.replace(
            record, version=version, touched_at=touched_at, expires_at=expires_at
        )

    def _store(self, db, key, record):
        db.execute(
            "REPLACE INTO records VALUES (?, ?, ?, ?, ?)",
            (
                key,
                record.version,
                record.touched_at,
                record.expires_at,
                encode_record(record),
            ),
        )
