"""Damages to the folders of finished runs, by chance, as disks, editors and people do them."""

import json
import random
import re
import shutil
from pathlib import Path

SHAPES = [b"5", b"null", b"[]", b"{}", b'"text"', b"", b"\xff\xfe", b"[" * 100_000, b"{\x00}"]


def damage(out: Path, chance: random.Random) -> str:
    """Damages one run below `out`; says how."""
    runs = sorted(path.parent for path in out.rglob("record.json"))
    run = chance.choice(runs)
    kind = chance.choice(sorted(_KINDS))
    _KINDS[kind](run, chance, runs)
    return f"{kind} in {run.name}"


def _file(run, chance):
    return chance.choice(sorted(path for path in run.iterdir() if path.is_file()))


def _bit(run, chance, runs):
    path = _file(run, chance)
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _digit(run, chance, runs):
    path = run / chance.choice(["record.json", "metrics.jsonl"])
    text = path.read_text()
    place = chance.choice([match.start() for match in re.finditer(r"\d", text)])
    other = chance.choice([digit for digit in "0123456789" if digit != text[place]])
    path.write_text(text[:place] + other + text[place + 1 :])


def _letter(run, chance, runs):
    path = run / chance.choice(["record.json", "metrics.jsonl"])
    text = path.read_text()
    place = chance.choice([match.start(1) for match in re.finditer(r'"(\w)\w*": ?', text)])
    path.write_text(text[:place] + "z" + text[place + 1 :])


def _lines(change):
    def act(run, chance, runs):
        path = run / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(change(lines, chance.randrange(len(lines)))))

    return act


def _shape(run, chance, runs):
    (run / chance.choice(["record.json", "metrics.jsonl"])).write_bytes(chance.choice(SHAPES))


def _last_shape(run, chance, runs):
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(chance.choice(SHAPES[:7]) + b"\n")


def _cut(run, chance, runs):
    path = _file(run, chance)
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def _gone(run, chance, runs):
    (run / chance.choice(["record.json", "metrics.jsonl"])).unlink()


def _other_file(run, chance, runs):
    other = chance.choice([path for path in runs if path != run])
    name = chance.choice(["record.json", "metrics.jsonl"])
    shutil.copy(other / name, run / name)


def _copied(run, chance, runs):
    shutil.copytree(run, run.with_name(run.name + chance.choice([".bak", "0", " (1)", "-copy"])))


def _renamed(run, chance, runs):
    run.rename(run.with_name(run.name + chance.choice([".bak", "0", ".old"])))


def _unfinished(run, chance, runs):
    path = run / "record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"finished": False}))


_KINDS = {
    "a bit": _bit,
    "a digit": _digit,
    "a letter of a key": _letter,
    "the last line gone": _lines(lambda lines, at: lines[:-1]),
    "a line gone": _lines(lambda lines, at: lines[:at] + lines[at + 1 :]),
    "a line twice": _lines(lambda lines, at: lines[: at + 1] + lines[at:]),
    "lines turned": _lines(lambda lines, at: lines[at:] + lines[:at] if at else lines[::-1]),
    "another shape": _shape,
    "a line of another shape": _last_shape,
    "cut": _cut,
    "a file gone": _gone,
    "another run's file": _other_file,
    "copied": _copied,
    "renamed": _renamed,
    "called unfinished": _unfinished,
}
