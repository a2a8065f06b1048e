"""The pipeline: stages that overlap, die, drop and stop; tracks; what is written."""

from __future__ import annotations

import json
import threading
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from conftest import BLOCK, LABELS, STEP, RedFinder
from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError, ImageError
from rapidetr.draw.colors import class_color
from rapidetr.video import TrackedFrame, VideoReader, frames, predict_video, track
from rapidetr.video.ahead import Ahead
from rapidetr.video.paint import Painter
from rapidetr.video.tracks import Tracks

LIMIT_S = 20  # for waits that end at once where the code is right


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    left = [t.name for t in threading.enumerate() if t.name == "rapidetr-video"]
    assert not left


def test_the_moving_thing_is_found_and_keeps_one_track(make_video, finder):
    found = list(track(finder, make_video()))
    assert [f.index for f in found] == list(range(24))
    for frame in found:
        left = 4 + STEP * frame.index
        # chroma has half the resolution and is compressed: edges may move by two pixels
        assert frame.detections.boxes_xyxy_px[0] == pytest.approx([left, 30, left + BLOCK, 30 + BLOCK], abs=2)
    numbers = [f.track_ids.tolist() for f in found]
    assert numbers[0] == [-1]  # a thing gets its number when it is seen a second time
    assert numbers[1][0] >= 0
    assert numbers[1:] == [numbers[1]] * 23
    assert found[0].tracks_seen == {}
    assert found[-1].tracks_seen == {"car": 1}


def test_without_tracks_and_in_batches(make_video, finder):
    found = list(track(finder, make_video(), ids=False, batch_size=5))
    assert finder.batches == [5, 5, 5, 5, 4]
    assert [f.index for f in found] == list(range(24))
    assert {i for f in found for i in f.track_ids.tolist()} == {-1}
    with pytest.raises(ConfigError, match="batch_size is 0; expected at least 1"):
        track(finder, make_video(), batch_size=0)


def test_two_things_that_change_places_in_the_list_keep_their_tracks():
    tracks = Tracks(10)
    ids = []
    for i in range(6):
        boxes = np.array([[10 + i, 10, 30 + i, 30], [60, 60 + i, 90, 90 + i]], np.float32)
        order = [0, 1] if i % 2 else [1, 0]
        found = Detections(boxes[order], np.array([0.9, 0.8], np.float32), np.array(order), LABELS, (100, 100))
        one = tracks.follow(found, i / 10)
        ids.append([int(one[order.index(k)]) for k in (0, 1)])
    assert ids[1:] == [ids[1]] * 5
    assert len(set(ids[1])) == 2
    assert tracks.seen == Counter(car=1, bus=1)
    assert tracks.follow(Detections.empty(LABELS, (100, 100)), 0.7).tolist() == []


def test_stages_overlap(make_video):
    """The detector holds frame 3 until frame 4 has been decoded, and the consumer frame 0 until the detector has frame 1."""
    decoded, looked = [threading.Event() for _ in range(24)], [threading.Event() for _ in range(24)]

    class Waits(RedFinder):
        def predict(self, pictures, threshold=0.5, **options):
            i = len(self.batches)
            assert i == 23 or decoded[i + 1].wait(LIMIT_S)
            looked[i].set()
            return super().predict(pictures)

    reader = VideoReader(make_video())
    timed = reader._timed

    def watched():
        for one in timed():
            decoded[one[0]].set()
            yield one

    reader._timed = watched
    for frame in track(Waits(), reader):
        assert frame.index == 23 or looked[frame.index + 1].wait(LIMIT_S)


def test_no_more_than_a_few_frames_wait(make_video):
    """While the consumer holds frame 0, decoding stops after what the queues may hold."""
    reader = VideoReader(make_video())
    found = track(RedFinder(), reader)
    next(found)
    # given out 1 + ready 2 + in the detector's hand 1 + decoded 2 + in the decoder's hand 1
    threading.Event().wait(0.2)  # long enough to decode all 24, if nothing held it back
    assert reader.count <= 7
    found.close()


def test_drop_keeps_the_newest_frame_and_counts_the_others(make_video):
    """The detector is held at its first frame until the whole video has been decoded."""
    ended = threading.Event()

    class Held(RedFinder):
        def predict(self, pictures, threshold=0.5, **options):
            assert ended.wait(LIMIT_S)
            return super().predict(pictures)

    reader = VideoReader(make_video())
    reader.close_, reader.close = reader.close, lambda: (reader.close_(), ended.set())
    found = list(track(Held(), reader, drop=True))
    assert found[-1].index == 23
    assert len(found) <= 2
    assert found[-1].dropped == 24 - len(found)


