"""Pictures of TensorBoard over a folder of compared runs, as a person sees it in a browser.

python run_compare.py runs=outputs/copy
python scripts/screenshot_tensorboard.py outputs/copy pictures

Needs Chromium, such as Debian's package of that name. Starts TensorBoard on a free port of this
machine, asks it for every run and tag, and then takes one picture a page.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ntm.commands.configuration import ConfigurationError
from ntm.comparison.events import MEAN, MEANS_PAGE
from ntm.comparison.reading import find_runs

PAGES = {
    "tensorboard": "#scalars&_smoothingWeight=0&tagFilter="
    + urllib.parse.quote("^(train|val)/(wrong|loss)", safe=""),
    "tensorboard_means": MEANS_PAGE,
}
"""File name of each picture, and what follows the address."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SETTLED_MS = 20_000
"""Time a page is given to load its data, by the browser's own clock, which runs ahead of ours."""


@contextmanager
def serving(logdir: Path, timeout: float = 60) -> Iterator[str]:
    """Run TensorBoard over a folder, on a free port of the loopback interface.

    Yields:
        Its address, without a slash at the end.

    Raises:
        RuntimeError: It does not come up; with what it said.

    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir)]
    options = ["--host", "127.0.0.1", "--port", "0", "--reload_interval", "1"]
    with tempfile.TemporaryFile("w+") as said:
        server = subprocess.Popen([*command, *options], stdout=said, stderr=said)
        try:
            yield _address(server, said, time.monotonic() + timeout)
        finally:
            server.terminate()
            server.wait()


def ask(address: str, path: str, **parameters: str) -> Any:
    """TensorBoard's answer to one of the questions that its own pages ask."""
    query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
    with urllib.request.urlopen(f"{address}/data/{path}{query}", timeout=30) as answer:
        return json.load(answer)


def wait_for_runs(address: str, runs: set[str], timeout: float = 60) -> None:
    """Wait until TensorBoard has scalars of every run named.

    Raises:
        RuntimeError: Some are missing when the time is over.

    """
    until = time.monotonic() + timeout
    while missing := runs - set(ask(address, "plugin/scalars/tags")):
        if time.monotonic() > until:
            raise RuntimeError(f"TensorBoard shows nothing of {', '.join(sorted(missing))}")
        time.sleep(0.2)


def check(address: str, runs: set[str]) -> None:
    """See that every run has validations, at sequences above 0, all finite.

    Raises:
        RuntimeError: Names the first run that has not.

    """
    for run in sorted(runs):
        points = ask(address, "plugin/scalars/scalars", run=run, tag="val/loss")
        steps = [step for _, step, _ in points]
        if not steps or steps != sorted(set(steps)) or steps[0] <= 0:
            raise RuntimeError(f"{run}: steps must be sequences seen, got {steps[:5]}")
        if not all(math.isfinite(value) for *_, value in points):
            raise RuntimeError(f"{run}: val/loss is not finite everywhere")


def photograph(address: str, picture: Path, width: int, height: int) -> None:
    """Open an address in a browser without a window and save what it shows.

    Raises:
        RuntimeError: There is no browser, or it saves nothing.

    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise RuntimeError(f"no browser: looked for {', '.join(BROWSERS)}")
    picture.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                f"--virtual-time-budget={SETTLED_MS}",
                f"--screenshot={picture.resolve()}",
                address,
            ],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
    if done.returncode or not picture.is_file():
        raise RuntimeError(f"{browser} saved no picture of {address}: {done.stderr.strip()[-500:]}")


def run_names(root: Path) -> set[str]:
    """Runs as TensorBoard names them, each model's summary among them.

    Raises:
        RuntimeError: A model has no summary yet.

    """
    runs = find_runs(root)
    means = {run.parent / MEAN for run in runs}
    for mean in means:
        if not mean.is_dir():
            raise RuntimeError(f"{mean} is not there yet: python run_compare.py runs={root}")
    return {str(folder.relative_to(root)) for folder in {*runs, *means}}


def main() -> None:
    """Serve, check, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="a folder that run_compare.py has compared")
    parser.add_argument("pictures", type=Path, help="the folder for the PNG files")
    parser.add_argument("--size", type=int, nargs=2, default=(1600, 1000), metavar=("W", "H"))
    arguments = parser.parse_args()
    try:
        take_pictures(arguments.runs, arguments.pictures, *arguments.size)
    except (RuntimeError, ConfigurationError) as error:
        sys.exit(str(error))


def take_pictures(root: Path, pictures: Path, width: int, height: int) -> None:
    """One picture of each of `PAGES`, into a folder."""
    names = run_names(root)
    with serving(root) as address:
        wait_for_runs(address, names)
        check(address, names)
        for name, page in PAGES.items():
            picture = pictures / f"{name}.png"
            photograph(f"{address}/{page}", picture, width, height)
            print(picture)


def _address(server: subprocess.Popen[Any], said: Any, until: float) -> str:
    while time.monotonic() < until:
        said.seek(0)
        text = said.read()
        found = re.search(r"http://[\w.]+:\d+", text)
        if found:
            return found[0].replace("localhost", "127.0.0.1")
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"TensorBoard did not come up: {text[-1000:]}")


if __name__ == "__main__":
    main()
