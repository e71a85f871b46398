from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.benchmarks", "--quick", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_each_kind_of_request_can_be_measured(tmp_path: Path) -> None:
    report, chart = tmp_path / "report.json", tmp_path / "chart.svg"
    run("--engine", "sqlite", "--json", str(report), "--chart", str(chart))
    result = json.loads(report.read_text())
    rows = {row["kind"]: row for row in result["requests"]}
    assert list(rows) == ["unseen", "read", "nested", "change", "login", "destroy"]
    for row in rows.values():
        for name in ("none", "cookie", "peer", "ours"):
            assert row[name]["cpu_us"] > 0
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
        "login": 1,
        "destroy": 1,
    }
    assert ElementTree.parse(chart).getroot().tag.endswith("svg")


def test_growth_can_be_measured() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.growth", "memory", "300", "600"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "memory: change with 600 stored: CPU" in done.stdout
    assert "memory: 500 expired out of 600 cleaned up" in done.stdout
