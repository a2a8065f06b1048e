"""Reading: right frames at right times from files, streams and broken connections, and nothing else opened."""

from __future__ import annotations

import socket
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from rapidetr.cli.video_source import output_file
from rapidetr.core.errors import ConfigError, ImageError, ImageMissing
from rapidetr.pixels.decode import ImageLimits
from rapidetr.video import VideoReader, frames
from rapidetr.video.source import is_video, parse_source, public_name

CODEC_ERROR = 6.0  # mean gray levels that H.264 at this quality moves a pixel of these pictures; another frame differs by more


def test_frames_in_order_at_their_times(make_video, pictures):
    found = list(frames(make_video()))
    assert [f.index for f in found] == list(range(24))
    assert [f.time for f in found] == [Fraction(i, 12) for i in range(24)]
    for frame, picture in zip(found, pictures, strict=True):
        assert frame.pixels.flags.c_contiguous
        errors = [np.abs(frame.pixels[30:54].astype(int) - p[30:54]).mean() for p in pictures]
        assert np.argmin(errors) == frame.index
        assert np.abs(frame.pixels.astype(int) - picture).mean() < CODEC_ERROR


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".ts", ".avi"])
def test_containers(make_video, suffix):
    reader = VideoReader(make_video("red" + suffix))
    times = [f.time_s for f in reader]
    assert reader.rate == 12
    # Matroska counts milliseconds
    assert times == pytest.approx([i / 12 for i in range(24)], abs=1e-3)


def test_variable_rate(make_video):
    times = [0, 1, 2, 10, 11, 30]
    assert [f.time for f in frames(make_video(times=times))] == [Fraction(t, 12) for t in times]


def test_times_count_from_the_first_frame(make_video):
    assert [f.time for f in frames(make_video(times=[7, 8, 9]))] == [0, Fraction(1, 12), Fraction(2, 12)]


def test_stride_and_limit(make_video):
    reader = VideoReader(make_video(), stride=5, max_frames=3)
    assert reader.expected == 3
    assert [(f.index, f.time) for f in reader] == [(0, 0), (5, Fraction(5, 12)), (10, Fraction(10, 12))]
    assert VideoReader(make_video(), stride=5).expected == 5
    with pytest.raises(ConfigError, match="stride 0, max_frames None, retries 5; expected at least 1, 1 and 0"):
        VideoReader(make_video(), stride=0)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_as_opencv_turns_it(make_video, rotation):
    cv2 = pytest.importorskip("cv2")  # comes with trackers
    path = make_video(rotation=rotation)
    capture = cv2.VideoCapture(str(path))
    good, seen = capture.read()
    capture.release()
    assert good
    frame = next(iter(frames(path)))
    assert frame.pixels.shape == seen.shape
    # two conversions from YUV to RGB round differently
    assert np.abs(frame.pixels.astype(int) - seen[..., ::-1]).mean() < CODEC_ERROR


def test_what_cannot_be_opened(tmp_path, make_video):
    with pytest.raises(ImageMissing, match=r"no.mp4 is not there; check the path"):
        VideoReader("no.mp4")
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(ImageError, match=r"text.mp4 cannot be opened as a video \(Invalid data found when processing input\)"):
        VideoReader(tmp_path / "text.mp4")
    with pytest.raises(ImageError, match=r"red.mp4 is 96x128, more than ImageLimits.max_pixels=10000; raise the limit"):
        VideoReader(make_video(), limits=ImageLimits(max_pixels=10_000))
    with pytest.raises(ImageError, match=r"ftp://somebody.example/a.mp4: cannot be opened; expected a file, camera:0, or an address"):
        VideoReader("ftp://somebody.example/a.mp4")


def test_a_local_playlist_opens_no_address(tmp_path, make_video, serve):
    """The same playlist plays over HTTP, so it is the whitelist that refuses it here."""
    make_video("red.ts")
    address = serve()
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{address}/red.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(text)
    (tmp_path / "list.mp4").write_text(text)
    with pytest.raises(ImageError, match="cannot be opened as a video"):
        VideoReader(tmp_path / "list.mp4")
    assert len(list(frames(f"{address}/list.m3u8"))) == 24


