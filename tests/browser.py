"""The drawings in a browser: what is seen of them, at two widths, in a light and a dark page.

    python tests/browser.py [--keep FOLDER]

It needs Chromium (`apt-get install chromium`) and matplotlib, which reads the screenshots; they
stay in FOLDER. Every text is to be read whole, no two of them meet, every piece of memory is seen
and has its tooltip; padding and tensors are seen, too. The same eyes then look at drawings that are
wrong.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.image import imread
from test_drawing import BLOCKS, COUNTS, HOSTILE, LAYOUTS, MIXED, SPECIAL, STRIDED, TRACKS
from test_drawing_bound import CASES, SPEC, everything

from soaview import Blocks, Column, Layout, Scalar, Spec, bind

# In a page: what is wrong with its drawings, and where to look for colours.
EYES = r"""
const faults = [], seen = [];
const box = e => { const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; };
const say = e => JSON.stringify(e.textContent.slice(0, 60));
function corners(e) {
  const b = e.getBBox(), m = e.getScreenCTM();
  return [[b.x, b.y], [b.x + b.width, b.y], [b.x + b.width, b.y + b.height], [b.x, b.y + b.height]]
    .map(([x, y]) => [m.a * x + m.c * y + m.e, m.b * x + m.d * y + m.f]);
}
const upright = ([x, y, w, h]) => [[x, y], [x + w, y], [x + w, y + h], [x, y + h]];
function apart(one, other, slack) {  // whether a line parallel to an edge separates them
  for (const p of [one, other]) {
    for (let i = 0; i < 2; i++) {
      let [x, y] = [p[i + 1][0] - p[i][0], p[i + 1][1] - p[i][1]];
      const n = Math.hypot(x, y) || 1;
      const on = q => q.map(c => (-c[0] * y + c[1] * x) / n);
      const [a, b] = [on(one), on(other)];
      if (Math.min(...a) > Math.max(...b) - slack || Math.min(...b) > Math.max(...a) - slack)
        return true;
    }
  }
  return false;
}
for (const svg of document.querySelectorAll("svg.soaview")) {
  const whole = svg.getBoundingClientRect(), around = svg.parentElement.getBoundingClientRect();
  if (whole.right > around.right + 0.5) faults.push("a drawing is wider than its page");
  const scale = svg.getScreenCTM().a;
  const texts = [...svg.querySelectorAll("text")].map(e => [e, corners(e)]);
  const pieces = [...svg.querySelectorAll("path")].filter(e => e.querySelector("title"));
  texts.forEach(([e, q], i) => {
    if (!(e.getBBox().width > 0)) faults.push(`${say(e)} is not seen`);
    if (11 * scale < 6.5) faults.push(`${say(e)} is too small`);
    if (!q.every(([x, y]) => x > whole.left - 0.5 && x < whole.right + 0.5
                          && y > whole.top - 0.5 && y < whole.bottom + 0.5))
      faults.push(`${say(e)} is cut`);
    for (const [other, r] of texts.slice(i + 1))
      if (!apart(q, r, 0.5)) faults.push(`${say(e)} meets ${say(other)}`);
    for (const piece of pieces)
      if (!apart(q, upright(box(piece)), 1.5)) faults.push(`${say(e)} lies on ${say(piece)}`);
  });
  const hit = (e, x, y) => document.elementFromPoint(x, y)?.closest("path, g") === e;
  for (const piece of pieces) {
    const [x, y, w, h] = box(piece);
    if (w < 8 * scale || h < 8 * scale) faults.push(`${say(piece)} is not seen`);
    if (![0.1, 0.5, 0.9].every(at => hit(piece, x + at * w, y + h / 2)))
      faults.push(`${say(piece)} has no tooltip`);
  }
  const rect = /M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)/g;
  const rects = path => [...path.getAttribute("d").matchAll(rect)].map(found => {
    const [x, y, w, h] = found.slice(1).map(Number), m = path.getScreenCTM();
    return [m.a * x + m.e, m.d * y + m.f, w * m.a, h * m.d];
  });
  const all = kind => [...svg.querySelectorAll(kind)].flatMap(rects);
  seen.push({scale, whole: box(svg), boxes: all(".c,.s"), padding: all(".p"), views: all(".v>path"),
    gathers: all(".w>path:not(.j)")});
}
const report = document.createElement("pre");
report.id = "report";
report.textContent = JSON.stringify({faults, seen});
document.body.append(report);
"""

PAGES = {False: ("#ffffff", "#222222"), True: ("#111111", "#dddddd")}
"""By theme the background's colour and the text's."""


def browser():
    """Chromium's program."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    sys.exit("there is no chromium: apt-get install chromium")


