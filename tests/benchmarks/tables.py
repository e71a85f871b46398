"""Prints what was measured."""

from __future__ import annotations

import typing as t

Rows: t.TypeAlias = t.Sequence[t.Mapping[str, t.Any]]

#: What is to be reached with 100 bytes: for each kind of request and engine, what it is
#: compared with, and the ratio. 5 % more are within what identical work differs by.
TARGETS: dict[tuple[str, str], dict[str, float]] = {
    ("unseen", "memory"): {"none": 1.12},
    ("unseen", "files"): {"none": 1.12},
    ("unseen", "sqlite"): {"none": 1.12},
    ("unseen", "redis"): {"none": 1.12},
    ("unseen", "postgresql"): {"none": 1.12},
    ("read", "memory"): {"cookie": 0.58},
    ("read", "files"): {"peer": 0.22, "cookie": 1.0},
    ("read", "sqlite"): {"peer": 0.18},
    ("read", "redis"): {"peer": 0.53},
    ("read", "postgresql"): {"peer": 0.19},
    ("change", "memory"): {"cookie": 0.52},
    ("change", "files"): {"peer": 0.85},
    ("change", "sqlite"): {"peer": 0.28},
    ("change", "redis"): {"peer": 0.88},
    ("change", "postgresql"): {"peer": 0.33},
    ("login", "memory"): {"cookie": 0.68},
    ("login", "sqlite"): {"peer": 0.30},
    ("login", "redis"): {"peer": 0.92},
    ("login", "postgresql"): {"peer": 0.30},
}

#: The same with 50 KB, of which one small key is touched, or the large value, against
#: Flask-Session; 1.0 where nothing is said.
LARGE_TARGETS: dict[tuple[str, str], float] = {
    ("read", "redis"): 0.55,
    ("change", "redis"): 0.80,
    ("change", "files"): 0.95,
    ("inside", "redis"): 1.30,
}

#: How many times as long as with 100 bytes a request may take with 50 KB, of which one
#: small key is touched.
GROWTH_TARGETS: dict[tuple[str, str], float] = {
    ("read", "memory"): 1.8,
    ("change", "memory"): 2.0,
}
MOST_GROWTH = 3.0


def _print(*lines: str) -> None:
    print(*lines, sep="\n")  # noqa: T201


def print_requests(rows: Rows) -> None:
    """Print microseconds of CPU time, and this library's share of the others'."""
    _print(
        "",
        "CPU time of one request, in microseconds; then ours divided by the others'",
        "",
        f"{'':34}{'none':>8}{'cookie':>8}{'peer':>8}{'bare':>8}{'ours':>8}"
        f"   {'/none':>6}{'/cookie':>8}{'/peer':>7}{'/floor':>7}  wall/peer",
    )
    for row in rows:
        times = "".join(
            f"{row[name]['cpu_us']:8.1f}" if name in row else f"{'-':>8}"
            for name in ("none", "cookie", "peer", "bare", "ours")
        )
        _print(
            f"{row['engine']:12}{row['kind']:12}{row['size']:10}{times}"
            f"   {row['none']['ratio']:6.2f}{row['cookie']['ratio']:8.3f}"
            f"{row['peer']['ratio']:7.3f}{row['floor']['ratio']:7.2f}"
            f"{row['peer']['wall_ratio']:11.3f}"
        )


def print_targets(rows: Rows) -> None:
    """Print how near the ratios are to what is to be reached."""
    _print("", "Against what is to be reached", "")
    for row in rows:
        twin = f"A/A {abs(row['twin']['ratio'] - 1):4.1%}"
        if row["size"] == "100B":
            targets = TARGETS.get((row["kind"], row["engine"]), {})
        else:
            targets = {"peer": 1.0}
            if row["size"] == "50KB":
                targets["peer"] = LARGE_TARGETS.get((row["kind"], row["engine"]), 1.0)
                if row["kind"] in ("read", "nested"):
                    targets["cookie"] = 0.4
        for subject, most in targets.items():
            ratio = row[subject]["ratio"]
            _print(
                f"{row['kind']:10}{row['engine']:12}{row['size']:8}{ratio:7.3f}"
                f" x {subject:8} <= {most:.2f}  {twin}  {_verdict(ratio, most)}"
            )


def _verdict(ratio: float, most: float) -> str:
    return "" if ratio <= most else "near" if ratio <= most * 1.05 else "MISS"


def print_growth(rows: Rows) -> None:
    """Print how the cost of a request grows with what its session holds."""
    if not rows:
        return
    _print(
        "",
        "CPU time with sessions of each size, of which one small key is touched, in",
        "microseconds; and how many times that of the smallest",
        "",
    )
    for row in rows:
        sizes = row["sizes"]
        cells = "".join(
            f"{size:>8}{cell['cpu_us']:9.1f} ({cell['ratio']:5.2f})"
            for size, cell in sizes.items()
        )
        ratio = sizes["50KB"]["ratio"]
        most = GROWTH_TARGETS.get((row["kind"], row["engine"]), MOST_GROWTH)
        _print(
            f"{row['kind']:8}{row['engine']:8}{cells}"
            f"   50KB <= {most:.2f}  {_verdict(ratio, most)}"
        )


def print_counts(rows: Rows) -> None:
    """Print what one request asks of its engine."""
    _print(
        "",
        "For one request: round trips, commands (statements; files opened, renamed or",
        "removed), bytes sent and received",
        "",
    )
    for row in rows:
        _print(
            f"{row['engine']:12}{row['kind']:12}{row['subject']:8}"
            f"{row['round_trips']:8.2f}{row['commands']:8.2f}"
            f"{row['sent']:10.0f}{row['received']:10.0f}"
        )
