"""Arrow files with changed bytes, opened and read: each ends in values, or in an error of ours.

A program, for what goes wrong here may end the process.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np

from soaview import Value, open_arrow


def main(path: Path, count: int) -> None:
    whole, there = path.read_bytes(), path.with_suffix(".changed")
    ends = {"values": 0, "refused": 0}
    for seed in range(count):
        draw, changed = random.Random(seed), bytearray(whole)
        if seed % 4 == 3:
            changed = changed[: draw.randrange(len(changed))]
        else:  # most of a file's sense is at its end
            for _ in range(draw.randint(1, 4)):
                where = draw.randrange(len(changed)) if seed % 4 else -draw.randint(1, 600)
                changed[where] = draw.randrange(256)
        there.write_bytes(changed)
        try:
            for soa in open_arrow(there):
                for field in soa.layout.fields:
                    column = soa[field.name if field.per_row else Value(field.name)]
                    np.asarray(column).tobytes()
        except (IndexError, KeyError, MemoryError, TypeError, ValueError):
            ends["refused"] += 1
        else:
            ends["values"] += 1
    print(ends["values"] > 0, ends["refused"] > 0, sum(ends.values()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
