from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.duplicate_traps import saved, scene
from lookalike.errors import (
    ClientGoneError,
    DecodeTimeoutError,
    ImageTooLargeError,
    InvalidImageError,
    NotAnImageError,
    OutOfMemoryError,
    QueueFullError,
    TooManyPixelsError,
    UnreadableImageError,
)
from lookalike.media import decoder as module
from lookalike.media.comparison import Sameness, same_picture
from lookalike.media.decode import ImageLimits, decode_image
from lookalike.media.decode_process import SLOW_NICE, DecodeProcess, TakesLongError
from lookalike.media.decoder import ImageDecoder, Lane
from lookalike.media.jpeg import is_plain_jpeg
from lookalike.models.base import resize_image
from lookalike.progress import Caller, caller
from lookalike.records import Preprocess
from tests.media.bombs import (
    gif_comments,
    jpeg_arithmetic,
    jpeg_repeats,
    jpeg_scans,
    png,
    png_chunk,
    qoi_literals,
)
from tests.media.test_decode import LOSSLESS, LOSSY, exif, make
from tests.models.pictures import draw
from tests.waiting import PATIENCE_S, wait_for

LIMITS = ImageLimits()
SHARED = ImageDecoder()
SMALL = make("PNG")


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


# What comes back


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
def test_a_process_decodes_as_this_one_does(kind):
    data = make(kind)
    ours = decode_image(data, limits=LIMITS, decode_size=64, thumbnail=True)
    theirs = SHARED.decode(data, decode_size=64, thumbnail=True)
    assert np.array_equal(np.asarray(ours.image), np.asarray(theirs.image))
    assert (ours.width, ours.height, ours.media_type) == (
        theirs.width,
        theirs.height,
        theirs.media_type,
    )
    assert ours.thumbnail == theirs.thumbnail


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [(640, 480), (300, 700), (100, 90), (64, 64), (900, 20), (20, 2)])
def test_reducing_first_changes_nothing_that_is_prepared(resize, size):
    preprocess = Preprocess(input_size=64, resize=resize, interpolation="bicubic")
    data = make("PNG", draw(3, size))
    whole = SHARED.decode(data, decode_size=64).image
    reduced = SHARED.decode(data, decode_size=64, preprocess=preprocess).image
    assert whole.size == size
    assert reduced.width * reduced.height <= size[0] * size[1]
    assert np.array_equal(resize_image(whole, preprocess), resize_image(reduced, preprocess))


def test_a_long_strip_is_not_enlarged():
    preprocess = Preprocess(input_size=64, resize="crop")
    image = SHARED.decode(png(100_000, 1), decode_size=64, preprocess=preprocess).image
    assert image.size == (100_000, 1)


def test_a_turned_picture_has_its_size_upright():
    decoded = SHARED.decode(make("JPEG", exif=exif(6)), decode_size=64, thumbnail=True)
    assert (decoded.width, decoded.height) == (120, 160)
    assert decoded.image.size == (120, 160)


def test_sources_are_equal_and_stay_open(tmp_path):
    (tmp_path / "a.png").write_bytes(SMALL)
    stream = BytesIO(SMALL)
    stream.seek(17)
    with (tmp_path / "a.png").open("rb") as file:
        file.read(1000)
        for source in (SMALL, stream, file):
            pixels = np.asarray(SHARED.decode(source, decode_size=64).image)
            assert np.array_equal(pixels, np.asarray(draw(1)))
        assert not file.closed
        file.seek(0)
        assert file.read() == SMALL


@pytest.mark.parametrize(
    ("data", "limits", "kind"),
    [
        (b"no picture", LIMITS, NotAnImageError),
        (b"", LIMITS, NotAnImageError),
        (SMALL[:2000], LIMITS, UnreadableImageError),
        (SMALL, ImageLimits(max_pixels=160 * 120 - 1), TooManyPixelsError),
        (SMALL, ImageLimits(max_bytes=1000), ImageTooLargeError),
    ],
)
def test_errors_are_those_of_decoding_here(data, limits, kind):
    with pytest.raises(kind) as ours:
        decode_image(data, limits=limits, decode_size=64)
    for _ in range(3):  # each gives its place back
        with pytest.raises(kind) as theirs:
            ImageDecoder(limits, slots=1).decode(data, decode_size=64)
    assert str(theirs.value) == str(ours.value)
    assert SHARED.decode(SMALL, decode_size=64).width == 160


