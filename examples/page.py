"""Run the code of a page of the documents: `python examples/page.py docs/start.md`."""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
from pathlib import Path


def run(page: Path) -> int:
    """Run a page's Python from top to bottom; the number of its blocks.

    It runs in a folder of its own, which takes the files that it writes.
    """
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names: dict[str, object] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block in blocks:
            exec(compile(block, page.name, "exec"), names)
    return len(blocks)


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        print(f"{page}: {run(page)} blocks of code ran")
