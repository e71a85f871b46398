from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from .benchmarks.generator import Block
from .benchmarks.generator import WrongAnswerError
from .benchmarks.generator import generator
from .servers import Gunicorn

ROOT = Path(__file__).parent.parent


def run(*arguments: str, module: str = "tests.benchmarks") -> str:
    command = [sys.executable, "-m", module, "--quick", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_each_kind_of_request_can_be_measured(tmp_path: Path) -> None:
    report, chart = tmp_path / "report.json", tmp_path / "chart.svg"
    run("--engine", "sqlite", "--json", str(report), "--chart", str(chart))
    result = json.loads(report.read_text())
    rows = {row["kind"]: row for row in result["requests"]}
    assert list(rows) == [
        *("unseen", "read", "nested", "change", "inside", "login", "destroy")
    ]
    for row in rows.values():
        for name in ("none", "cookie", "peer", "ours", "twin"):
            assert row[name]["cpu_us"] > 0
    assert [(row["engine"], row["kind"]) for row in result["growth"]] == [
        ("sqlite", "read"),
        ("sqlite", "change"),
    ]
    for row in result["growth"]:
        assert [*row["sizes"]] == ["100B", "2KB", "50KB", "1MB"]
    commands = {
        row["kind"]: row["commands"]
        for row in result["counts"]
        if row["subject"] == "ours"
    }
    assert commands == {
        "unseen": 0,
        "read": 1,
        "nested": 1,
        "change": 2,
        "inside": 2,
        "login": 1,
        "destroy": 1,
    }
    assert [row["kind"] for row in result["devices"]] == [
        *("unseen", "read", "change", "login")
    ]
    for row in result["devices"]:
        assert row["off"] > 0
        assert row["bound"] > 0
    assert ElementTree.parse(chart).getroot().tag.endswith("svg")


def test_growth_can_be_measured() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.growth", "memory", "300", "600"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "memory: change with 600 stored: CPU" in done.stdout
    assert "memory: 500 expired out of 600 cleaned up" in done.stdout


def test_each_kind_of_request_can_be_measured_over_http(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ("--engine", "sqlite", "--kind", "change", "--kind", "destroy")
    run(*options, "--json", str(report), module="tests.benchmarks.http")
    rows = json.loads(report.read_text())["http"]
    assert [row["kind"] for row in rows] == ["change", "destroy"]
    for row in rows:
        assert list(row["subjects"]) == ["none", "cookie", "peer", "ours"]
        for figures in row["subjects"].values():
            assert figures["per_second"] > 0
            assert figures["p99_ms"] > 0


def test_an_answer_that_is_not_the_expected_one_ends_the_measurement() -> None:
    app = "tests.benchmarks.http:create_app()"
    given = {"subject": "cookie", "engine": "sqlite", "folder": "/nonexistent"}
    environ = {"BENCHMARK": json.dumps(given)}
    options = ("--worker-class", "gthread")
    with Gunicorn(app, *options, environ=environ, preload=False) as server:
        block = Block(
            server.host,
            server.port,
            login="/login/100B",
            path="/read",
            has_session=False,
            ends_session=False,
            seconds=60,
            connections=2,
            workers=1,
        )
        with (
            generator() as drive,
            pytest.raises(
                WrongAnswerError, match=r"^/read was answered with .HTTP/1\.1 500 "
            ),
        ):
            drive(block)