# What takes long


def test_a_jpeg_of_too_many_scans_is_refused_at_once():
    with pytest.raises(DecodeTimeoutError, match="128 scans"):
        decode_image(jpeg_scans(64, 129), limits=LIMITS, decode_size=64)
    assert decode_image(jpeg_scans(64, 120), limits=LIMITS, decode_size=64).width == 64
    scans, after = jpeg_scans(64, 200), b"\xff\x01"  # a marker that brings no length
    second = scans.index(b"\xff\xda") + 2
    hidden = scans[:second] + scans[second:].replace(b"\xff\xda", after + b"\xff\xda")
    with pytest.raises(DecodeTimeoutError):
        decode_image(hidden, limits=LIMITS, decode_size=64)


def test_scans_inside_of_metadata_do_not_count():
    data = make("JPEG", comment=b"\xff\xda" * 1000)
    assert decode_image(data, limits=LIMITS, decode_size=64).width == 160


@pytest.mark.parametrize("bomb", [gif_comments(4_000_000), qoi_literals(2)])
def test_a_picture_gets_so_much_time_and_no_more(bomb):
    decoder = ImageDecoder(ImageLimits(max_seconds=0.7), slots=1)
    with pytest.raises(DecodeTimeoutError, match=r"0\.7 s"):
        decoder.decode(bomb, decode_size=64)
    assert decoder.decode(SMALL, decode_size=64).width == 160


def test_what_is_slower_than_its_header_says_is_decoded_among_the_slow():
    late = png(8, 8, before=png_chunk(b"quIz", b"") * 200_000)
    assert SHARED.decode(late, decode_size=64).image.size == (8, 8)


def test_slow_pictures_leave_room_for_quick_ones():
    decoder = ImageDecoder(ImageLimits(max_seconds=60), slots=1)
    gone = Caller()

    def slow() -> None:
        caller.set(gone)
        with pytest.raises(ClientGoneError):
            decoder.decode(qoi_literals(16), decode_size=64)

    with ThreadPoolExecutor(4) as pool:
        bombs = [pool.submit(slow) for _ in range(4)]
        for _ in range(20):
            assert decoder.decode(SMALL, decode_size=64).width == 160
        assert not any(bomb.done() for bomb in bombs)
        gone.leave()  # ends the one that is decoded, and takes the others out of the line
        for bomb in bombs:
            bomb.result(timeout=PATIENCE_S)
    assert decoder.decode(qoi_literals(0.2), decode_size=64).width == 447


def test_plain_jpegs_need_no_process(monkeypatch):
    def refuse(**_: object) -> None:
        raise AssertionError("a process was asked for")

    monkeypatch.setattr(module._pool, "process", refuse)
    for options in ({}, {"exif": exif(6)}, {"comment": b"a comment"}, {"restart_marker_blocks": 1}):
        for picture in (draw(1), draw(1).convert("L"), draw(1).convert("CMYK")):
            data = make("JPEG", picture, **options)
            ours = decode_image(data, limits=LIMITS, decode_size=64, thumbnail=True)
            theirs = SHARED.decode(data, decode_size=64, thumbnail=True)
            assert np.array_equal(np.asarray(ours.image), np.asarray(theirs.image))
            assert ours.thumbnail == theirs.thumbnail


@pytest.mark.parametrize(
    "data",
    [
        make("PNG"),
        make("JPEG", progressive=True),
        make("JPEG")[:200],
        make("JPEG", comment=b"c" * 60_000, icc_profile=b"i" * 200_000),
        make("JPEG") + bytes(8_000_000),
        make("JPEG", draw(1).resize((5000, 3300))),
        make("JPEG").replace(b"\xff\xda", b"\xff\xff\xda", 1),
        jpeg_repeats(64, 4),
        jpeg_arithmetic(64, 3),
        jpeg_scans(64, 3),
        b"\xff\xd8" + b"\xff\xfe\0\2" * 200 + make("JPEG")[2:],
        b"\xff\xd8" + b"\xff\xfe\0\0" + make("JPEG")[2:],
        b"\xff\xd8",
        b"",
    ],
)
def test_other_files_are_no_plain_jpegs(data):
    assert is_plain_jpeg(make("JPEG"))
    assert not is_plain_jpeg(data)


