"""A page looked at by a real browser: what is drawn, what overflows, what can be read, at given widths."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
          "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
          "--virtual-time-budget=4000", "--timeout=60000"]

# Runs in the page itself and tells its frame's owner what it found.
_LOOK = r"""
<script>addEventListener("load", () => {
  const light = color => { const [r, g, b] = color.match(/[\d.]+/g).map(Number).map(v => v / 255).map(
      v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
      return (x + 0.05) / (y + 0.05); };
  const paper = getComputedStyle(document.body).backgroundColor;
  const readable = element => contrast(getComputedStyle(element).fill, paper);
  parent.postMessage({
    width: innerWidth, scrollWidth: document.scrollingElement.scrollWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches, paper,
    overflowing: [...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, details:not([open])")
      && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80)),
    charts: [...document.querySelectorAll("svg")].map(svg => { const box = svg.getBBox(), view = svg.viewBox.baseVal;
      return {name: svg.closest("figure").id, width: svg.getBoundingClientRect().width, drawn: box.width * box.height,
        marks: svg.querySelectorAll("path, rect").length,
        cut: [...svg.querySelectorAll("text")].filter(t => { const b = t.getBBox(); return b.width &&
          (b.x < -2 || b.y < -2 || b.x + b.width > view.width + 2 || b.y + b.height > view.height + 2); })
          .map(t => t.textContent),
        contrast: Math.min(...[...svg.querySelectorAll("text[style*=var]")].map(readable))}; }),
    pictures: [...document.images].map(i => [i.alt, i.naturalWidth, i.naturalHeight]),
  }, "*"); });
</script>"""


def browser():
    """Path of a Chromium, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def look(page, folder, widths, dark=False):
    """What a browser found in the HTML file ``page`` at each width: a list of dicts. Temporary files go to ``folder``."""
    copy = Path(folder) / "looked-at.html"
    html = Path(page).read_text(encoding="utf-8")
    copy.write_text(html.replace("</body>", f"{_LOOK}</body>"), encoding="utf-8")
    frames = "".join(f'<iframe src="{escape(copy.name)}" style="width:{width}px;height:900px;border:0"></iframe>'
                     for width in widths)
    owner = Path(folder) / "frames.html"
    owner.write_text('<!doctype html><body><pre id="found"></pre><script>const found = []; addEventListener("message", '
                     'e => { found.push(e.data); document.getElementById("found").textContent = JSON.stringify(found); '
                     f"}});</script>{frames}</body>", encoding="utf-8")
    scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    done = subprocess.run([browser(), *_FLAGS, *scheme, f"--user-data-dir={folder}/profile", "--dump-dom",
                           owner.as_uri()], capture_output=True, text=True, timeout=180, check=False)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert found and found[1], f"the browser said nothing: {done.stderr[-2000:]}"
    return sorted(json.loads(unescape(found[1])), key=lambda result: result["width"])