def test_a_file_name_is_no_instruction(tmp_path, make_video, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video("red.mp4").rename("concat:red.mp4")
    assert len(list(frames("concat:red.mp4"))) == 24


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_truncated_file_gives_what_it_has_and_says_so(make_video, suffix):
    path = make_video("red" + suffix)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reader, found = VideoReader(path), []
    with pytest.raises(ImageError, match=rf"red{suffix}: broke off after \d+ frames \(the last .* seconds are missing\)") as caught:
        found.extend(reader)
    assert 2 < len(found) < 22
    assert f"after {len(found)} frames" in str(caught.value)


def test_damage_in_the_middle_is_passed_over(make_video):
    path = make_video()
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    begin, size = places[6]
    data[begin : begin + size] = bytes(size)
    path.write_bytes(data)
    reader = VideoReader(path)
    assert len(list(reader)) > 15
    assert reader.damaged >= 1
    assert reader.first_damage < 12


def test_http(make_video, serve):
    make_video()
    found = list(frames(f"{serve()}/red.mp4"))
    assert [f.time for f in found] == [Fraction(i, 12) for i in range(24)]


def flaky(quiet, failures):
    """A server that breaks off in the middle of the file so many times."""
    left = [failures]

    class Flaky(quiet):
        def copyfile(self, source, outputfile):
            data = source.read()
            if left[0]:
                left[0] -= 1
                data = data[: len(data) * 6 // 10]
            outputfile.write(data)

    return Flaky


def test_a_broken_http_video_goes_on_where_it_broke_off(make_video, serve, pictures):
    make_video("red.mkv")
    waits = []
    reader = VideoReader(f"{serve(flaky(serve.quiet, 2))}/red.mkv", sleep=waits.append)
    found = list(reader)
    assert [f.index for f in found] == list(range(24))
    assert [f.time_s for f in found] == pytest.approx([i / 12 for i in range(24)], abs=1e-3)
    assert reader.reconnects == 2 - (len(waits) < 2)
    assert waits[0] == 0.5
    for frame in found:
        assert np.argmin([np.abs(frame.pixels[30:54].astype(int) - p[30:54]).mean() for p in pictures]) == frame.index


def test_a_connection_that_stays_broken_is_given_up(make_video, serve):
    make_video("red.mkv")
    waits = []
    reader, found = VideoReader(f"{serve(flaky(serve.quiet, 99))}/red.mkv", sleep=waits.append, retries=4), []
    with pytest.raises(ImageError, match=r"red.mkv: broke off after \d+ frames and 4 tries to reconnect \(.*\); what came before is good"):
        found.extend(reader)
    assert waits == [0.5, 1, 2, 4]
    assert 0 < len(found) < 24


def test_a_live_stream_that_ends_is_connected_again_and_time_goes_on(make_video, serve):
    make_video("red.ts")
    waits = []
    reader = VideoReader(f"{serve()}/red.ts", stream=True, sleep=waits.append, max_frames=60)
    times = [f.time for f in reader]
    assert reader.expected == 60
    assert times == [Fraction(i, 12) for i in range(60)]
    assert reader.reconnects == 2
    assert waits == [0.5, 0.5]


PUSH = """
import sys, time, av
address, path = sys.argv[1:]
source = av.open(path)
for _ in range(200):  # until the other side listens
    try:
        target = av.open(address, "w", format="rtsp", options={"rtsp_transport": "tcp"})
        copy = target.add_stream_from_template(source.streams.video[0])
        target.start_encoding()
        break
    except OSError:
        time.sleep(0.05)
for packet in source.demux(video=0):
    if packet.dts is not None:
        packet.stream = copy
        target.mux(packet)
target.close()
"""


def test_rtsp_pushed_over_loopback(make_video):
    """The decoder listens, another process pushes with FFmpeg's RTSP encoder: the protocol is real, the camera is not."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"rtsp://127.0.0.1:{probe.getsockname()[1]}/live"
    pusher = subprocess.Popen([sys.executable, "-c", PUSH, address, str(make_video("red.ts"))])
    try:
        reader = VideoReader(address, options={"rtsp_flags": "listen", "listen_timeout": "20"}, retries=0, max_frames=20)
        assert reader.source.live
        times = [f.time_s for f in reader]
        assert times[0] == 0 < times[1]  # the sender's clock is known from its first report on, after the first frame
        # RTP counts 1/90000 s
        assert np.diff(times[1:]) == pytest.approx(np.full(18, 1 / 12), abs=1e-3)
    finally:
        pusher.kill()
        pusher.wait()


def test_what_is_a_video(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    videos = ["a.mp4", "A.MKV", "camera:0", "rtsp://x.example/1", "https://x.example/a.mp4?x=1", "http://x.example/live.m3u8"]
    assert all(is_video(text) for text in videos)
    others = ["a.jpg", "photos/", str(tmp_path / "folder.mp4"), "https://x.example/stream", "https://x.example/a.png?b=c.mp4"]
    assert not any(is_video(text) for text in others)
    assert is_video("https://x.example/stream", stream=True)


def test_sources():
    source = parse_source("rtsp://me:secret@camera.example/1")
    assert source.name == "rtsp://camera.example/1"  # what messages and files show
    assert source.address == "rtsp://me:secret@camera.example/1"
    assert "file" not in source.options["protocol_whitelist"]
    assert "file" not in parse_source("https://x.example/a.mp4").options["protocol_whitelist"].split(",")
    assert parse_source("camera:0").live


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://admin:hunter2@192.168.1.5", "rtsp://192.168.1.5"),
        ("rtsp://admin:p@ss@camera/x", "rtsp://camera/x"),
        ("rtsp://admin:p/ss@camera/x", "rtsp://camera/x"),
        ("https://x.example/a.m3u8?token=SECRET#t", "https://x.example/a.m3u8"),
        ("b@c?.mp4", "b@c?.mp4"),
    ],
)
def test_secrets_of_an_address_are_not_shown(address, shown):
    assert public_name(address) == shown
    stem = {"rtsp://192.168.1.5": "192.168.1.5", "rtsp://camera/x": "x", "https://x.example/a.m3u8": "a"}.get(shown)
    assert stem is None or output_file(None, address) == Path("results") / f"{stem}.mp4"
