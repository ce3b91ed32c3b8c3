"""The HTML of the report: one page that needs no other file, and the figures beside it."""

import base64
from html import escape
from pathlib import Path

from tools.reporting import charts
from utils.errors import UserError
from utils.files import write_text

_KINDS = {".png": "image/png", ".jpg": "image/jpeg"}


class Page:
    """Collects the parts of a page. Figures are drawn into it, and written as files of ``folder/figures``, too."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self._body, self._sections, self._drawn = [], [], {}

    def add(self, *parts):
        """Append HTML."""
        self._body += parts

    def section(self, name, title):
        """Begin a section with an anchor."""
        self._sections.append((name, title))
        self.add(f'<h2 id="{name}"><a href="#{name}">{escape(title)}</a></h2>')

    def heading(self, name, title):
        """Begin a part of a section, with an anchor."""
        self.add(f'<h3 id="{name}"><a href="#{name}">{escape(title)}</a></h3>')

    def text(self, text, kind=""):
        """A paragraph of plain text."""
        self.add(paragraph(text, kind))

    def chart(self, name, svg, caption):
        """A chart that grows with its column; nothing where ``svg`` is None. Returns whether there is one."""
        return self._figure(name, svg, caption, "chart")

    def map(self, name, svg, caption):
        """A heat map in its own size, which scrolls where the page is narrower."""
        return self._figure(name, svg, caption, "map")

    def _figure(self, name, svg, caption, kind):
        if svg is None:
            return False
        self._drawn[name] = svg
        self.add(f'<figure id="figure-{name}"><div class="scroll {kind}" tabindex="0">{svg}</div>'
                 f"<figcaption>{escape(caption)}</figcaption></figure>")
        return True

    def picture(self, file_name, title, alt):
        """A picture of the folder of figures, embedded."""
        path = self.folder / "figures" / file_name
        try:
            content = base64.b64encode(path.read_bytes()).decode()
        except OSError:
            return f'<figure><figcaption>{escape(title)}: the file {escape(file_name)} is gone</figcaption></figure>'
        photo = ' class="photo"' if path.suffix == ".jpg" else ""
        return (f'<figure><img{photo} src="data:{_KINDS[path.suffix]};base64,{content}" alt="{escape(alt, quote=True)}">'
                f"<figcaption>{escape(title)}</figcaption></figure>")

    def navigation(self):
        """Links to the sections."""
        return "<nav>" + "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title in self._sections) + "</nav>"

    def write(self, title, head, refresh=None):
        """Write the page and its figures; ``head`` is the HTML above the first section. Returns the page's path.

        ``refresh``: seconds after which a browser loads it again, while the run goes on.
        """
        for name, svg in self._drawn.items():
            write_text(self.folder / "figures" / f"{name}.svg", charts.standalone(svg))
        css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
        css += f"svg text{{{charts.FONT}}}{charts.style('light', 'svg ')}svg .small{{font-size:9px}}"
        css += f"@media (prefers-color-scheme:dark){{@media screen{{{charts.style('dark', 'svg ')}}}}}"
        again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
        path = self.folder / "index.html"
        write_text(path, f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" '
                   f'content="width=device-width, initial-scale=1">{again}\n<title>{escape(title)}</title>\n<style>{css}'
                   f"</style>\n</head>\n<body>\n{head}{self.navigation()}\n{chr(10).join(self._body)}\n</body>\n</html>\n")
        return path


def paragraph(text, kind=""):
    """A paragraph of plain text."""
    return f'<p{_class(kind)}>{escape(text)}</p>'


def table(head, rows, numbers=()):
    """A table in a container of its own that scrolls. Cells are plain text; columns in ``numbers`` are set right."""
    def row(cells, tag):
        return "<tr>" + "".join(f'<{tag}{_class("n" if index in numbers else "long" if len(str(cell)) > 40 else "")}>'
                                f"{escape(str(cell))}</{tag}>" for index, cell in enumerate(cells)) + "</tr>"

    return (f'<div class="scroll" tabindex="0"><table><thead>{row(head, "th")}</thead><tbody>'
            + "".join(row(cells, "td") for cells in rows) + "</tbody></table></div>")


def numbers(entries):
    """Large numbers with their names: entries (name, number, remark, kind), kind "", good or bad."""
    parts = [f"<div><dt>{escape(name)}</dt><dd{_class(kind)}>{escape(number)}"
             + (f" <small>{escape(remark)}</small>" if remark else "") + "</dd></div>"
             for name, number, remark, kind in entries]
    return f'<dl class="numbers">{"".join(parts)}</dl>'


def legend(names, colors):
    """The classes with their colours."""
    entries = [f'<li><i style="background:rgb({int(r)},{int(g)},{int(b)})"></i>{escape(name)}</li>'
               for name, (r, g, b) in zip(names, colors)]
    return f'<ul class="legend">{"".join(entries)}</ul>'


def check_writable(folder):
    """Raise ``UserError`` when the folder of the report cannot be made."""
    try:
        (Path(folder) / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made: {error.strerror or error}; give another one with --out") \
            from error


def _class(name):
    return f' class="{name}"' if name else ""
