"""Each row of the tables in docs/formats.md as a file."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageCms

from lookalike.media.decode import register_heif
from tests.media import bombs
from tests.media.bombs import png_chunk
from tests.media.tiffs import made, page, tiff
from tests.models.pictures import draw, encode

PICTURE = draw(1)
PIXELS = np.asarray(PICTURE)
GRAY = np.asarray(PICTURE.convert("L"))
OTHER, SMALL = draw(2), draw(3, (40, 30))
SEVERAL = {"save_all": True, "append_images": [OTHER, PICTURE]}
BIG = b'{"node": "sampler", "seed": 1234567890},' * 40_000


class Shown(NamedTuple):
    """A file that is read: the picture, and how far it may be off on average, of 255."""

    data: bytes
    picture: Image.Image = PICTURE
    within: float = 0.0
    stretched: bool = False  # whether the range is another one, so that the shapes count


def lossy(data):
    return Shown(data, PICTURE, 4)


def by_libjpeg(data):
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        return Shown(data, image.convert("RGB"))


def gray(data, *, within=1.0, stretched=False):
    return Shown(data, Image.fromarray(GRAY), within, stretched)


def png(*before, after=b"", image=PICTURE, **options):
    """A PNG with chunks before its pixels, and more behind them."""
    data = encode(image, "PNG", **options)
    return data[:33] + b"".join(before) + data[33:-12] + after + data[-12:]


def bad(chunk):
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


def png_of(bits, color, values, *chunks, packed=zlib.compress):
    height, width = values.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in values)
    body = b"".join((*chunks, png_chunk(b"IHDR", head), png_chunk(b"IDAT", packed(lines))))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


def broken_frame():
    data = encode(PICTURE, "PNG", **SEVERAL)
    at = data.rindex(b"fdAT") + 20
    return data[:at] + bytes(40) + data[at + 40 :]


def iphone():
    pack = zlib.compressobj(wbits=-15)
    return png_of(
        8,
        2,
        PIXELS,
        png_chunk(b"CgBI", b"\x50\0\x20\2"),
        packed=lambda d: pack.compress(d) + pack.flush(),
    )


def jpeg(image=PICTURE, **options):
    return encode(image, "JPEG", **{"quality": 95} | options)


def framed(marker, *, bits=8, channels=3):
    """A JPEG that calls itself another kind."""
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0\x00\x11\x08")
    data[at + 1], data[at + 4], data[at + 9] = marker, bits, channels
    return bytes(data)


def ycck():
    """A JPEG of four channels, the first three of which are YCbCr, inverted as Adobe does."""
    colors = [ImageChops.invert(one) for one in ImageChops.invert(PICTURE).convert("YCbCr").split()]
    data = jpeg(Image.merge("CMYK", [*colors, Image.new("L", PICTURE.size)]), subsampling=0)
    at = data.index(b"Adobe") + 11
    return data[:at] + b"\2" + data[at + 1 :]


def webp(**options):
    return encode(PICTURE, "WEBP", **{"quality": 95} | options)


def bmp(bits, compression, body, *, masks=b"", palette=b"", height=120, width=160):
    head = struct.pack(
        "<IiiHHIIiiII",
        40,
        width,
        height,
        1,
        bits,
        compression,
        len(body),
        0,
        0,
        len(palette) // 4,
        0,
    )
    start = 54 + len(masks) + len(palette)
    return (
        b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + masks + palette + body
    )


def rgb565():
    red, green, blue = (PIXELS[::-1, :, channel].astype(np.uint16) for channel in range(3))
    return (red >> 3 << 11 | green >> 2 << 5 | blue >> 3).astype("<u2").tobytes()


def heic(*, deep=False, more=False):
    register_heif()
    import pillow_heif

    if deep:
        image = pillow_heif.from_bytes(
            "RGB;16", PICTURE.size, (PIXELS.astype("<u2") * 257).tobytes()
        )
    else:
        image = pillow_heif.from_pillow(PICTURE)
    if more:
        image.add_from_pillow(OTHER)
    target = io.BytesIO()
    image.save(target, quality=95)
    return target.getvalue()


# 32 x 24 pixels of more bits, of `slope`, which Pillow cannot write.
AVIF_10 = base64.b64decode(
    "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAA"
    "AAAAAAAAAAAAAAAOcGl0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAAQAAAAChpaW5mAAAAAAABAAAA"
    "GmluZmUCAAAAAAEAAGF2MDFDb2xvcgAAAABqaXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAAIAAAABgAAAAQcGl4aQAA"
    "AAADCgoKAAAADGF2MUOBIEAAAAAAE2NvbHJuY2x4AAIAAgAGgAAAABdpcG1hAAAAAAAAAAEAAQQBAoMEAAAASG1kYXQS"
    "AAoIOBE/dvAgIGkyMheCYwTAAPIgAACLNTCjljLrvk/zsiSSSm/Av+h8lge49mdOlj0chPLc1dYMXbm7tM38"
)
AVIF_12 = base64.b64decode(
    "AAAAHGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZgAAAOttZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAA"
    "AAAAAAAAAA5waXRtAAAAAAABAAAAHmlsb2MAAAAARAAAAQABAAAAAQAAAQ8AAABAAAAAKGlpbmYAAAAAAAEAAAAaaW5m"
    "ZQIAAAAAAQAAYXYwMUNvbG9yAAAAAGppcHJwAAAAS2lwY28AAAAUaXNwZQAAAAAAAAAgAAAAGAAAABBwaXhpAAAAAAMM"
    "DAwAAAAMYXYxQ4FAYAAAAAATY29scm5jbHgAAgACAAaAAAAAF2lwbWEAAAAAAAAAAQABBAECgwQAAABIbWRhdBIACglY"
    "ET92tAgIGiAyMReCYwTAAPIgAIs0tAU9z8ZxEyOi09u5tnz/vTmDO9m6ngc5Te4wP8FSGnGTLoNghuA="
)


def slope():
    down, across = np.mgrid[:24, :32]
    values = np.stack([across * 8, down * 10, np.full_like(down, 128)], axis=-1)
    return Image.fromarray(values.astype(np.uint8))


def old_jpeg():
    """A TIFF page packed by the first way to have JPEG in TIFF: a whole JPEG file in it."""
    data = jpeg()
    old = page(PIXELS, photometric=6, tags={259: [6], 513: [8], 514: [len(data)]})
    old.blocks = [data]  # right behind the header
    return tiff(old)


def lab(bits=8):
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    image = ImageCms.applyTransform(PICTURE, to_lab)
    assert image is not None
    values = np.frombuffer(image.tobytes(), np.uint8).reshape(PIXELS.shape)
    return values if bits == 8 else values.astype(np.uint16) << 8


def with_alpha(pixels, full):
    return np.dstack([pixels, np.full(GRAY.shape, full, pixels.dtype)])


def saved(mode="RGB", **options):
    return encode(PICTURE.convert(mode), "TIFF", **options)


def without(fill, **options):
    """Elevations of which every seventh is not known, and is shown black."""
    values = (GRAY * np.float32(10)).astype(np.float32)
    known = np.arange(GRAY.size).reshape(GRAY.shape) % 7 > 0
    low, high = np.percentile(GRAY[known], (0.1, 99.9))
    shown = ((GRAY - low) / (high - low)).clip(0, 1) * 255
    data = made(np.where(known, values, np.float32(fill)), **options)
    return Shown(data, Image.fromarray(np.where(known, shown, 0).astype(np.uint8)), 2)


CASES: dict[str, Callable[[], Shown | bytes]] = {
    # PNG
    "PNG | 1 to 8 bits; gray, palette, color": lambda: Shown(
        png(image=PICTURE.quantize(16), bits=4), PICTURE.quantize(16)
    ),
    "PNG | 16 bits, color": lambda: Shown(
        png_of(16, 2, (PIXELS.astype(np.uint16) * 257).astype(">u2"))
    ),
    "PNG | 16 bits, color, of which fewer are used": lambda: Shown(
        png_of(16, 2, (PIXELS.astype(int) * 4).astype(">u2")),
        Image.fromarray(PIXELS // 64),
    ),
    "PNG | 16 bits, gray": lambda: gray(
        encode(Image.fromarray(GRAY.astype(np.uint16) * 257), "PNG"), within=0
    ),
    "PNG | 16 bits, gray, of which 8, 10, 12 or 14 are used": lambda: gray(
        encode(Image.fromarray(GRAY.astype(np.uint16) * 16), "PNG")
    ),
    "PNG | large text, packed or not": lambda: Shown(
        png(
            png_chunk(b"tEXt", b"workflow\0" + BIG),
            png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(BIG)),
            png_chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(bytes(10**7))),
        )
    ),
    "PNG | metadata with a wrong checksum": lambda: Shown(
        png(bad(png_chunk(b"tEXt", b"Comment\0hello")), after=bad(png_chunk(b"tIME", bytes(7))))
    ),
    "PNG | metadata that is short or garbage": lambda: Shown(
        png(
            *(
                png_chunk(name, b"x")
                for name in (b"iCCP", b"pHYs", b"gAMA", b"cHRM", b"eXIf", b"zTXt")
            ),
            png_chunk(b"sRGB", b""),
            after=png_chunk(b"zTXt", b"x\0\0garbage"),
        )
    ),
    "PNG | color profile that cannot be unpacked": lambda: Shown(
        png(png_chunk(b"iCCP", b"bad\0\0notzlib"))
    ),
    "PNG | animated, whole or with a broken later frame": lambda: Shown(broken_frame()),
    "PNG | stray parts of an animation": lambda: Shown(
        png(png_chunk(b"fcTL", bytes(26)), after=png_chunk(b"fdAT", bytes(9)))
    ),
    "PNG | without its end, or with bytes behind it": lambda: Shown(png()[:-12]),
    "PNG | pixels are missing": lambda: png()[:-400],
    "PNG | made for iPhones (`CgBI`)": iphone,
    # JPEG
    "JPEG | baseline": lambda: lossy(jpeg()),
    "JPEG | progressive": lambda: lossy(jpeg(progressive=True)),
    "JPEG | with restart markers": lambda: lossy(jpeg(restart_marker_blocks=2)),
    "JPEG | gray": lambda: gray(jpeg(PICTURE.convert("L")), within=4),
    "JPEG | RGB inside": lambda: lossy(jpeg(keep_rgb=True)),
    "JPEG | CMYK, inverted as Adobe does": lambda: lossy(jpeg(PICTURE.convert("CMYK"))),
    "JPEG | YCCK, inverted as Adobe does": lambda: lossy(ycck()),
    "JPEG | arithmetic coding": lambda: by_libjpeg(bombs.jpeg_arithmetic(40, 1)),
    "JPEG | without its end": lambda: lossy(jpeg()[:-2]),
    "JPEG | progressive, without its end": lambda: lossy(jpeg(progressive=True)[:-2]),
    "JPEG | up to 4,096 bytes before its start": lambda: lossy(b"\r\n" + bytes(126) + jpeg()),
    "JPEG | before its start and without its end": lambda: lossy(b"\r\n" + jpeg()[:-2]),
    "JPEG | bytes behind its end (motion photos)": lambda: lossy(
        jpeg() + b"\0\0\0\x18ftypmp42" + random.Random(1).randbytes(9000)
    ),
    "JPEG | broken EXIF data": lambda: lossy(jpeg(exif=b"Exif\0\0garbage")),
    "JPEG | MPO (several pictures)": lambda: lossy(encode(PICTURE, "MPO", quality=95, **SEVERAL)),
    "JPEG | pixels are missing": lambda: jpeg()[:-200],
    "JPEG | scans are missing": lambda: jpeg(progressive=True)[
        : jpeg(progressive=True).rindex(b"\xff\xda")
    ],
    "JPEG | pixels or scans are missing, an end or zeros behind": lambda: Shown(
        jpeg()[:-300] + b"\xff\xd9", PICTURE, 12
    ),
    "JPEG | 12 bits": lambda: framed(0xC1, bits=12),
    "JPEG | lossless or hierarchical": lambda: framed(0xC3),
    "JPEG | two channels": lambda: bombs.jpeg_repeats(40, 1),
    # GIF and WebP
    "GIF | still or animated": lambda: Shown(encode(PICTURE, "GIF", **SEVERAL), PICTURE, 8),
    "GIF | without its end, or with a later frame cut short": lambda: Shown(
        encode(PICTURE, "GIF", **SEVERAL)[:-300], PICTURE, 8
    ),
    "GIF | pixels are missing": lambda: encode(PICTURE, "GIF")[:-300],
    "WebP | lossy, lossless, animated": lambda: lossy(webp(**SEVERAL)),
    "WebP | metadata broken or cut short, wrong length in its header": lambda: lossy(
        webp(exif=b"Exif\0\0" + bytes(200))[:-50]
    ),
    "WebP | a later frame is cut short": lambda: lossy(webp(**SEVERAL)[:-100]),
    "WebP | pixels are missing": lambda: webp()[:-100],
    # AVIF and HEIC
    "AVIF | still, sequence, transparent": lambda: lossy(
        encode(PICTURE, "AVIF", quality=95, **SEVERAL)
    ),
    "AVIF | 10 bits": lambda: Shown(AVIF_10, slope(), 3),
    "AVIF | 12 bits": lambda: Shown(AVIF_12, slope(), 3),
    "AVIF | pixels are missing": lambda: encode(PICTURE, "AVIF")[:-100],
    "HEIC | with the extra `heic`: 8, 10 or 12 bits": lambda: lossy(heic(deep=True)),
    "HEIC | several pictures": lambda: lossy(heic(more=True)),
    "HEIC | pixels are missing": lambda: heic()[:-100],
    # Others
    "BMP | 1, 4, 8, 24 or 32 bits, run lengths": lambda: Shown(
        encode(PICTURE.quantize(), "BMP"), PICTURE.quantize()
    ),
    "BMP | 16 bits": lambda: lossy(
        bmp(16, 3, rgb565(), masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F))
    ),
    "BMP | from the top down": lambda: Shown(bmp(24, 0, PIXELS[..., ::-1].tobytes(), height=-120)),
    "BMP | 2 bits, or a JPEG or PNG file inside": lambda: bmp(0, 4, jpeg()),
    "BMP | pixels are missing": lambda: encode(PICTURE, "BMP")[:-100],
    "ICO | PNG or bitmap inside": lambda: Shown(
        encode(PICTURE.crop((0, 0, 48, 48)), "ICO", sizes=[(16, 16), (48, 48)]),
        PICTURE.crop((0, 0, 48, 48)),
    ),
    "JPEG 2000 | JP2 and bare, 8 or 16 bits, transparent": lambda: Shown(
        encode(PICTURE, "JPEG2000", no_jp2=True)
    ),
    "JPEG 2000 | pixels are missing": lambda: encode(PICTURE, "JPEG2000")[:-200],
    "PPM | PBM, PGM, PPM, as text or not, 8 or 16 bits": lambda: Shown(
        b"P6\n160 120\n65535\n" + (PIXELS.astype(np.uint16) * 257).tobytes()
    ),
    "PPM | PFM, gray": lambda: gray(
        b"Pf\n160 120\n-1.0\n" + (GRAY[::-1] / 255).astype("<f4").tobytes()
    ),
    "QOI | all": lambda: Shown(encode(PICTURE, "QOI")),
    # TIFF
    "TIFF | 1 bit, CCITT fax G3 and G4": lambda: Shown(
        saved("1", compression="group4"), PICTURE.convert("1")
    ),
    "TIFF | 8 bits; gray, palette, RGB": lambda: Shown(
        made(PIXELS, photometric=2, rows=7, packing=5)
    ),
    "TIFF | big-endian": lambda: Shown(made(PIXELS, photometric=2, order=">")),
    "TIFF | BigTIFF": lambda: Shown(made(PIXELS, photometric=2, big=True)),
    "TIFF | tiles, channels apart": lambda: Shown(
        made(PIXELS, photometric=2, tile=(32, 48), planar=True, packing=8)
    ),
    "TIFF | LZW, Deflate, PackBits, LZMA, ZSTD": lambda: Shown(
        made(PIXELS, photometric=2, packing=50000, predictor=2)
    ),
    "TIFF | JPEG inside, RGB or YCbCr": lambda: lossy(
        saved("YCbCr", compression="jpeg", quality=95)
    ),
    "TIFF | JPEG inside, in the old way": lambda: lossy(old_jpeg()),
    "TIFF | YCbCr, not packed": lambda: Shown(
        made(np.asarray(PICTURE.convert("YCbCr")), photometric=6, planar=True, tags={530: [1, 1]}),
        PICTURE,
        2,
    ),
    "TIFF | CMYK": lambda: Shown(saved("CMYK")),
    "TIFF | CIE Lab, 8 or 16 bits": lambda: Shown(made(lab(16), photometric=8), PICTURE, 3),
    "TIFF | white is zero": lambda: gray(made(255 - GRAY, photometric=0, planar=True), within=0),
    "TIFF | 16 bits a channel": lambda: Shown(
        made(PIXELS.astype(np.uint16) * 257, photometric=2, packing=5, predictor=2)
    ),
    "TIFF | 16 bits, CMYK": lambda: Shown(
        made(np.asarray(PICTURE.convert("CMYK")).astype(np.uint16) * 257, photometric=5)
    ),
    "TIFF | 16 bits, of which 8, 10, 12 or 14 are used": lambda: gray(
        made(GRAY.astype(np.uint16) * 16)
    ),
    "TIFF | 10, 12 or 14 bits a channel": lambda: gray(made(GRAY.astype(np.uint16) * 4, bits=10)),
    "TIFF | 32 or 64 bits, integers": lambda: gray(made(GRAY.astype(np.uint32)), within=0),
    "TIFF | signed integers": lambda: gray(made(GRAY.astype(np.int16) * 4 - 500), stretched=True),
    "TIFF | values in a small part of their range": lambda: gray(
        made(GRAY.astype(np.uint16) * 4 + 29_000), stretched=True
    ),
    "TIFF | floats of 16, 32 or 64 bits": lambda: Shown(
        made((PIXELS / 255).astype(np.float16), photometric=2), PICTURE, 1
    ),
    "TIFF | floats, packed with a predictor": lambda: gray(
        made((GRAY / 255).astype(np.float32), packing=5, predictor=3, tile=(32, 48))
    ),
    "TIFF | no data, by GDAL's tag": lambda: without(77_777, tags={42113: b"77777\0"}),
    "TIFF | no data: NaN, infinity, -9999, -32768, the least float": lambda: without(-3.4028235e38),
    "TIFF | tiles that a sparse file leaves out": lambda: Shown(
        tiff(page(PIXELS, photometric=2, tags={273: [0], 279: [0]})), Image.new("RGB", PICTURE.size)
    ),
    "TIFF | two channels, five channels (multispectral)": lambda: Shown(
        made(np.dstack([PIXELS, OTHER]).astype(np.uint16) * 257, photometric=2, tags={338: [0] * 3})
    ),
    "TIFF | transparent, the color multiplied or not": lambda: Shown(
        made(with_alpha(PIXELS.astype(np.uint16) * 257, 65535), photometric=2, tags={338: [1]})
    ),
    "TIFF | turned": lambda: Shown(
        made(PIXELS.swapaxes(0, 1).astype(np.uint16) * 257, photometric=2, tags={274: [5]})
    ),
    "TIFF | several pages": lambda: Shown(
        tiff(page(PIXELS, photometric=2), page(np.asarray(OTHER), photometric=2))
    ),
    "TIFF | a smaller copy first": lambda: Shown(
        tiff(page(np.asarray(SMALL), photometric=2, tags={254: [1]}), page(PIXELS, photometric=2))
    ),
    "TIFF | a smaller copy first, the picture within it": lambda: Shown(
        tiff(
            page(
                np.asarray(SMALL),
                photometric=2,
                tags={254: [1]},
                subpages=[
                    page(PIXELS, photometric=2),
                    page(np.asarray(SMALL), photometric=2, tags={254: [1]}),
                ],
            ),
            order="<",
        )
    ),
    "TIFF | pixels are missing": lambda: (
        made(PIXELS.astype(np.uint16), photometric=2)[: -PIXELS.size]
        and tiff(page(PIXELS.astype(np.uint16), photometric=2, tags={273: [10**6]}))
    ),
    "TIFF | DNG and other raw files of cameras": lambda: tiff(
        page(
            np.asarray(SMALL),
            photometric=2,
            tags={254: [1]},
            subpages=[page(GRAY.astype(np.uint16), photometric=32803)],
        )
    ),
    "TIFF | JPEG 2000, LERC, JBIG or JPEG XL inside": lambda: made(GRAY, packing=34887),
    "TIFF | JPEG of 12 bits inside": lambda: made(GRAY.astype(np.uint16), bits=12, packing=7),
    "TIFF | complex numbers, floats of 24 bits, channels of several kinds": lambda: made(
        GRAY.astype(np.complex64)
    ),
    "TIFF | BigTIFF that is big-endian": lambda: made(PIXELS, photometric=2, order=">", big=True),
    "TIFF | LogLuv": lambda: made(GRAY.astype(np.int16), photometric=32844),
    # What is named
    "other | Photoshop, PDF, PostScript, SVG": lambda: b"8BPS\0\1" + bytes(60),
    "other | JPEG XL, JPEG XR, JPEG-LS": lambda: b"\xff\x0a" + bytes(60),
    "other | raw files that are no TIFF (CR3, RAF, ORF, RW2)": lambda: b"FUJIFILMCCD-RAW " + jpeg(),
    "other | DICOM, FITS, OpenEXR, Radiance HDR": lambda: bytes(128) + b"DICM" + bytes(60),
    "other | video": lambda: b"\0\0\0\x18ftypmp42" + bytes(60),
    "other | zip file, web page": lambda: b"<!DOCTYPE html><html></html>",
    "other | anything else": lambda: b"hello, this is no picture",
    "other | an empty file": lambda: b"",
}
"""Format and variant -> the file; bytes alone are refused."""