# Places


def test_places_are_bounded_and_given_back():
    lane, running, most, lock = Lane(2), 0, 0, threading.Lock()

    def work(_):
        nonlocal running, most
        with lane.place():
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.005)
            with lock:
                running -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    assert most == 2


def test_waiting_is_in_turn_and_urgent_ones_go_first():
    lane, order = Lane(1), []

    def work(name: str, **options: Any) -> None:
        with lane.place(**options):
            order.append(name)

    with lane.place():
        threads = []
        for name, options in (("a", {}), ("b", {}), ("urgent", {"urgent_s": 10.0})):
            threads.append(threading.Thread(target=work, args=(name,), kwargs=options))
            threads[-1].start()
            wait_for(lambda: len(lane._waiting) == len(threads))
    for thread in threads:
        thread.join()
    assert order == ["urgent", "a", "b"]


def test_waiting_is_bounded_in_time_and_number():
    lane = Lane(1, most_waiting=1, patience_s=0.2)
    with lane.place(), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: lane.place().__enter__())
        wait_for(lambda: len(lane._waiting) == 1)
        with pytest.raises(QueueFullError, match="take long"), lane.place():
            raise AssertionError
        with pytest.raises(QueueFullError, match=r"0\.2 s"):
            waiting.result(timeout=PATIENCE_S)
    with lane.place():
        pass


def test_bulk_work_waits_for_as_long_as_it_takes():
    lane = Lane(1, most_waiting=1, patience_s=0.1)
    with lane.place(), ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(lambda: lane.place(bulk=True).__enter__()) for _ in range(3)]
        wait_for(lambda: len(lane._waiting) == 3)
        with pytest.raises(QueueFullError, match="take long"), lane.place():
            raise AssertionError
        time.sleep(0.2)
        assert not any(one.done() for one in waiting)
        lane._leave()
        lane._leave()
        for one in waiting[:2]:
            one.result(timeout=PATIENCE_S)
    waiting[2].result(timeout=PATIENCE_S)


def test_who_leaves_gives_the_place_back():
    lane = Lane(1)

    def wait(leaving: Caller) -> None:
        caller.set(leaving)
        with lane.place():
            raise AssertionError

    with lane.place(), ThreadPoolExecutor(1) as pool:
        leaving = Caller()
        waiting = pool.submit(wait, leaving)
        wait_for(lambda: len(lane._waiting) == 1)
        leaving.leave()
        with pytest.raises(ClientGoneError):
            waiting.result(timeout=PATIENCE_S)
        assert not lane._waiting
    with lane.place():
        pass


def test_nothing_is_done_to_a_block_that_has_ended():
    leaving, began, may_end, order = Caller(), threading.Event(), threading.Event(), []

    def first() -> None:
        began.set()
        assert may_end.wait(PATIENCE_S)

    thread = threading.Thread(target=leaving.leave)

    def call() -> None:
        with leaving.on_leave(first), leaving.on_leave(lambda: order.append("act")):
            thread.start()
            assert began.wait(PATIENCE_S)
            threading.Timer(0.1, may_end.set).start()

    with pytest.raises(ClientGoneError):
        call()
    order.append("ended")
    thread.join()
    assert order == ["act", "ended"]


# Processes


@pytest.fixture
def process():
    one = DecodeProcess(slow=True)
    yield one
    one.close()


