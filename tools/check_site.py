"""Checks the built docs site for broken links and for anything that a page loads from the network.

    python tools/check_site.py site

* `faults`: one line per fault, "page: fault".
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "link": "href",
    "use": "href",
}
CSS_URL = re.compile(r"(?:url\(|@import\s+)['\"]?((?:https?:)?//[^'\")\s]+)")


class Page(HTMLParser):
    """The anchors of a page, its links, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = {""}
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record the anchor, links and loaded files of an element."""
        given = dict(attrs)
        self.names.update(value for key in ("id", "name") if (value := given.get(key)))
        if tag == "a" and given.get("href"):
            self.links.add(str(given["href"]))
        elif given.get(LOADED.get(tag, "")) and given.get("rel") != "canonical":
            self.loads.add(str(given[LOADED[tag]]))
        self.loads.update(CSS_URL.findall(given.get("style") or ""))


def faults(site: Path) -> list[str]:
    """The faults in the pages and style sheets of a site."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        place = path.relative_to(site)
        for link in sorted(page.links | page.loads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loads and parts.scheme != "data":
                    found.append(f"{place}: loads {link} from the network")
            elif path.name != "404.html":  # its links start at the root of a server
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
                target = target / "index.html" if target.is_dir() else target
                entered = (
                    pages.get(site / target.relative_to(site.resolve()))
                    if target.is_relative_to(site.resolve())
                    else None
                )
                if not target.is_file() or not target.is_relative_to(site.resolve()):
                    found.append(f"{place}: {link} leads nowhere")
                elif entered and unquote(parts.fragment) not in entered.names:
                    found.append(f"{place}: {link} has no such anchor")
    for path in sorted(site.rglob("*.css")):
        found += [f"{path.relative_to(site)}: loads {url}" for url in CSS_URL.findall(path.read_text(encoding="utf-8"))]
    return found


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]))
    print("\n".join(wrong) or "every link leads somewhere, and nothing is asked of the network")
    sys.exit(bool(wrong))
