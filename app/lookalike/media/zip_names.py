"""Names of the members of a zip file, as the programs wrote them that made it.

A name is UTF-8 if its flag says so. Many programs do not set the flag: macOS writes UTF-8 without
it, Info-ZIP adds the name in UTF-8 beside another, and Windows writes the code page of its country.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable

_UTF8_FLAG = 0x800
_UNICODE_PATH = 0x7075  # Info-ZIP's extra field
_OTHER = re.compile(r"[^\x00-\x7f]+")
_MOST_READ = 20_000  # bytes of names that are looked at for the code page
_LIKELY = 0.4  # what letters count that stand where they hardly do
_SECOND = re.compile(r"[@\[\\\]^`{|}~]")
_MIXED = re.compile("[\u0430-\u044f][\u0410-\u042f]|[^\u0410-\u044f\u0401\u0451\u2116]")

_LATIN = re.compile("[À-ÖØ-öø-ÿŒœŸƒıª°º·]")
_KANA = re.compile("[\u3000-\u30ff\uff01-\uff5e]")


def names_of(members: Iterable[zipfile.ZipInfo]) -> list[str]:
    """The members' names as text, in order.

    All names without a flag are of one encoding: UTF-8 if that fits, else the code page, of Western
    Europe, Russia, Japan and China, in which the names read best.
    """
    members = list(members)
    raw = {
        number: member.orig_filename.encode("cp437")  # which zipfile has read it as
        for number, member in enumerate(members)
        if not member.flag_bits & _UTF8_FLAG and not member.orig_filename.isascii()
    }
    encoding = _encoding_of(raw.values())
    names = [member.filename for member in members]
    for number, name in raw.items():
        named = _unicode_path(members[number].extra, name)
        names[number] = named or name.decode(encoding, "replace").partition("\0")[0]
    return names


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """The name that Info-ZIP adds, if it belongs to the one that is there."""
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        body, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and body[:5] == b"\1" + zlib.crc32(raw).to_bytes(4, "little"):
            return body[5:].decode("utf-8", "replace")
    return None


def _encoding_of(names: Iterable[bytes]) -> str:
    text = b"\n".join(names)
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        text = text[:_MOST_READ].rpartition(b"\n")[0] or text
        return max(_PAGES, key=lambda page: _reads(text, page, _PAGES[page]))
    return "utf-8"


def _reads(text: bytes, page: str, weigh: Callable[[str], float]) -> float:
    """How well the names read in a code page, 0 to 1; less than 0 if they do not fit in."""
    try:
        decoded = text.decode(page)
    except UnicodeDecodeError:
        return -1.0
    weights = []
    for run in _OTHER.finditer(decoded):
        beside = decoded[max(0, run.start() - 1) : run.start()] + decoded[run.end() : run.end() + 1]
        likely = _LIKELY if _is_odd(run[0], beside, page) else 1.0
        weights += [likely * weigh(char) for char in run[0]]
    return sum(weights) / max(1, len(weights))


def _is_odd(run: str, beside: str, page: str) -> bool:
    """Whether letters stand as they hardly do in the languages of a code page."""
    if page == "cp850":  # accents are few, and the second bytes of Japanese look like this
        return len(run) > 2 or bool(_SECOND.search(beside))
    if page == "cp866":
        return bool(_MIXED.search(run) or _SECOND.search(beside) or re.search("[a-zA-Z]", beside))
    return len(run) == 1 and len(beside) > 0 and beside.isalpha()


def _western(char: str) -> float:
    return 1.0 if _LATIN.match(char) else 0.0


def _russian(char: str) -> float:
    return 1.0 if "\u0410" <= char <= "\u044f" else 0.3 if char in "\u0401\u0451\u2116" else 0.0


def _japanese(char: str) -> float:
    if _KANA.match(char):
        return 1.0
    return (
        1.0 if "\x88\x9f" <= char.encode("cp932", "replace").decode("latin-1") < "\x98\x73" else 0.2
    )


def _chinese(char: str) -> float:
    lead, *trail = char.encode("gbk", "replace")
    if not trail or trail[0] < 0xA1:
        return 0.1
    return 1.0 if 0xB0 <= lead <= 0xD7 else 0.3


_PAGES: dict[str, Callable[[str], float]] = {
    "cp850": _western,
    "cp866": _russian,
    "cp932": _japanese,
    "gbk": _chinese,
}
"""Code pages, the most common first; the first of those that read equally well is taken."""
