"""Install what was built into clean environments, and serve a request there.

Run by ``make test-extras``: the wheel with each extra alone and with none, and the
sdist, each in an environment that has nothing else. Keys with a backend whose package
is missing must be refused with the command that installs it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tarfile
import tempfile
import typing as t
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.servers import ValkeyServer  # noqa: E402

#: What is run in an environment: two requests that share a session.
VISIT = """
import json
import sys

from flask import Flask
from flask_serversession import ServerSession, session

settings = json.loads(sys.argv[1])
app = Flask("clean")
app.config.update(SECRET_KEY="a secret", TESTING=True, **settings)
ServerSession(app)

@app.get("/")
def count():
    session["n"] = session.get("n", 0) + 1
    return str(session["n"])

client = app.test_client()
assert [client.get("/").text for _ in range(2)] == ["1", "2"]
result = app.test_cli_runner().invoke(args=["sessions", "count"])
assert (result.exit_code, result.output) == (0, "1\\n"), result.output
print(" ".join(sorted({"cryptography", "redis", "sqlalchemy"} & set(sys.modules))))
"""
#: Settings that need an extra, and the name of the extra.
NEEDS = {
    "redis": {"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": "redis://127.0.0.1:1"},
    "sqlalchemy": {
        "SESSION_BACKEND": "sqlalchemy",
        "SESSION_SQLALCHEMY_URL": "sqlite://",
    },
    "encryption": {"SESSION_ENCRYPTION_KEY": "A" * 43 + "="},
    "device": {"SESSION_DEVICE_BOUND": True, "SESSION_COOKIE_SECURE": "auto"},
}
#: What the sdist has besides the package.
IN_SDIST = (
    "CHANGES.rst",
    "CONTRIBUTING.rst",
    "LICENSE.txt",
    "Makefile",
    "README.rst",
    "docs/conf.py",
    "docs/index.rst",
    "example_app/__init__.py",
    "flask_serversession/py.typed",
    "pyproject.toml",
    "tests/conftest.py",
    "tests/third_party/requirements.txt",
)


class Environment:
    """A virtual environment in a folder, with what was installed into it."""

    def __init__(self, python: str, folder: Path, *requirements: str) -> None:
        self.folder = folder
        subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.python = str(folder / "bin/python")
        if sys.platform == "win32":
            self.python = str(folder / "Scripts/python.exe")
        pip = [sys.executable, "-m", "pip", "--quiet", "--python", self.python]
        subprocess.run(
            [*pip, "install", "--no-compile", *requirements], check=True, cwd=folder
        )

    def visit(self, settings: dict[str, t.Any]) -> subprocess.CompletedProcess[str]:
        # -I: neither this folder nor PYTHONPATH may help.
        return subprocess.run(
            [self.python, "-I", "-W", "error", "-c", VISIT, json.dumps(settings)],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
        )

    def serve(self, name: str, imports: str, **settings: t.Any) -> None:
        run = self.visit(settings)
        if run.returncode:
            raise SystemExit(f"{name}: {run.stdout}{run.stderr}")
        if run.stdout.strip() != imports:
            raise SystemExit(f"{name} imports {run.stdout.strip()!r}, not {imports!r}")
        print(f"{name}: served")  # noqa: T201

    def refuse(self, extra: str) -> None:
        run = self.visit(NEEDS[extra])
        command = f'pip install "flask-serversession[{extra}]"'
        if run.returncode == 0 or command not in run.stderr:
            raise SystemExit(f"{extra} is not refused with {command}: {run.stderr}")


def check_sdist(sdist: Path) -> None:
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    if missing := set(IN_SDIST) - names:
        raise SystemExit(f"{sdist.name} has no {', '.join(sorted(missing))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", type=Path)
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    (wheel,) = options.dist.resolve().glob("*.whl")
    (sdist,) = options.dist.resolve().glob("*.tar.gz")
    check_sdist(sdist)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(ValkeyServer()).url
        redis = {"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": url}
        sqlite = {
            "SESSION_BACKEND": "sqlalchemy",
            "SESSION_SQLALCHEMY_URL": f"sqlite:///{folder / 'sessions.db'}",
        }
        files = {"SESSION_FILESYSTEM_PATH": str(folder / "sessions")}
        encrypted = {
            "SESSION_ENCRYPTION_KEY": "A" * 43 + "=",
            "SESSION_FILESYSTEM_PATH": str(folder / "encrypted"),
        }
        bound = {"SESSION_FILESYSTEM_PATH": str(folder / "bound")}

        plain = Environment(options.python, folder / "plain", str(wheel))
        plain.serve("the wheel", "", **files)
        for extra in NEEDS:
            plain.refuse(extra)

        for extra, imports, settings in [
            ("redis", "redis", redis),
            ("sqlalchemy", "sqlalchemy", sqlite),
            ("encryption", "cryptography", encrypted),
            ("device", "cryptography", {**NEEDS["device"], **bound}),
        ]:
            environment = Environment(
                options.python, folder / extra, f"{wheel}[{extra}]"
            )
            environment.serve(f"the wheel with [{extra}]", imports, **settings)
            # Two of them need the same package.
            same = {"encryption", "device"} if imports == "cryptography" else {extra}
            for other in NEEDS.keys() - same:
                environment.refuse(other)

        source = Environment(options.python, folder / "source", f"{sdist}[all]")
        source.serve(
            "the sdist with [all]",
            "cryptography redis",
            **{**redis, "SESSION_KEY_PREFIX": "sdist:"},
            SESSION_ENCRYPTION_KEY="A" * 43 + "=",
        )


if __name__ == "__main__":
    main()
