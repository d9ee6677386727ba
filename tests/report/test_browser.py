"""The report in a real browser: drawn, laid out, in light and dark, and nothing fetched."""

import html
import json
import re
import shutil
import subprocess

import pytest
from report_files import FIRST_LIGHT, spectrum_document, written

from hessian_lr.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)"
)

# The page stands in a frame as wide as the screen that is meant (a window has a least width), and this
# looks into it: the page itself has no script, nor would its policy let one run.
LOOK = """<!DOCTYPE html><body style="margin:0">
<iframe id="frame" src="{source}" style="border:0;width:{width}px;height:{height}px"></iframe>
<script>
addEventListener("load", () => {{
  const view = document.getElementById("frame").contentWindow, page = view.document;
  // What is for paper is for everything then, and what is for screens for nothing.
  for (const sheet of {print} ? page.styleSheets : [])
    for (const rule of sheet.cssRules)
      if (rule.media) rule.media.mediaText = rule.media.mediaText.includes("print") ? "all" : "not all";
  const seen = [...page.querySelectorAll("svg")].map(svg => [svg.getBoundingClientRect(), svg])
    .filter(([box]) => box.width > 0);
  const found = document.createElement("pre");
  found.id = "found";
  found.textContent = JSON.stringify({{
    figures: seen.map(([box, svg]) => [box.width, box.height, svg.viewBox.baseVal.width,
      svg.querySelectorAll("path").length]),
    width: page.documentElement.scrollWidth,
    scrolls: [...page.querySelectorAll(".scroll")].filter(box => box.scrollWidth > box.clientWidth).length,
    paper: view.getComputedStyle(page.body).backgroundColor,
    ink: view.getComputedStyle(page.body).color,
    axis: seen.length && view.getComputedStyle(seen[0][1].querySelector("[style*='--ink']")).fill,
    whole: [...page.querySelectorAll("figure, table, pre, .advice")]
      .every(box => view.getComputedStyle(box).breakInside === "avoid"),
    followed: [...page.querySelectorAll("h2")]
      .every(box => view.getComputedStyle(box).breakAfter === "avoid"),
    broken: [...page.querySelectorAll(".number")].filter(one => one.getClientRects().length !== 1).length,
    fetched: view.performance.getEntriesByType("resource").map(entry => entry.name),
  }});
  document.body.append(found);
}});
</script>"""
WIDE, PHONE = 1000, 380
# A4 and US letter without their margins of 16 mm, at 96 pixels an inch.
PAPER = [int((across - 32) / 25.4 * 96) for across in (210, 216)]
LIGHT, DARK = 1, 0


def browse(folder, page, *options):
    """What Chromium writes of a page: its standard output, and its log."""
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", "--allow-file-access-from-files", "--hide-scrollbars"),
        *("--enable-logging=stderr", "--virtual-time-budget=5000", f"--user-data-dir={folder / 'profile'}"),
        *(*options, page.as_uri()),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)


def look(folder, source, width, scheme, *, print_=False):
    page = folder / f"look-{width}-{scheme}.html"
    text = LOOK.format(source=source.as_uri(), width=width, height=6000, print=str(print_).lower())
    page.write_text(text, encoding="utf-8")
    done = browse(folder, page, f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom")
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    return json.loads(html.unescape(found)), done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def report(folder):
    out = folder / "report.html"
    write_report([FIRST_LIGHT, written(folder / "spectrum.json", spectrum_document())], out)
    return out


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_it_is_drawn_at_its_size_fits_and_fetches_nothing(folder, report, width, scheme):
    found, log = look(folder, report, width, scheme)
    assert len(found["figures"]) == 4, "one rendering of each figure"
    for across, down, natural, paths in found["figures"]:
        assert across > 250 and down > 150 and paths > 20
        # At 96 pixels for matplotlib's 72 points letters have the size they were given.
        assert across / natural > 0.95 * 96 / 72
    assert found["width"] <= width and found["scrolls"] == 0
    assert found["broken"] == 0
    assert found["fetched"] == []
    assert "Refused to" not in log and "Content Security Policy" not in log
    brightness = sum(map(int, re.findall(r"\d+", found["paper"])[:3]))
    assert (brightness > 700) if scheme == LIGHT else (brightness < 120)
    assert found["axis"] == found["ink"], "the figures' letters have the page's colour"


def test_what_would_be_fetched_is_seen(folder):
    """The check above can fail: a page that loads something is caught."""
    page = folder / "loads.html"
    page.write_text(
        '<svg viewBox="0 0 9 9"><path style="fill:var(--ink)"/></svg><img src="http://example.invalid/x">'
    )
    found, _ = look(folder, page, WIDE, LIGHT)
    assert found["fetched"] == ["http://example.invalid/x"]


@pytest.mark.parametrize("width", PAPER)
def test_it_fits_paper_in_light_with_figures_whole(folder, report, width):
    found, _ = look(folder, report, width, DARK, print_=True)
    assert len(found["figures"]) == 4
    assert all(across <= width for across, *_ in found["figures"])
    assert found["width"] <= width and found["scrolls"] == 0, "nothing is cut"
    assert found["paper"] == "rgb(255, 255, 255)" and found["axis"] == found["ink"]
    assert found["whole"] and found["followed"], "no page ends within a figure or right after a heading"


def test_it_prints(folder, report):
    out = folder / "report.pdf"
    browse(folder, report, f"--print-to-pdf={out}")
    pdf = out.read_bytes()
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 3
