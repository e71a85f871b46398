"""The people who may log in, in a SQLite file. Their sessions are not in it."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import typing as t
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flask import current_app
from flask_login import UserMixin
from werkzeug.security import check_password_hash
from werkzeug.security import generate_password_hash

#: Shown on the log-in page. This user is the administrator, too.
DEMO_NAME, DEMO_PASSWORD = "ada", "countess"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS users (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    password TEXT NOT NULL
)
"""


@dataclass(frozen=True)
class User(UserMixin):
    """Somebody who has registered. The id is what Flask-Login puts into the session."""

    id: int
    name: str

    @property
    def is_administrator(self) -> bool:
        """Whether the sessions of others may be seen and ended."""
        return self.name == DEMO_NAME


class NameTakenError(Exception):
    """Somebody else has registered under that name."""


class Users:
    """Keeps users and the hashes of their passwords. Opens the file at each call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Somebody's hash for names that nobody has: checking a password against it
        # takes as long, so that the time does not tell which names exist.
        self._nobodys_hash = generate_password_hash(secrets.token_hex())
        path.touch(mode=0o600)

        with self._connect() as connection:
            connection.execute(_SCHEMA)

        with contextlib.suppress(NameTakenError):
            if self.find(DEMO_NAME) is None:
                self.add(DEMO_NAME, DEMO_PASSWORD)

    def get(self, user_id: str) -> User | None:
        """Find a user by what a session keeps."""
        with self._connect() as connection:
            row = connection.execute(
                "SELECT id, name FROM users WHERE id = ?", (user_id,)
            ).fetchone()

        return None if row is None else User(*row)

    def find(self, name: str) -> User | None:
        """Find a user by name."""
        found = self._find(name)
        return None if found is None else found[0]

    def count(self) -> int:
        """Give how many have registered."""
        with self._connect() as connection:
            (number,) = connection.execute("SELECT COUNT(*) FROM users").fetchone()

        return int(number)

    def add(self, name: str, password: str) -> User:
        """Register somebody.

        :raises NameTakenError: if the name is taken.
        """
        name = _normalized(name)
        hashed = generate_password_hash(password)

        try:
            with self._connect() as connection:
                cursor = connection.execute(
                    "INSERT INTO users (name, password) VALUES (?, ?)", (name, hashed)
                )
        except sqlite3.IntegrityError as error:
            raise NameTakenError(name) from error

        assert cursor.lastrowid is not None  # noqa: S101
        return User(cursor.lastrowid, name)

    def set_password(self, user: User, password: str) -> None:
        """Replace a password."""
        hashed = generate_password_hash(password)

        with self._connect() as connection:
            connection.execute(
                "UPDATE users SET password = ? WHERE id = ?", (hashed, user.id)
            )

    def authenticate(self, name: str, password: str) -> User | None:
        """Find a user by name and password, or nobody, in the same time."""
        found = self._find(name)
        hashed = self._nobodys_hash if found is None else found[1]
        is_right = check_password_hash(hashed, password)
        return found[0] if found is not None and is_right else None

    def _find(self, name: str) -> tuple[User, str] | None:
        with self._connect() as connection:
            row = connection.execute(
                "SELECT id, name, password FROM users WHERE name = ?",
                (_normalized(name),),
            ).fetchone()

        return None if row is None else (User(row[0], row[1]), row[2])

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        # The connection's own "with" commits, but does not close.
        with (
            contextlib.closing(sqlite3.connect(self._path, timeout=5)) as connection,
            connection,
        ):
            yield connection


def users() -> Users:
    """Give the users of the current application."""
    return t.cast(Users, current_app.extensions["example_users"])


def _normalized(name: str) -> str:
    """Give one spelling to names that look the same: "Ada" is "ada"."""
    return unicodedata.normalize("NFKC", name).strip().casefold()
