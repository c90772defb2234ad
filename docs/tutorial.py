"""Run the commands of tutorial.md, and write their output into the page.

    python docs/tutorial.py            # run everything, rewrite the output blocks
    python docs/tutorial.py --check    # run everything; exit code 1 if the page is not true
    python docs/tutorial.py --draw     # draw my_videos/ and new.mp4 in the current folder, no more

Commands are the `vtnpipe` lines of indented blocks, and the blocks of Python. A block of text that
follows shows lines of their output, in order; `…` stands for lines left out, and for times and
rates. When the page is rewritten, each line is replaced by the next one of the output that differs
from it in numbers only. `--check` allows percentages to differ by 10 points and other numbers with
decimals by 0.05, since the rounding of features depends on the CPU; all else must be equal.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from vtnpipe.pipelines.demo import write_videos

PAGE = Path(__file__).with_suffix(".md")
NUM_EVENTS = 60
CLASSES = {
    "growth-forwards": "grow",
    "growth-backwards": "shrink",
    "scene-forwards": "cool",
    "scene-backwards": "warm",
}
BLOCK = re.compile(
    r"^(?P<commands>(?: {4}[^\n]*\n)+)|^```(?P<kind>python|text)\n(?P<text>.*?)^```$", re.M | re.S
)
TIMES = [  # what differs from run to run or between CPUs
    (re.compile(r"about .* for (?=[\d,]+ frames)"), "about … for "),
    (re.compile(r"[\d,.]+ frames/s each"), "… frames/s each"),
    (re.compile(r"epoch \d+\)"), "epoch …)"),
    (re.compile(r"in [\d.]+ (s|min) \([\d,.]+/s\)"), "in … s (…/s)"),
]
NUMBER = re.compile(r"\d(?:[\d,]*\d)?(?:\.\d+)?%?")
PERCENT_TOLERANCE, DECIMAL_TOLERANCE = 10.0, 0.05


def draw(folder: Path) -> None:
    """Draw the videos, 30 in each of four class folders, and a new one.

    An event is the same frames in two classes, forwards and backwards in time.
    """
    for row in write_videos(folder / "drawn", NUM_EVENTS + 2):
        kind, number, direction = row.video_id.split("-")
        path = folder / "my_videos" / CLASSES[f"{kind}-{direction}"] / f"event{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        if int(number) < NUM_EVENTS:
            Path(row.path).rename(path)
        elif path.parent.name == "shrink":
            Path(row.path).rename(folder / "new.mp4")
        else:
            Path(row.path).unlink()
    (folder / "drawn").rmdir()


def run(arguments: list[str], folder: Path) -> list[str]:
    """Run Python with arguments in a folder, and return the lines that it wrote.

    Raises:
        SystemExit: its exit code is not 0.
    """
    # One thread is enough for models so small, and loses less time beside other programs.
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    begun = time.monotonic()
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise SystemExit(f"{ran.stdout}\nexit code {ran.returncode}: {shlex.join(arguments)}")
    print(f"{time.monotonic() - begun:5.1f} s  python {shlex.join(arguments)[:80]!r}", flush=True)
    for pattern, words in TIMES:
        ran.stdout = pattern.sub(words, ran.stdout)
    return ran.stdout.splitlines()


def commands_of(block: re.Match[str]) -> Iterator[list[str]]:
    """Yield the arguments of Python for each command of a block."""
    if block["kind"] == "python":
        yield ["-c", block["text"]]
    for line in (block["commands"] or "").splitlines():
        if line.startswith("    vtnpipe "):
            yield ["-m", *shlex.split(line, comments=True)]


def shown(page: str, output: list[str]) -> str:
    """Return the lines of a block of text with the numbers of the output.

    Raises:
        SystemExit: a line of the page is not in the output, even with other numbers.
    """
    rest, found = iter(output), []
    for line in page.splitlines():
        words = _words(line)
        new = line if line == "…" else next((one for one in rest if _words(one) == words), None)
        if new is None:
            raise SystemExit("\n".join([*output, f"{PAGE.name}: no such line was printed: {line}"]))
        found.append(new.rstrip() + "\n")
    return "".join(found)


def _words(line: str) -> list[str]:
    return NUMBER.sub("#", line).split()


def differs(page: str, printed: str) -> bool:
    """Return whether numbers of two lines differ by more than the tolerances."""
    for one, other in zip(NUMBER.findall(page), NUMBER.findall(printed), strict=True):
        tolerance = 0.0
        if one.endswith("%"):
            tolerance = PERCENT_TOLERANCE
        elif "." in one:
            tolerance = DECIMAL_TOLERANCE
        values = [float(text.strip("%").replace(",", "")) for text in (one, other)]
        if abs(values[0] - values[1]) > tolerance + 1e-9:
            return True
    return False


def main() -> int:
    """Run the page; return 1 if `--check` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--check", action="store_true", help="compare with the page, write nothing")
    only.add_argument("--draw", action="store_true", help="only draw the videos, in this folder")
    arguments = parser.parse_args()
    if arguments.draw:
        draw(Path.cwd())
        return 0
    begun = time.monotonic()
    text = PAGE.read_text()
    pieces, end, output, num_commands = [], 0, list[str](), 0
    with TemporaryDirectory() as folder:
        draw(Path(folder))
        for block in BLOCK.finditer(text):
            if block["kind"] == "text":
                pieces += [text[end : block.start("text")], shown(block["text"], output)]
                end = block.end("text")
            elif commands := list(commands_of(block)):
                output = [line for one in commands for line in run(one, Path(folder))]
                num_commands += len(commands)
    new = "".join([*pieces, text[end:]])
    print(f"{PAGE.name}: {num_commands} commands, {time.monotonic() - begun:.0f} s")
    if not arguments.check:
        PAGE.write_text(new)
        return 0
    wrong = [
        f"the page has   {one}\nthe command has {other}"
        for one, other in zip(text.splitlines(), new.splitlines(), strict=True)
        if differs(one, other)
    ]
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
