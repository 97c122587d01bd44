"""Seeded damage to every artifact of a workbook folder, and what its readers make of it.

A trial lays out the folder anew, damages one file, and asks the readers that use it in a process of
their own. A reader refuses with an error that names the file, answers as on the whole folder, says
in a notice that the file is damaged, or fails: it answers otherwise without a word ("silent"), or
with an error that names nothing ("unnamed").
"""

import json
import logging
import os
import random
import re
import shutil
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from helpers.faulty_home import build
from helpers.readers import ACCEPTED, INPUTS, OPTIONAL, PROBES, READING, probes_of
from saelib.config import stable_hash

SECONDS = 60  # that a trial may take
COPIED = (".jsonl", ".csv", ".lock")  # files that are written in place
HOME = "faulty_home"  # the folder of all that is damaged
WORST = ("unnamed", "silent", "stated", "noticed", "refused", "healed", "harmless")  # of a trial
FAILURES = ("unnamed", "silent")
FIELDS = {  # path -> what a store or profile calls its content
    "model/": ("model_id", "corpus_id", "model '"),
    "pages.jsonl": ("corpus_id",),
    "notebooks/": ("02_x", "parameter", "profile 'tiny'"),
    "data/tiny/notebooks/": ("no executed notebook",),
    "data/tiny/workspace.json": ("model '",),
}


class Trial(NamedTuple):
    """What became of one damaged file."""

    number: int
    path: str  # below the folder
    kind: str  # of damage
    outcome: str  # one of `WORST`
    missed: bool  # `check` did not name the file, though a reader could not go on with it
    details: dict[str, str]  # by reader
    peak_mb: float
    seconds: float


# -- kinds of damage: each changes a file, or says that it has nothing to change ------------------


