"""`rapidetr predict` of a video: files, words, exit status."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import rapidetr
from rapidetr.cli import predict as verb
from rapidetr.cli.main import main
from rapidetr.demo import WORLD, render_scene
from rapidetr.video import frames, track


@pytest.fixture
def run(capsys, monkeypatch, tmp_path, finder):
    """run(*words) -> (exit status, stdout, stderr), with a detector of red blocks, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verb, "load", lambda args: finder)

    def call(*words):
        status = main(["predict", *map(str, words)])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture(autouse=True)
def choices(monkeypatch):
    monkeypatch.setattr(verb, "choices", lambda args, detector, limits: {"limits": limits})


def test_a_video_with_tracks_and_lines(run, make_video):
    make_video()
    status, out, err = run("red.mp4", "--track", "--out", "result.mp4", "--save-json", "lines.jsonl", "--max-frames", 9)
    assert status == 0
    assert "error" not in err
    assert out.splitlines()[-1] == "9 frames (0.7 s), 9 detections, tracks: 1 car; video in result.mp4"
    assert len(list(frames("result.mp4"))) == 9
    assert json.loads(Path("lines.jsonl").read_text().splitlines()[8])["detections"][0]["track_id"] is not None


def test_default_place_and_json(run, make_video):
    make_video()
    status, out, _ = run("red.mp4", "--json", "--stride", 4, "--quiet")
    document = json.loads(out)
    assert status == 0
    assert document["video"] == str(Path("results", "red.mp4"))
    assert (document["frames"], document["model"], document["tracks"], document["problem"]) == (6, "red-finder", {}, None)
    assert [f.time_s for f in frames(document["video"])] == pytest.approx([i / 3 for i in range(6)])


def test_a_broken_video_is_status_1_and_names_the_frame(run, make_video):
    path = make_video()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    status, out, err = run("red.mp4", "--out", "result.mp4")
    done = len(list(frames("result.mp4")))
    assert status == 1
    assert f"rapidetr: error: red.mp4: broke off after {done} frames (" in err
    assert f"{done} frames (" in out


def test_interrupted_is_status_130(run, make_video, finder, monkeypatch):
    make_video()
    monkeypatch.setattr(verb.video_source.tqdm, "update", lambda bar: (_ for _ in ()).throw(KeyboardInterrupt))
    status, _, err = run("red.mp4", "--out", "result.mp4")
    assert status == 130
    assert "rapidetr: error: interrupted after 1 frames; what was done is kept" in err
    assert len(list(frames("result.mp4"))) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no.mp4"], "no.mp4 is not there; check the path"),
        (["red.mp4", "a.jpg"], "red.mp4: a video is predicted by itself, not with 1 other sources; start one run each"),
        (["red.mp4", "--out", "red.mp4"], "red.mp4: is the video that is to be predicted; choose another --out, or --no-pictures"),
        (["red.mp4", "--coco", "a.json"], "--coco is for pictures; --save-json writes a line for each frame of a video"),
    ],
)
def test_wrong_use(run, make_video, words, message):
    make_video()
    status, _, err = run(*words)
    assert status == 2
    assert err.splitlines()[-1] == f"rapidetr: error: {message}"


@pytest.mark.slow
def test_pico_follows_things_that_pass(make_video):
    """A window moves over a wide rendered scene, 4 pixels a frame to the right: everything moves to the left."""
    scene = render_scene(20, size_hw=(224, 288))
    shown = [np.ascontiguousarray(scene.pixels[:, 12 + 4 * i : 236 + 4 * i]) for i in range(8)]
    found = list(track(rapidetr.load("pico", device="cpu", threads=1), make_video(shown=shown)))
    for name in ("clock", "coin"):
        truth = scene.boxes_xyxy_px[scene.class_ids.tolist().index(WORLD.classes.index(name))]
        ids = []
        for i, frame in enumerate(found):
            place = frame.detections.class_names.index(name)
            moved = truth - np.array([12 + 4 * i, 0, 12 + 4 * i, 0])
            # a quarter of the side: IoU stays above a half
            assert np.abs(frame.detections.boxes_xyxy_px[place] - moved).max() < 0.25 * (truth[2:] - truth[:2]).max()
            ids.append(int(frame.track_ids[place]))
        assert ids[0] == -1
        assert len(set(ids[1:])) == 1
        assert ids[1] >= 0
