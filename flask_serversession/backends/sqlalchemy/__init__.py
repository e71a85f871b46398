"""Records in one table of an SQL database, by SQLAlchemy Core."""

from .backend import SQLAlchemyBackend

__all__ = ["SQLAlchemyBackend"]