class Browser:
    def __init__(self, folder):
        self.folder = folder
        self.program = browser()

    def run(self, path, dark, *options):
        """Show a page to a reader who has set a theme."""
        with tempfile.TemporaryDirectory() as profile:
            command = [
                self.program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--user-data-dir={profile}", "--window-size=1060,9000",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                *options, path.resolve().as_uri(),
            ]  # fmt: skip
            return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout

    def shot(self, path, dark):
        out = path.with_suffix(".png")
        self.run(path, dark, f"--screenshot={out.resolve()}")
        return imread(out)[..., :3]

    def look(self, name, drawings, width, dark):
        """What is wrong with drawings in a page, where the reader has set the other theme."""
        background, colour = PAGES[dark]
        path = self.folder / f"{name}_{width}_{'dark' if dark else 'light'}.html"
        inner = "".join(f'<div style="width:{width}px;margin:8px">{d}</div>' for d in drawings)
        path.write_text(
            f'<!DOCTYPE html><meta charset="utf-8"><body style="background:{background};'
            f'color:{colour};font:14px sans-serif">{inner}<script>{EYES}</script></body>',
            encoding="utf-8",
        )
        dom = self.run(path, not dark, "--dump-dom").decode()
        found = json.loads(html.unescape(re.search(r'id="report">(.*?)</pre>', dom, re.DOTALL)[1]))
        picture = self.shot(path, not dark)
        assert len(found["seen"]) == sum(d.count("<svg ") for d in drawings)
        page = np.array([int(background[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return found["faults"] + [f for svg in found["seen"] for f in colours(svg, picture, page)]


def part(picture, rect, inset):
    """The pixels inside a rectangle."""
    x, y, width, height = rect
    rows = slice(round(y + inset), max(round(y + height - inset), round(y + inset) + 1))
    return picture[rows, round(x + inset) : max(round(x + width - inset), round(x + inset) + 1)]


def colours(svg, picture, page):
    """What cannot be told from the page, or from its neighbour."""
    assert svg["whole"][1] + svg["whole"][3] < len(picture), "the screenshot ends before the page"
    found: list[str] = []
    if svg["whole"][0] + svg["whole"][2] > picture.shape[1]:
        return found  # which is a fault of its own
    for rect in svg["boxes"]:
        inside = part(picture, [rect[0], rect[1], min(rect[2], 4), rect[3]], 1.5)
        if np.abs(np.median(inside, (0, 1)) - page).max() < 0.05:
            found.append(f"a box at {rect} is not seen")
    for rect in svg["padding"]:
        x, y, width, height = rect
        lightness = part(picture, [x, y + 3, width, height - 6], 0).mean(2)
        # Each column of pixels crosses strokes: it is light and dark in turn.
        if svg["scale"] == 1 and np.median(np.ptp(lightness, 0)) < 0.12:
            found.append(f"padding at {rect} is not seen")
    for kind, (low, high) in {"views": (0, 1), "gathers": (2, 0)}.items():
        for rect in svg[kind]:
            colour = np.median(part(picture, rect, 2), (0, 1))
            if colour[high] < colour[low] + 0.2:
                found.append(f"{kind} at {rect} have not their colour: {colour}")
    return found


def drawings():
    """Drawings of every kind, and what notebooks show."""
    found = [layout.to_svg(rows) for layout in LAYOUTS.values() for rows in (0, 33)]
    found.append(LAYOUTS["forty"].to_svg(10_000))
    hostile = LAYOUTS["hostile"]
    found.append(
        hostile.to_svg(33, Spec({"<b>质量</b>" * 9: [*hostile], "\ud800": [*hostile][::2]}))
    )
    gathers = Spec(
        {f"{name} {'and more ' * i}": columns for i, (name, columns) in enumerate(MIXED.items())}
    )
    found += [SPECIAL.to_svg(33, STRIDED), SPECIAL.to_svg(10_000, gathers)]
    found.append(TRACKS.to_svg(2**999, Spec(x=["pt", "eta"], cov="cov")))
    many = LAYOUTS["many"]
    uneven = [*many][1:500:7]
    found.append(many.to_svg(10**9, Spec({"few": ["c1", "c499"], "uneven": uneven})))
    pair = Layout([Column("x", "float32"), Scalar("n", "int32")])
    notebooks = [
        TRACKS.allocate(33)._repr_html_(),
        hostile._repr_html_(),
        LAYOUTS["forty"].allocate(1000)._repr_html_(),
        BLOCKS.allocate(COUNTS)._repr_html_(),
        BLOCKS.to_svg(COUNTS, {"tracks": Spec(x=["pt", "eta"], y=["eta", "pt"])}),
        Blocks({f"block {i}": pair for i in range(99)})._repr_html_(),
    ]  # fmt: skip
    bound = [make().to_svg() for make in CASES.values()]
    tensors = [bind(everything(rows), rows=rows).to_svg(SPEC) for rows in (0, 33)]
    strange = Spec({"<b>质量</b>" * 9: [*HOSTILE], "\ud800": [*HOSTILE][::-1]})
    tensors += [CASES[name]().to_svg(strange) for name in ("hostile", "hostile records")]
    tensors += [CASES[name]()._repr_html_() for name in ("records", "hostile", "forty")]
    parts = {f"bound_{i}": bound[i : i + 8] for i in range(0, len(bound), 8)}
    return {"drawings": found, "notebooks": notebooks, "tensors": tensors, **parts}


def check_wrong(chromium):
    """The eyes see what is wrong: each in its own drawing."""
    svg = TRACKS.to_svg(33, Spec(x=["pt", "eta"]))
    thin = re.sub(
        r'(class="c" d="M[\d.]+ [\d.]+)h[\d.]+(v36)h-[\d.]+z', r"\1h1\2h-1z", svg, count=1
    )
    cover = '<path d="M0 0h700v400h-700z" fill="none" pointer-events="all"/>'
    wrong = {
        "meets": svg.replace(">eta<", f">{'eta' * 9}<", 1).replace("rotate(-60)", "rotate(-50)"),
        "is cut": svg.replace(">pt<", f">{'pt' * 60}<", 1),
        "lies on": svg.replace(">n</text>", "><tspan dx='-9' dy='30'>n</tspan></text>"),
        "is not seen": thin,
        "has no tooltip": svg.replace("</svg>", f"{cover}</svg>"),
        "a box at": svg.replace(".c{fill:#3b82f6", ".c{fill:none"),
        "padding at": svg.replace('<path class="h"', "<path"),
        "views at": svg.replace("#0d9488", "#888888"),
        "too small": svg.replace("max-width:100%", "width:300px"),
        "wider than": svg.replace("max-width:100%", "min-width:1200px"),
    }  # fmt: skip
    for message, drawing in wrong.items():
        assert drawing != svg, message
        found = chromium.look("wrong", [drawing], 1000, False)
        assert any(message in fault for fault in found), (message, found)
    assert chromium.look("right", [svg], 1000, False) == []


def check_file(chromium):
    """A file that is opened by itself has the reader's theme."""
    path = chromium.folder / "alone.svg"
    path.write_text(TRACKS.to_svg(33, Spec(x=["pt", "eta"], y=["eta", "pt"])), encoding="utf-8")
    for dark in (False, True):
        picture = chromium.shot(path, dark)
        page = np.median(picture, (0, 1)).mean()
        text = picture[:16, :200].mean(2)
        assert page < 0.2 if dark else page == 1
        assert np.ptp(text) > 0.6


def main():
    parser = argparse.ArgumentParser(description="Look at the drawings in a browser.")
    parser.add_argument("--keep", type=Path, help="where pages and screenshots stay")
    keep = parser.parse_args().keep
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
        chromium = Browser(keep or Path(folder))
        for name, found in drawings().items():
            for width in (1000, 480):
                for dark in (False, True):
                    wrong = chromium.look(name, found, width, dark)
                    print(
                        f"{name}, {width} pixels, {'dark' if dark else 'light'}: {len(wrong)} wrong"
                    )
                    for fault in wrong[:20]:
                        print(f"  {fault}")
                    faults += len(wrong)
        check_file(chromium)
        check_wrong(chromium)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