def decoding(process: DecodeProcess, data: bytes) -> None:
    options = {"decode_size": 64, "preprocess": None, "thumbnail": False}
    process.decode(data, limits=LIMITS, seconds=30, expected_s=1e9, **options)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (signal.SIGSEGV, UnreadableImageError),
        (signal.SIGABRT, UnreadableImageError),
        (signal.SIGKILL, OutOfMemoryError),
    ],
)
def test_a_process_that_ends_costs_its_picture_alone(process, number, kind):
    with ThreadPoolExecutor(1) as pool:
        picture = pool.submit(decoding, process, qoi_literals(8))
        time.sleep(0.5)
        os.kill(process.pid, number)
        with pytest.raises(kind):
            picture.result(timeout=PATIENCE_S)
    assert not process.alive
    assert SHARED.decode(SMALL, decode_size=64).width == 160


def compared(one: bytes, other: bytes, decoder: ImageDecoder = SHARED) -> Sameness:
    return Sameness(decoder.compare(BytesIO(one), BytesIO(other)))


def test_a_process_compares_as_this_one_does():
    image = scene(5, (240, 180))
    plain, again = saved(image, "PNG"), saved(image, "JPEG", quality=80)
    other = saved(scene(6, (240, 180)), "PNG")
    for pair, expected in (
        ((plain, again), Sameness.FIRST),
        ((again, plain), Sameness.SECOND),
        ((plain, saved(image, "BMP")), Sameness.YES),
        ((plain, other), Sameness.NO),
    ):
        assert compared(*pair) is expected
        assert same_picture(*map(BytesIO, pair), limits=LIMITS) is expected


def test_large_pictures_are_compared():
    sheet = Image.new("L", (5000, 4000), 90)
    assert compared(saved(sheet, "PNG"), saved(sheet, "TIFF", compression="tiff_lzw"))
    low = ImageDecoder(ImageLimits(max_pixels=19_999_999))
    with pytest.raises(TooManyPixelsError):
        compared(saved(sheet, "PNG"), saved(sheet, "GIF"), low)


@pytest.mark.parametrize("data", [SMALL[:2000], b"no picture", b""])
def test_what_cannot_be_decoded_cannot_be_compared(data):
    for pair in ((SMALL, data), (data, SMALL)):
        with pytest.raises(InvalidImageError):
            compared(*pair)
    assert compared(SMALL, SMALL) is Sameness.YES


def test_comparing_ends_in_time():
    decoder = ImageDecoder(ImageLimits(max_seconds=0.1))
    slow = scene(5, (1600, 1200))
    pair = saved(slow, "JPEG", quality=95), saved(slow, "JPEG", quality=90)
    with pytest.raises(DecodeTimeoutError, match=r"0\.6 s"):
        compared(*pair, decoder)
    assert compared(SMALL, SMALL, decoder) is Sameness.YES


def test_who_leaves_ends_the_comparison():
    leaving, slow = Caller(), qoi_literals(8)

    def compare() -> None:
        caller.set(leaving)
        compared(slow, slow + b" ", ImageDecoder(ImageLimits(max_seconds=1000, max_bytes=10**9)))

    with ThreadPoolExecutor(1) as pool:
        comparing = pool.submit(compare)
        wait_for(lambda: leaving._acts)
        leaving.leave()
        with pytest.raises(ClientGoneError):
            comparing.result(timeout=PATIENCE_S)


def test_a_process_that_ends_costs_its_comparison_alone(process):
    slow = qoi_literals(8)
    with ThreadPoolExecutor(1) as pool:
        comparing = pool.submit(
            process.compare, slow, slow + b" ", limits=ImageLimits(max_seconds=1000), seconds=1000
        )
        os.kill(process.pid, signal.SIGSEGV)
        with pytest.raises(UnreadableImageError):
            comparing.result(timeout=PATIENCE_S)
    assert compared(SMALL, SMALL) is Sameness.YES


def test_a_codec_that_does_not_come_back_is_ended(process):
    options = {"decode_size": 64, "preprocess": None, "thumbnail": False}
    with pytest.raises(TakesLongError):
        process.decode(
            jpeg_arithmetic(8000, 99), limits=LIMITS, seconds=0.2, expected_s=1e9, **options
        )
    assert not process.alive


