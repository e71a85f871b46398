"""Runs what Node has for sessions in Redis: express-session with connect-redis."""

from __future__ import annotations

import json
import shutil
import subprocess
import typing as t
from pathlib import Path

from ..servers import Server
from ..servers import ServerError
from ..servers import find_program
from .apps import SIZES
from .apps import make_data

#: connect-redis 10 needs a newer Node than many machines have.
PACKAGES = ("express@5", "express-session@1", "connect-redis@9", "redis@5")
#: Seconds that the download may take.
_TIMEOUT = 300


class Express(Server):
    """The Express application, with packages that npm installs in a folder of its own.

    :param redis_url: Where it keeps its sessions.
    :param workers: How many processes answer requests.
    """

    package = "Node with npm"

    def __init__(self, redis_url: str, workers: int) -> None:
        super().__init__()
        self._redis_url = redis_url
        self._workers = workers

    @classmethod
    def is_available(cls) -> bool:
        return bool(find_program("node") and find_program("npm"))

    def _prepare(self) -> None:
        npm = find_program("npm")
        assert npm is not None
        options = ["--no-audit", "--no-fund", "--ignore-scripts", "--no-save"]
        command = [npm, "install", *options, *PACKAGES]
        try:
            # With the environment of who calls it: npm finds its registry there.
            subprocess.run(
                command,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                check=True,
            )
        except subprocess.TimeoutExpired:
            raise ServerError(f"npm did not end in {_TIMEOUT} s.") from None
        except subprocess.CalledProcessError as e:
            raise ServerError(f"npm ended with {e.returncode}.\n{e.stderr}") from e
        shutil.copy(Path(__file__).with_name("express.mjs"), self.directory)

    def _command(self) -> list[str]:
        node = find_program("node")
        assert node is not None
        return [node, "express.mjs"]

    def _popen_options(self) -> dict[str, t.Any]:
        options = super()._popen_options()
        settings = {
            "host": self.host,
            "port": self.port,
            "url": self._redis_url,
            "workers": self._workers,
            "contents": {name: make_data(size) for name, size in SIZES.items()},
        }
        options["env"].update(NODE_ENV="production", BENCHMARK=json.dumps(settings))
        return options

    def _ping(self) -> None:
        assert self._ask("GET /worker HTTP/1.0\r\n").startswith("HTTP/1.")

    def get_versions(self) -> dict[str, str]:
        """Give the versions of Node and of the packages."""
        names = [package.partition("@")[0] for package in PACKAGES]
        node = subprocess.run(
            [self._command()[0], "--version"],
            capture_output=True,
            text=True,
            check=True,
        )
        versions = {"node": node.stdout.strip().lstrip("v")}
        for name in names:
            manifest = self.directory / "node_modules" / name / "package.json"
            versions[name] = json.loads(manifest.read_text())["version"]
        return versions
