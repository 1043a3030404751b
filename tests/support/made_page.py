"""The page of results, read as a browser without JavaScript reads it."""

import json
from html.parser import HTMLParser
from typing import NamedTuple


class Read(NamedTuple):
    """What a page holds.

    Attributes:
        tables: by id, each a list of rows, a row the texts of its cells by their heads.
        links: by id of the table, each row's addresses.
        ids: of all elements.
        texts: what stands in each element that has an id, by it.
        addresses: of pictures, scripts, styles.
        data: what the script reads.
    """

    tables: dict[str, list[dict[str, str]]]
    links: dict[str, list[list[str]]]
    ids: list[str]
    texts: dict[str, str]
    addresses: list[str]
    data: dict


def read(text: str) -> Read:
    """Reads a page."""
    parser = _Parser()
    parser.feed(text)
    tables, links = {}, {}
    for name, rows in parser.rows.items():
        heads = [text for text, _ in rows[0]]
        for i, head in enumerate(heads):  # two columns may have one head
            heads[i] = head + " 2" * heads[:i].count(head)
        cells = [[text for text, _ in row] for row in rows[1:]]
        tables[name] = [dict(zip(heads, row, strict=True)) for row in cells if row]
        links[name] = [[link for _, link in row if link] for row in rows[1:]]
    data = json.loads(parser.texts["data"], parse_constant=_refuse)
    return Read(tables, links, parser.ids, parser.texts, parser.addresses, data)


def _refuse(name):
    """Python's JSON knows NaN and infinities; a browser's does not."""
    raise ValueError(f"{name} is no JSON")


class _Parser(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows, self.ids, self.texts, self.addresses = {}, [], {}, []
        self._table, self._within = None, []

    def handle_starttag(self, tag, attributes):
        own = dict(attributes)
        self.addresses += [own[name] for name in ("src", "data") if name in own]
        if tag == "link":
            self.addresses.append(own["href"])
        if "id" in own:
            self.ids.append(own["id"])
            self.texts[own["id"]] = ""
            self._within.append((tag, own["id"]))
        if tag == "table":
            self._table = self.rows.setdefault(own["id"], [])
        elif self._table is not None and tag == "tr":
            self._table.append([])
        elif self._table is not None and tag in ("td", "th"):
            self._table[-1].append(("", ""))
        elif self._table is not None and tag == "a":
            self._table[-1][-1] = ("", own["href"])

    def handle_data(self, data):
        for _, name in self._within:
            self.texts[name] += data
        if self._table and self._table[-1]:
            text, link = self._table[-1][-1]
            self._table[-1][-1] = (text + data.strip(), link)

    def handle_endtag(self, tag):
        if tag == "table":
            self._table = None
        if self._within and self._within[-1][0] == tag and tag in ("details", "script", "table"):
            self._within.pop()
