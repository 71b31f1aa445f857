"""Archives that are made to harm, each another one for each seed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence

from tests.test_crash import picture

Make = Callable[[random.Random], bytes]

ZEROS = bytes(2**20)


def _zip(
    members: Sequence[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as file:
        warnings.simplefilter("ignore")  # names may repeat
        for name, data in members:
            file.writestr(name, data, method)
    return out.getvalue()


def _tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as file:
        for info, data in members:
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _info(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, to
    return info


def _packed(data: bytes, chance: random.Random) -> bytes:
    packers: list[Callable[[bytes], bytes]] = [bytes, gzip.compress, bz2.compress, _xz]
    return chance.choice(packers)(data)


def _xz(data: bytes) -> bytes:
    return lzma.compress(data, preset=1)


def _good(chance: random.Random) -> list[tuple[str, bytes]]:
    return [(f"good/{n}.png", picture(chance.randrange(1000))) for n in range(chance.randint(1, 4))]


def _header(block: bytes, start: int, field: bytes) -> bytes:
    """A tar header with other bytes in one field, and the checksum that fits them."""
    changed = bytearray(block[:512])
    changed[start : start + len(field)] = field
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed) + block[512:]


def bomb(chance: random.Random) -> bytes:
    """Zip members of zeros that unpack to a thousand times their size."""
    zeros = ZEROS * chance.randint(5, 30)
    return _zip([(f"{n}.png", zeros) for n in range(chance.randint(1, 8))])


def overlapping(chance: random.Random) -> bytes:
    """A zip file whose directory names the same member many times over."""
    data = _zip([("00000.png", ZEROS * chance.randint(1, 8))])
    start, end = data.index(b"PK\1\2"), data.rindex(b"PK\5\6")
    entry, count = data[start:end], chance.randint(1000, 20_000)
    numbered = b"".join(entry.replace(b"00000", b"%05d" % n) for n in range(count))
    named = numbered if chance.random() < 0.3 else entry * count
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(named), start, 0)
    return data[:start] + named + tail


def nested(chance: random.Random) -> bytes:
    """Archives in archives, some under the names of pictures."""
    data = _zip(_good(chance))
    for _ in range(chance.randint(3, 30)):
        name = chance.choice(["inner.zip", "inner.png", "inner.tar.gz"])
        data = _zip([(name, data)] * chance.randint(1, 2))
        if len(data) > 2_000_000:
            break
    return data


def layers(chance: random.Random) -> bytes:
    """A stream that is packed over and over."""
    data = ZEROS * 10
    for _ in range(chance.randint(2, 12)):
        data = _packed(data, chance)
    return data


def zeros(chance: random.Random) -> bytes:
    """Zeros without an end, packed small."""
    gz, bz = zlib.compressobj(9, zlib.DEFLATED, 31), bz2.BZ2Compressor()
    compress, flush = chance.choice([(gz.compress, gz.flush), (bz.compress, bz.flush)])
    start = _tar((_info("a.png", 8), b"no image")) if chance.random() < 0.5 else b""
    parts = [compress(start[:1024])]
    parts += [compress(ZEROS) for _ in range(chance.randint(50, 150))]
    return b"".join([*parts, flush()])


EVIL_NAMES = (
    "../../../../../../{target}",
    "{target}",
    "a/../../../../../../../{target}",
    "..\\..\\..\\..\\{target}",
    "C:\\{target}",
    "\\\\server\\share\\{target}",
    "a\0{target}",
    "\u202egnp.{target}",
    "con.png",
    "." * 200 + ".png",
    "x" * 5000 + ".png",
    "a/" * 3000 + "a.png",
    "\udcff.png",
    "\n\r\x1b[2J.png",
    " .png",
    "/",
)
TARGET = "escaped.png"
"""The name that a file has where an archive gets out."""


def names(chance: random.Random) -> bytes:
    """Names that lead outside, or that no file can have."""
    chosen = chance.sample(EVIL_NAMES, 6)
    members = [(name.format(target=f"tmp/{TARGET}"), picture(n)) for n, name in enumerate(chosen)]
    if chance.random() < 0.5:
        return _zip([(name.encode("utf-8", "replace").decode(), data) for name, data in members])
    tar = _tar(*((_info(name, len(data)), data) for name, data in members))
    return _packed(tar, chance)


def links(chance: random.Random) -> bytes:
    """Links, devices, pipes and sockets; then a file that would go through a link."""
    if chance.random() < 0.4:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        return _zip([(link, b"/etc/passwd"), ("link.png/x.png", picture(1))])
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    members = [
        (
            _info(
                f"{n}.png", 0, chance.choice(kinds), chance.choice(["/etc/passwd", "/", "../.."])
            ),
            b"",
        )
        for n in range(20)
    ]
    members.append((_info(f"0.png/{TARGET}", 8), b"no image"))
    return _packed(_tar(*members), chance)


def same_names(chance: random.Random) -> bytes:
    """One name for many files."""
    files = [("same.png", picture(chance.randrange(50))) for _ in range(chance.randint(100, 400))]
    return _tar(*((_info(name, len(data)), data) for name, data in files))


def zip_sizes(chance: random.Random) -> bytes:
    """A zip file whose headers lie about sizes, offsets and counts."""
    data = bytearray(_zip(_good(chance)))
    start, end = data.index(b"PK\1\2"), data.rindex(b"PK\5\6")
    for _ in range(chance.randint(1, 4)):
        value = chance.choice([0, 1, 2**16 - 1, 2**31, 2**32 - 2, 2**32 - 1])
        at = chance.choice([start + 20, start + 24, start + 42, end + 12, end + 16, 18, 22])
        struct.pack_into("<L", data, at, value)
    if chance.random() < 0.5:
        struct.pack_into("<H", data, end + 10, chance.choice([0, 1, 65_535]))
    return bytes(data)


def zip64(chance: random.Random) -> bytes:
    """A zip file whose 64-bit end lies."""
    data = _zip(_good(chance))
    start, end = data.index(b"PK\1\2"), data.rindex(b"PK\5\6")
    big = chance.choice([0, 1, 2**32, 2**63 - 1, 2**64 - 1])
    size, offset = chance.choice(
        [(end - start, big), (big, start), (big, big), (end - start, start)]
    )
    count = chance.choice([1, big])
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, chance.choice([end, big]), 1)
    last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65_535, 65_535, 2**32 - 1, 2**32 - 1, 0)
    return data[:end] + end64 + locator + last


def tar_sizes(chance: random.Random) -> bytes:
    """A tar file with a size that is negative, huge or no number."""
    data = _tar(*((_info(name, len(data)), data) for name, data in _good(chance)))
    field = chance.choice(
        [
            b"77777777777\0",
            b"-0000000001\0",
            b"\xff" * 12,  # -1 in base 256
            b"\xff" + bytes(11),
            b"\x80" + b"\xff" * 11,
            b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7,
            b"not a number",
        ]
    )
    return _packed(_header(data, 124, field), chance)


def sparse(chance: random.Random) -> bytes:
    """A sparse file that claims terabytes."""
    info = _info("sparse.png", 512, tarfile.GNUTYPE_SPARSE)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT) + bytes(512))
    real = chance.choice([2**33 - 1, 2**30])
    for n in range(4):
        block[386 + 24 * n : 398 + 24 * n] = b"%011o\0" % (n * 2**20)
        block[398 + 24 * n : 410 + 24 * n] = b"%011o\0" % chance.choice([0, 512, real])
    block[482] = chance.randrange(2)
    block[483:495] = b"%011o\0" % real
    if chance.random() < 0.5:
        pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**60)}
        pax["GNU.sparse.name"] = "x.png"
        other = _info("x.png", 512)
        other.pax_headers = pax
        return _tar((other, b"99999999\n" * 56 + bytes(8)), form=tarfile.PAX_FORMAT)
    return _header(bytes(block), 0, b"") + bytes(1024)


def pax(chance: random.Random) -> bytes:
    """Headers that are longer than the files, or more than these, or that lie."""
    kind = chance.randrange(4)
    if kind == 0:
        info = _info("a.png", 8)
        info.pax_headers = {"comment": "x" * chance.randint(1, 30) * 2**20}
        return _packed(_tar((info, b"no image"), form=tarfile.PAX_FORMAT), chance)
    if kind == 1:
        record = b"".join(b"%d k%d=v\n" % (len(b"k%d=v\n" % n) + 4, n) for n in range(5))
        headers = [(_info("g", len(record), tarfile.XGLTYPE), record)] * chance.randint(100, 5000)
        return gzip.compress(_tar(*headers, (_info("a.png", 8), b"no image")))
    if kind == 2:
        info = _info("a.png", 8)
        info.pax_headers = {"size": chance.choice(["-1", str(2**70), "x", "1e9"])}
        return _tar((info, b"no image"), form=tarfile.PAX_FORMAT)
    long = _info("././@LongLink", 2**20 * chance.randint(1, 20), tarfile.GNUTYPE_LONGNAME)
    return gzip.compress(_tar((long, b"a" * long.size), (_info("a.png", 8), b"no image")))


def many(chance: random.Random) -> bytes:
    """Members without bytes, by the thousand."""
    count = chance.randint(1_000, 3_000)
    if chance.random() < 0.5:
        return _zip([(f"{n}.png", b"") for n in range(count)], zipfile.ZIP_STORED)
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as packed:
        block = _info("e.png").tobuf(tarfile.GNU_FORMAT)
        for _ in range(count // 1000):
            packed.write(block * 1000)
        packed.write(bytes(10_240))
    return out.getvalue()


def encrypted(chance: random.Random) -> bytes:
    """Members that need a password, or a method that nobody reads."""
    data = bytearray(_zip(_good(chance)))
    for mark, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        at = data.index(mark)
        struct.pack_into("<H", data, at + flags, chance.choice([1, 0x2041, 0xFFFF]))
        struct.pack_into("<H", data, at + flags + 2, chance.choice([8, 9, 12, 14, 95, 99]))
    return bytes(data)


def broken(chance: random.Random) -> bytes:
    """A good archive, cut, with bytes changed, or with parts in another order."""
    files = _good(chance)
    data = bytearray(
        _zip(files)
        if chance.random() < 0.5
        else _packed(_tar(*((_info(name, len(one)), one) for name, one in files)), chance)
    )
    kind = chance.randrange(3)
    if kind == 0:
        return bytes(data[: chance.randrange(len(data))])
    if kind == 1:
        for _ in range(chance.randint(1, 30)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        return bytes(data)
    cuts = sorted(chance.sample(range(len(data)), 4))
    parts = [bytes(data[a:b]) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    chance.shuffle(parts)
    return b"".join(parts)


def mixed(chance: random.Random) -> bytes:
    """Two kinds, one behind the other: each reader may see another archive."""
    return chance.choice([names, broken, zip_sizes])(chance) + chance.choice([links, pax, broken])(
        chance
    )


HOSTILE: tuple[Make, ...] = (
    bomb,
    overlapping,
    nested,
    layers,
    zeros,
    names,
    links,
    same_names,
    zip_sizes,
    zip64,
    tar_sizes,
    sparse,
    pax,
    many,
    encrypted,
    broken,
    mixed,
)


def million(_: random.Random) -> bytes:
    """A zip file with a million members without bytes."""
    local = struct.pack("<4sHHHHHLLLHH", b"PK\3\4", 10, 0, 0, 0, 33, 0, 0, 0, 5, 0)
    start = local + b"a.png"
    entry = struct.pack(
        "<4s4B4HL2L5H2L", b"PK\1\2", 10, 0, 10, 0, 0, 0, 0, 33, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0
    )
    count = 1_000_000
    directory = (entry + b"a.png") * count
    end64 = struct.pack(
        "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), len(start)
    )
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(start) + len(directory), 1)
    last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65_535, 65_535, 2**32 - 1, 2**32 - 1, 0)
    return start + directory + end64 + locator + last
