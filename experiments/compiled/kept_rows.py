"""Rows of a measurement that takes hours, kept as they come, so that an interrupted one goes on."""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class KeptRows:
    """A file of rows and the conditions of their measurement; other conditions start it again.

    Args:
        path: the file's; None keeps nothing.
        conditions: JSON values, with `environment()` among them. A checkout with changes takes no
            row over, for its code may differ.
    """

    def __init__(self, path: Path | None, conditions: dict[str, Any]) -> None:
        self._path = path
        self._conditions = json.loads(json.dumps(conditions))
        git = conditions["environment"]["git"]
        self.rows = self._read() if git is not None and not git["dirty"] else []

    def find(self, **identity: Any) -> Row | None:
        """Returns the row with these values, if there is one."""
        for row in self.rows:
            if all(row[name] == value for name, value in identity.items()):
                return row
        return None

    def add(self, row: Row) -> None:
        """Keeps a row."""
        self.rows.append(json.loads(json.dumps(row)))
        if self._path is not None:
            lines = [self._conditions, *self.rows]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            written = self._path.with_suffix(".new.tmp")
            written.write_text(text)
            written.replace(self._path)

    def discard(self) -> None:
        """Removes the file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self) -> list[Row]:
        if self._path is None or not self._path.is_file():
            return []
        conditions, *rows = map(json.loads, self._path.read_text().splitlines())
        return rows if conditions == self._conditions else []