def test_a_dying_detector_ends_everything_and_keeps_what_was_done(make_video, tmp_path):
    class Dies(RedFinder):
        def predict(self, pictures, threshold=0.5, **options):
            if len(self.batches) == 10:
                raise RuntimeError("out of memory")
            return super().predict(pictures)

    with pytest.raises(RuntimeError, match="out of memory"):
        predict_video(Dies(), make_video(), tmp_path / "out.mp4", json_lines=tmp_path / "out.jsonl")
    assert len(list(frames(tmp_path / "out.mp4"))) == 10
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 10


def test_a_dying_consumer_ends_the_threads(make_video, finder):
    found = track(finder, make_video())
    next(found)
    found.close()  # the fixture looks for threads


def test_a_failing_encoder_leaves_no_file(make_video, finder, tmp_path, monkeypatch):
    from rapidetr.video import writer

    def fail(self, picture, time):
        raise OSError("No space left on device")

    monkeypatch.setattr(writer.VideoWriter, "_encode", fail)
    with pytest.raises(OSError, match="No space left on device"):
        predict_video(finder, make_video(), tmp_path / "out" / "out.mp4")
    assert list((tmp_path / "out").iterdir()) == []


def test_interrupted(make_video, finder, tmp_path):
    def stop(frame):
        if frame.index == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="interrupted after 7 frames; what was done is kept"):
        predict_video(finder, make_video(), tmp_path / "out.mp4", json_lines=tmp_path / "out.jsonl", on_frame=stop)
    assert len(list(frames(tmp_path / "out.mp4"))) == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "out.mp4", "red.mp4"]


def test_a_source_that_breaks_off(make_video, finder, tmp_path):
    path = make_video()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = predict_video(finder, path, tmp_path / "out.mp4")
    assert result.problem.startswith(f"{path}: broke off after {result.frames} frames (the last")
    assert len(list(frames(tmp_path / "out.mp4"))) == result.frames > 2