def _bit(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def _byte(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    place = draw.randrange(len(data))
    data[place] = (data[place] + draw.randrange(1, 256)) % 256
    path.write_bytes(data)


def _truncated(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])


def _extended(path: Path, draw: random.Random) -> None:
    more = draw.choice((b"\n", b"0", b"{}", draw.randbytes(40), path.read_bytes()[-200:]))
    path.write_bytes(path.read_bytes() + more)


def _emptied(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def _deleted(path: Path, draw: random.Random) -> None:
    path.unlink()


def _directory(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _zeroed(path: Path, draw: random.Random) -> None:
    """A block of zeros, as a disk leaves after a loss of power."""
    data = bytearray(path.read_bytes())
    first = draw.randrange(len(data))
    size = min(draw.choice((1, 64, 4096)), len(data) - first)
    data[first : first + size] = bytes(size)
    path.write_bytes(data)


def _digit(path: Path, draw: random.Random) -> None:
    text = path.read_text(encoding="utf-8")
    places = [place.start() for place in re.finditer(r"[0-9]", text)]
    place = draw.choice(places)
    other = draw.choice([digit for digit in "123456789" if digit != text[place]])
    path.write_text(text[:place] + other + text[place + 1 :], encoding="utf-8")


def _nodes(value: object, above: tuple = ()) -> Iterator[tuple]:
    """Places of everything in a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in entries:
        yield (*above, key)
        if isinstance(inner, dict | list):
            yield from _nodes(inner, (*above, key))


def _edit_json(path: Path, draw: random.Random, change: Callable[[object, object], None]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    place = draw.choice(list(_nodes(value)))
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    change(inner, place[-1])
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _key_removed(path: Path, draw: random.Random) -> None:
    def change(inner: object, key: object) -> None:
        del inner[key]

    _edit_json(path, draw, change)


def _type_changed(path: Path, draw: random.Random) -> None:
    other = draw.choice((None, [], {}, "x", -1, 0.5, True, [1], {"a": 1}))

    def change(inner: object, key: object) -> None:
        inner[key] = other

    _edit_json(path, draw, change)


def _line_removed(path: Path, draw: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[draw.randrange(len(lines))]
    path.write_bytes(b"".join(lines))


def _line_repeated(path: Path, draw: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    place = draw.randrange(len(lines))
    path.write_bytes(b"".join([*lines[: place + 1], lines[place], *lines[place + 1 :]]))


def _swapped(path: Path, draw: random.Random) -> None:
    """Another file of its kind in its place: another run's, another site's, another store's."""
    folders = [path.parents[depth] for depth in (1, 2, 3)]
    within = [folder for folder in folders if HOME in folder.parts]
    siblings = [
        other
        for folder in within
        for other in folder.rglob(f"*{path.suffix}")
        if other.is_file() and other != path and _alike(other, path)
    ]
    contents = sorted({other.read_bytes() for other in siblings} - {path.read_bytes()})
    path.write_bytes(draw.choice(contents))


def _alike(one: Path, other: Path) -> bool:
    names = [re.sub(r"[0-9a-f]{12}|[0-9]+", "0", path.name) for path in (one, other)]
    return names[0] == names[1]


SIGNED = {"manifest.json": "store_id", "seal.json": "hash", "workspace.json": "hash"}
SIGNED_FIELDS = {
    "manifest.json": [
        *(("dtype", other) for other in ("float16", "bfloat16", "int8", "nonsense", 3, None)),
        *(("d_model", other) for other in (16, 64, "32", None)),
        *(("n_rows", other) for other in (100, 10**6, "x", None)),
        *(("sites", other) for other in ([1], [1, 2], [1, 2, 3, 4], "123", None)),
        *(("median_norm", other) for other in ({}, {"1": 1.0, "2": 1.0, "3": 1.0}, None, [1])),
        *(("files", other) for other in ({}, None, [])),
        ("shards", []),
        ("shards", None),
        ("model_id", 3),
        ("corpus_id", None),
        ("format", 2),
    ],
    "seal.json": [("run_id", "0" * 12), ("files", {}), ("files", None), ("format", "1")],
    "workspace.json": [("model", "other"), ("dtype", "bfloat16"), ("corpus", {}), ("corpus", None)],
}
OUTSIDE = "../../outside.safetensors"


def _signed(path: Path, draw: random.Random) -> None:
    """A field edited, and the checksum of the whole made to fit."""
    values = json.loads(path.read_text(encoding="utf-8"))
    field, other = draw.choice([*SIGNED_FIELDS[path.name], ("shard", None), ("outside", None)])
    if field == "shard" and "shards" in values:
        shard = draw.choice(values["shards"])
        shard[draw.choice(("rows", "shard"))] += draw.choice((-1, 1, 1000))
    elif field == "outside" and "files" in values:
        name = draw.choice(sorted(values["files"]))
        (path.parent / OUTSIDE).write_bytes((path.parent / name).read_bytes())
        values["files"][OUTSIDE] = values["files"].pop(name)
    elif field not in ("shard", "outside"):
        values[field] = other
    else:
        values["more"] = 1
    name = SIGNED[path.name]
    values[name] = stable_hash({key: value for key, value in values.items() if key != name})
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _header(path: Path, draw: random.Random) -> None:
    """A byte of a safetensors header, or the shape or type that it states."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    name = draw.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    change = draw.randrange(4)
    if change == 0:
        entry["dtype"] = draw.choice(("F16", "BF16", "I32", "F64", "U8", "X"))
    elif change == 1:
        entry["shape"] = entry["shape"][::-1] if len(entry["shape"]) > 1 else [*entry["shape"], 1]
    elif change == 2:
        entry["data_offsets"][draw.randrange(2)] += draw.choice((-4, 4, 1 << 40))
    else:
        header[draw.choice((f"{name}2", "x", ""))] = header.pop(name)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


ANY = {
    "bit": _bit,
    "byte": _byte,
    "truncated": _truncated,
    "extended": _extended,
    "emptied": _emptied,
    "deleted": _deleted,
    "directory": _directory,
    "zeroed": _zeroed,
}
TEXTUAL = {"digit": _digit, "line removed": _line_removed, "line repeated": _line_repeated}
JSON = {"digit": _digit, "key removed": _key_removed, "type changed": _type_changed}


def kinds_of(path: Path) -> dict[str, Callable[[Path, random.Random], None]]:
    """The kinds of damage that a file can take, by name."""
    kinds = dict(ANY)
    if path.suffix in (".json", ".ipynb"):
        kinds |= JSON
    if path.suffix in (".jsonl", ".csv", ".yaml", ".txt", ".xml"):
        kinds |= TEXTUAL
    if path.suffix == ".safetensors":
        kinds["header"] = _header
    if path.name in SIGNED:
        kinds["signed"] = _signed
    return kinds | {"swapped": _swapped}


def damage(path: Path, kind: str, draw: random.Random) -> bool:
    """Damage a file; False where the damage has nothing to take hold of, or changes nothing."""
    before = path.read_bytes()
    try:
        kinds_of(path)[kind](path, draw)
    except (IndexError, ValueError, TypeError):  # no digit, no sibling, an empty file
        return False
    return not path.is_file() or path.read_bytes() != before


# -- a trial --------------------------------------------------------------------------------------


class Home:
    """A folder laid out anew for each trial, at one path; the whole one stays beside it."""

    def __init__(self, folder: Path) -> None:
        self.whole = folder / "whole"
        self.path = folder / HOME
        if not self.whole.exists():
            build(self.path)
            self.path.rename(self.whole)
        os.environ["SAELIB_HOME"] = str(self.path)
        self.lay_out()
        paths = (path.relative_to(self.whole) for path in sorted(self.whole.rglob("*")))
        self.artifacts = [
            path for path in paths if (self.whole / path).is_file() and probes_of(str(path))
        ]
        self._expected: dict[str, dict[str, str]] = {}

    def lay_out(self) -> None:
        """The whole folder again; what is replaced when written is a link."""
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.whole, self.path, copy_function=_linked)

    def answer(self, probe: str) -> dict[str, str]:
        """What a reader says of the whole folder; asked once."""
        if probe not in self._expected:
            self._expected[probe] = self._asked_whole(probe)
        return self._expected[probe]

    def _asked_whole(self, probe: str) -> dict[str, str]:
        self.lay_out()
        (answer,) = self.asked([probe], lambda: True)["answers"].values()
        if answer["outcome"] != "answer":
            raise AssertionError(f"{probe} fails on a whole folder: {answer}")
        return answer

    def asked(self, probes: list[str], change: Callable[[], object], warm: bool = False) -> dict:
        """Answers of some readers in a process of their own, once the folder was changed.

        warm: they have read the whole folder before, in the same process.
        """
        report = self.path.parent / "answers.json"
        report.unlink(missing_ok=True)
        start = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _child(self, probes, change, warm, report)
        while time.monotonic() - start < SECONDS:
            done, status, usage = os.wait4(pid, os.WNOHANG)
            if done:
                break
            time.sleep(0.005)
        else:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return _lost(probes, f"took over {SECONDS} s")
        if status or not report.exists():
            return _lost(probes, f"ended with status {status}")
        found = json.loads(report.read_text())
        return found | {"peak_mb": usage.ru_maxrss * 1024 / 1e6}


def _linked(source: str, target: str) -> None:
    if source.endswith(COPIED) or "/.locks/" in source or os.path.getsize(source) < 4096:
        shutil.copyfile(source, target)
    else:
        os.link(source, target)


def _lost(probes: list[str], reason: str) -> dict:
    answer = {"outcome": "crash", "said": reason, "notices": ""}
    return {"answers": dict.fromkeys(probes, answer), "changed": True, "peak_mb": 0.0}


def _child(home: Home, probes: list[str], change: Callable, warm: bool, report: Path) -> None:
    """Ask the readers and end the process."""
    status = 1
    try:
        output = StringIO()
        with redirect_stdout(output), redirect_stderr(output):
            if warm:
                for name in probes:
                    if name in READING:
                        _answer(name, home.path)
            changed = change()
            answers = {name: _answer(name, home.path) for name in probes if changed}
        report.write_text(json.dumps({"answers": answers, "changed": bool(changed)}))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _answer(name: str, home: Path) -> dict[str, str]:
    """What a reader answers, raises, and says beside it."""
    said = StringIO()
    handler = logging.StreamHandler(said)
    log = logging.getLogger("saelib")
    log.addHandler(handler)
    try:
        with redirect_stdout(said), redirect_stderr(said):
            answer = {"outcome": "answer", "said": PROBES[name](home)}
    except ACCEPTED as error:
        answer = {"outcome": "refused", "said": f"{type(error).__name__}: {error}"}
    except BaseException as error:
        trace = "".join(traceback.format_exception(error)[-3:])
        answer = {"outcome": "crash", "said": f"{type(error).__name__}: {error}\n{trace}"}
    finally:
        log.removeHandler(handler)
    return answer | {"notices": said.getvalue()}


def _judged(
    probe: str, path: Path, kind: str, answer: dict[str, str], expected: dict[str, str]
) -> str:
    """One of `WORST`, of one reader."""
    is_input = any(re.search(pattern, str(path)) for pattern in INPUTS) or probe == "model"
    if kind in ("deleted", "emptied", "line removed"):  # as if it had not been made
        is_input |= any(re.search(pattern, str(path)) for pattern in OPTIONAL)
    if answer["outcome"] == "crash":
        return "unnamed"
    if answer["outcome"] == "refused":
        return "refused" if _names(answer["said"], path) else "unnamed"
    if answer["said"] == expected["said"]:
        return "harmless"
    if _names(answer["notices"], path):
        return "noticed"
    return "stated" if is_input else "silent"


def _names(text: str, path: Path) -> bool:
    """Whether a sentence names a file, the folder that it lies in, or a field that it decides."""
    fields = next((fields for start, fields in FIELDS.items() if str(path).startswith(start)), ())
    return path.name in text or str(path.parent) in text or any(field in text for field in fields)


def trial(home: Home, number: int, seed: int, only: str = "") -> Trial | None:
    """One seeded trial; None where the damage drawn changes nothing."""
    draw = random.Random(f"{seed}:{number}")
    artifacts = [path for path in home.artifacts if re.search(only, str(path))]
    group = draw.choice(sorted({_group(path) for path in artifacts}))
    path = draw.choice([path for path in artifacts if _group(path) == group])
    expected = {name: home.answer(name) for name in probes_of(str(path))}
    home.lay_out()
    target = home.path / path
    kind = draw.choice(sorted(kinds_of(target)))
    warm = draw.random() < 0.2
    start = time.monotonic()
    probes = probes_of(str(path))
    state = target.stat()

    def change() -> bool:
        content = target.read_bytes()
        target.unlink()  # it may be a link
        target.write_bytes(content)
        changed = damage(target, kind, draw)
        if changed and target.is_file() and draw.random() < 0.5:
            os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns))
        return changed

    found = home.asked(probes, change, warm)
    if not found["changed"]:
        return None
    details = {
        name: _judged(name, path, kind, answer, expected[name])
        for name, answer in found["answers"].items()
        if not name.startswith("check")
    }
    outcome = min(details.values(), key=WORST.index)
    if outcome == "harmless" and _is_restored(target, home.whole / path):
        outcome = "healed"
    missed = _check_missed(found["answers"], expected, path, outcome)
    said = {
        name: f"{details.get(name, 'check')}: {answer['said'][-1500:]} | {answer['notices'][-300:]}"
        for name, answer in found["answers"].items()
        if details.get(name) in FAILURES or (missed and name.startswith("check"))
    }
    kind += " (read before)" * warm
    seconds = time.monotonic() - start
    return Trial(number, str(path), kind, outcome, missed, said, found["peak_mb"], seconds)


def _is_restored(target: Path, whole: Path) -> bool:
    return target.is_file() and target.read_bytes() == whole.read_bytes()


def _check_missed(answers: dict, expected: dict, path: Path, outcome: str) -> bool:
    """Whether `check` raised, or said nothing of a file that a reader stumbled over."""
    for name, answer in answers.items():
        if not name.startswith("check"):
            continue
        if answer["outcome"] != "answer":
            return not (answer["outcome"] == "refused" and _names(answer["said"], path))
        if outcome in ("harmless", "healed", "stated"):
            continue
        if answer["said"] == expected[name]["said"] or not _names(answer["said"], path):
            return True
    return False


def _group(path: Path) -> str:
    """Files of one kind, by their path without names of runs and numbers."""
    return re.sub(r"[0-9a-f]{12}|(?<=[_/])[0-9]+", "*", str(path))