def test_a_fork_starts_processes_of_its_own():
    assert SHARED.decode(SMALL, decode_size=64).width == 160
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from lookalike.media.decoder import ImageDecoder\n"
        "decoder, data = ImageDecoder(), Path(sys.argv[1]).read_bytes()\n"
        "widths = [decoder.decode(data, decode_size=64).width]\n"
        "child = os.fork()\n"
        "widths += [decoder.decode(data, decode_size=64).width for _ in range(9)]\n"
        "last = decoder.decode(data, decode_size=64).width\n"
        "if child: print(os.waitpid(child, 0)[1], set(widths), last)\n"
    )
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        file.write(SMALL)
        file.flush()
        ran = subprocess.run(
            [sys.executable, "-c", code, file.name],
            check=False,
            capture_output=True,
            text=True,
        )
    assert (ran.stdout, ran.stderr) == ("0 {160} 160\n", "")


def test_a_process_is_light(process):
    decoding(process, SMALL)
    mapped = Path(f"/proc/{process.pid}/maps").read_text()
    assert not any(name in mapped for name in ("torch", "faiss", "numpy"))
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(19, os.nice(0) + SLOW_NICE)


FULL = """
import os, resource
from lookalike.errors import UnavailableError
from lookalike.media.decode_process import DecodeProcess

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
free = []
while len(free) < 64:
    try:
        free.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        break
for left in range(6):
    for _ in range(3):
        try:
            DecodeProcess(slow=False).close()
        except UnavailableError as exc:
            print("full", exc)
    os.close(free.pop())
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(left + 1)]
    for one in held:
        os.close(one)
"""


def test_a_process_that_cannot_be_started_leaves_no_descriptor_open():
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("full No process") >= 9


def test_an_idle_process_that_was_killed_is_replaced():
    decoder = ImageDecoder(slots=1)
    with ExitStack() as stack:
        process = stack.enter_context(module._pool.process(slow=False))
        process._process.kill()
        process._process.wait()
    assert decoder.decode(SMALL, decode_size=64).width == 160


def test_an_urgent_picture_does_not_wait_for_a_process_that_hangs():
    decoder = ImageDecoder(slots=1)
    decoder.decode(SMALL, decode_size=64)
    idle = [process for process in module._pool._idle if not process.slow]
    for process in idle:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        for _ in idle:
            with pytest.raises(QueueFullError, match="too busy"):
                decoder.decode(SMALL, decode_size=64, urgent_s=0.3)
    finally:
        for process in idle:
            process.give_up()
    assert decoder.decode(SMALL, decode_size=64).width == 160


SCRIPT = """
import sys, threading
from contextlib import suppress
from pathlib import Path
from lookalike.errors import LookalikeError
from lookalike.media.decoder import ImageDecoder, _pool
from tests.media.bombs import qoi_literals

decoder = ImageDecoder()
print(decoder.decode(Path(sys.argv[1]).read_bytes(), decode_size=64).width, flush=True)
if len(sys.argv) > 2:
    def decode() -> None:
        with suppress(LookalikeError):  # it is given up at the end
            decoder.decode(qoi_literals(16), decode_size=64)
    threading.Thread(target=decode, daemon=True).start()
    while len(_pool._processes) < 2:
        threading.Event().wait(0.01)
    print(*(process.pid for process in _pool._processes), flush=True)
    threading.Event().wait(60)
"""


def script(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """A script that does not ask whether it is the main module."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "a.png").write_bytes(SMALL)
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-W", "error", tmp_path / "script.py", tmp_path / "a.png", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        env={**os.environ, "PYTHONPATH": f"{root / 'app'}{os.pathsep}{root}"},
    )


def test_a_plain_script_decodes_and_ends_quietly(tmp_path):
    with script(tmp_path) as one:
        out, err = one.communicate(timeout=PATIENCE_S)
    assert (out, err, one.returncode) == ("160\n", "", 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(tmp_path, number):
    with script(tmp_path, "and stay") as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "160\n"
        pids = [int(pid) for pid in one.stdout.readline().split()]
        assert len(pids) == 2
        os.killpg(one.pid, number)
        _, err = one.communicate(timeout=PATIENCE_S)
        wait_for(lambda: all(ended(pid) for pid in pids))
    assert "decode_process" not in err
    assert "resource_tracker" not in err
