import pytest
from sqlite_backend import SQLiteBackend

from flask_serversession.testing import BackendContract


class TestSQLiteBackend(BackendContract):
    @pytest.fixture
    def backend(self, clock, tmp_path):
        return SQLiteBackend(str(tmp_path / "sessions.db"), clock)

    @pytest.fixture
    def second_backend(self, backend, clock):  # another process, say
        return SQLiteBackend(backend._path, clock)

    @pytest.fixture
    def dead_backend(self, tmp_path):
        return SQLiteBackend(str(tmp_path / "missing" / "sessions.db"))
