"""The tutorial: its commands run, and print what the page says."""

import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[1] / "docs/tutorial.py"


@pytest.mark.slow
def test_the_page_says_what_its_commands_print() -> None:
    ran = subprocess.run(
        [sys.executable, TUTORIAL, "--check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    print(ran.stdout)  # seconds of each command
    assert ran.returncode == 0, ran.stdout + ran.stderr