def test_a_video_without_a_frame(tmp_path, make_video, finder, monkeypatch):
    monkeypatch.setattr(VideoReader, "_timed", lambda self: iter(()))
    with pytest.raises(ImageError, match=r"red.mp4 holds no frames; expected a video"):
        predict_video(finder, make_video(), tmp_path / "out.mp4", json_lines=tmp_path / "out.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["red.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm"])
def test_the_painted_video_keeps_times_and_rate(make_video, finder, tmp_path, suffix):
    times = [0, 1, 2, 10, 11, 14]
    result = predict_video(finder, make_video(times=times), tmp_path / f"out{suffix}")
    assert (result.frames, result.detections, result.tracks, result.problem, result.notes) == (6, 6, {"car": 1}, None, ())
    # Matroska and WebM count milliseconds
    assert [f.time_s for f in frames(tmp_path / f"out{suffix}")] == pytest.approx([t / 12 for t in times], abs=1e-3)
    predict_video(finder, make_video(), tmp_path / "even.mp4")
    with av.open(str(tmp_path / "even.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.frames, stream.time_base) == (12, 24, Fraction(1, 12288))


def test_colors_and_painting(make_video, finder, tmp_path, pictures):
    predict_video(finder, make_video(), tmp_path / "out.mp4", ids=False)
    last = list(frames(tmp_path / "out.mp4"))[-1].pixels
    left = 4 + STEP * 23
    # inside the box nothing is painted; compressed twice, converted twice
    assert last[36:48, left + 6 : left + 18].reshape(-1, 3).mean(0) == pytest.approx([230, 20, 20], abs=8)


def painted(ids: list[int], seen: dict[str, int], at: Fraction = Fraction(0), left: int = 20) -> TrackedFrame:
    box = np.array([[left, 40, left + 40, 80]], np.float32)
    found = Detections(box, np.array([0.9], np.float32), np.array([0]), LABELS, (160, 200))
    return TrackedFrame(0, at, np.full((160, 200, 3), 255, np.uint8), found, np.array(ids), seen)


def test_paint_adds_number_trail_and_counts_to_the_boxes():
    painter, color = Painter(), class_color(0)
    first = painted([3], {"car": 1})
    plain = np.asarray(first.detections.draw(first.pixels))
    one = np.asarray(painter.paint(first))
    assert tuple(one[60, 20]) == color  # the box
    assert (one[53:67, 30:50] == color).all(-1).sum() > 50  # the badge in its middle
    assert (plain[53:67, 30:50] == 255).all()
    assert one[-8:, :40].mean() < 140  # counts, bottom left
    assert (one[-8:, -40:] == 255).all()
    later = np.asarray(painter.paint(painted([3], {"car": 1}, Fraction(1), left=120)))
    assert (later[60, 70:100] == color).all()  # the trail leads from the old middle at x = 40 to the new one at x = 140
    gone = np.asarray(painter.paint(painted([3], {"car": 1}, Fraction(4), left=120)))
    assert (gone[60, 70:100] == 255).all()
    assert (first.pixels == 255).all()  # what the user gets stays as it was


def test_paint_without_tracks_counts_what_is_in_sight():
    frame = painted([-1], {})
    one, plain = np.asarray(Painter().paint(frame)), np.asarray(frame.detections.draw(frame.pixels))
    assert (one[:140] == plain[:140]).all()
    assert (one[-8:, :40] != 255).any()


def test_odd_sides_are_padded_and_said(make_video, finder, tmp_path, pictures):
    shown = [p[:95, :127] for p in pictures[:8]]
    result = predict_video(finder, make_video(shown=shown), tmp_path / "out.mp4")
    assert result.notes == ("pictures of 95x127 are written as 96x128: the encoder needs even sides",)
    assert next(iter(frames(tmp_path / "out.mp4"))).pixels.shape == (96, 128, 3)


def test_a_rotated_video_is_written_upright(make_video, finder, tmp_path):
    predict_video(finder, make_video(rotation=90), tmp_path / "out.mp4")
    out = list(frames(tmp_path / "out.mp4"))
    assert out[0].pixels.shape == (128, 96, 3)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0


def test_sound_is_copied_as_it_is(make_video, finder, tmp_path):
    def packets(path):
        with av.open(str(path)) as container:
            return [(p.pts * p.time_base, bytes(p)) for p in container.demux(audio=0) if p.size]

    path = make_video(sound="aac")
    result = predict_video(finder, path, tmp_path / "out.mp4")
    assert result.notes == ()
    given, copied = packets(path), packets(tmp_path / "out.mp4")
    given = [one for one in given if 0 <= one[0] <= Fraction(23, 12)]
    assert copied == given
    assert len(copied) > 80


def test_sound_that_the_format_does_not_hold_is_left_out_and_said(make_video, finder, tmp_path):
    result = predict_video(finder, make_video(sound="aac"), tmp_path / "out.webm")
    assert result.notes == ("sound is left out: webm does not hold aac; write a .mkv to keep it",)


def test_json_lines(make_video, finder, tmp_path):
    predict_video(finder, make_video(), json_lines=tmp_path / "new" / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "new" / "out.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(24))
    assert [line["time_s"] for line in lines] == [round(i / 12, 6) for i in range(24)]
    first, last = lines[0]["detections"][0], lines[-1]["detections"][0]
    assert set(lines[0]) == {"frame", "time_s", "size_hw", "detections"}
    assert lines[0]["size_hw"] == [96, 128]
    assert (first["track_id"], first["class_name"], first["score"]) == (None, "car", 0.9)
    assert last["track_id"] == lines[1]["detections"][0]["track_id"] >= 0
    assert last["box_xyxy_px"][0] == pytest.approx(4 + STEP * 23, abs=2)


def test_wrong_output(make_video, finder, tmp_path):
    with pytest.raises(ConfigError, match=r"out.gif: cannot be written as a video; expected a name that ends in one of .mp4 .m4v .mov"):
        predict_video(finder, make_video(), "out.gif")
    (tmp_path / "lines").mkdir()
    with pytest.raises(ConfigError, match="lines: is a folder; expected the name of a file to write"):
        predict_video(finder, make_video(), json_lines=tmp_path / "lines")


def test_ahead_hands_over_everything_and_then_the_problem():
    def items():
        yield from range(10)
        raise ValueError("broken")

    got = []
    ahead = Ahead(items(), 3)
    with pytest.raises(ValueError, match="broken"):
        got.extend(ahead)
    ahead.join()
    assert got == list(range(10))


def test_the_source_is_not_written_over(make_video, finder, tmp_path):
    source, told = make_video(), "is the video that is to be predicted, or named twice; choose another file to write"
    before = Path(source).read_bytes()
    for given in (source, VideoReader(source, max_frames=1)):
        for options in ({"out": source}, {"json_lines": source}, {"out": "a.mp4", "json_lines": "a.mp4"}):
            with pytest.raises(ConfigError, match=told):
                predict_video(finder, given, **options)
    assert Path(source).read_bytes() == before
