"""The table of ``make mutate`` and the figures that were taken with it."""

from __future__ import annotations

import re
from pathlib import Path

from .mutation.modules import MODULES

ROOT = Path(__file__).parent.parent


def test_every_module_and_test_in_the_table_exists() -> None:
    for name, module in MODULES.items():
        path = ROOT / "flask_serversession" / name
        assert path.is_dir() or path.with_suffix(".py").is_file(), name
        for test in module.tests:
            file, _, function = test.partition("::")
            source = (ROOT / "tests" / file).read_text("utf-8")
            assert not function or f"\ndef {function}(" in source, test


def test_the_documented_figures_are_of_modules_in_the_table() -> None:
    text = (ROOT / "docs" / "figures" / "mutants.csv").read_text("utf-8")
    rows = re.findall(
        r"^``([\w/]+?)(?:\.py|/)``,(\d+),(\d+),(\d+),(\d+),(\d+)%$", text, re.MULTILINE
    )
    assert len(rows) == len(text.splitlines()) - 1
    assert len(rows) >= 8
    for name, *figures in rows:
        assert name in MODULES
        mutants, killed, equivalent, tolerated, share = map(int, figures)
        assert mutants == killed + equivalent + tolerated
        assert share == killed * 100 // (mutants - equivalent)
        assert share >= 90
