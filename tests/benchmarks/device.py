"""What a request pays for sessions that are bound to a device.

::

    python -m tests.benchmarks.device
"""

from __future__ import annotations

import statistics
import time
import typing as t
from collections.abc import Sequence

from ..dbsc import DeviceBrowser
from .apps import Browser
from .apps import make_app
from .apps import use_ours
from .measure import Subject
from .measure import measure

#: What is measured: the name, and what it is.
SUBJECTS = {
    "off": "without SESSION_DEVICE_BOUND",
    "unbound": "with it, in a browser that cannot do it",
    "bound": "with it, and a proof to be verified",
}
_KINDS = ("unseen", "read", "change", "login")
_SECURE = {"SESSION_BACKEND": "memory", "SESSION_COOKIE_SECURE": True}


def measure_devices(
    *, blocks: int, calls: int, kinds: Sequence[str] = _KINDS
) -> list[dict[str, t.Any]]:
    """Measure each kind of request, with the setting off and on."""
    subjects = {name: _Subject(name) for name in SUBJECTS}
    rows: list[dict[str, t.Any]] = []
    for kind in kinds:
        results = measure(
            [subject.of(kind) for subject in subjects.values()],
            blocks=blocks,
            calls=calls,
        )
        row: dict[str, t.Any] = {"kind": kind}
        for name, result in results.items():
            row[name] = result.median()
        # Within each round, in which both met the same machine.
        pairs = zip(results["bound"].cpu, results["off"].cpu, strict=True)
        row["adds"] = statistics.median(bound - off for bound, off in pairs)
        rows.append(row)
    return rows


class _Subject:
    def __init__(self, name: str) -> None:
        self.name = name
        config = {**_SECURE, "SESSION_DEVICE_BOUND": name != "off"}
        app = make_app(use_ours(config))
        self.browser = Browser(app)
        device = DeviceBrowser(app, time.time, can_bind=name == "bound")
        device.fetch("/login/100B")
        device.fetch("/read")
        assert len(device.sessions) == (name == "bound")
        cookies = device.live_cookies().items()
        self.cookie = "; ".join(f"{key}={value}" for key, value in cookies)

    def of(self, kind: str) -> Subject:
        def prepare(count: int) -> list[dict[str, t.Any]]:
            environs = self.browser.environs(kind, "100B", count, self.cookie)
            for environ in environs:
                environ["wsgi.url_scheme"] = "https"
            return environs

        return Subject(self.name, prepare, self.browser.call)


def print_devices(rows: t.Sequence[t.Mapping[str, t.Any]]) -> None:
    """Print microseconds of CPU time, and what the setting adds."""
    lines = [
        "",
        "Bound to a device or not: CPU time of one request in microseconds",
        "",
        f"{'':12}" + "".join(f"{name:>10}" for name in SUBJECTS) + f"{'adds':>10}",
    ]
    for row in rows:
        times = "".join(f"{row[name]:10.1f}" for name in SUBJECTS)
        lines.append(f"{row['kind']:12}{times}{row['adds']:10.1f}")
    print(*lines, sep="\n")  # noqa: T201


if __name__ == "__main__":
    print_devices(measure_devices(blocks=41, calls=200))
