"""`rapidetr predict`: what is written, what is said, and the exit status."""

from __future__ import annotations

import json
import os
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

import rapidetr
from rapidetr.core.masks import counts_of_rle

OPTIONS = ("--threshold", "0.001", "--max-detections", "4", "--device", "cpu")


@pytest.fixture
def predict(run, model):
    return lambda *words: run("predict", *words, "--model", model, *OPTIONS)


def test_pictures_json_and_lines_of_a_folder(predict, pictures, model):
    status, out, err = predict("photos", "photos/*.jpg", "--save-json", "new/results.json")
    assert (status, err) == (0, "")
    document = json.loads(Path("new/results.json").read_text())
    images = document.pop("images")
    detector = rapidetr.load(model)
    sources = [os.path.join("photos", name) for name in ("one.png", "two.jpg", os.path.join("sub", "one.png"))]
    drawn = [os.path.join("results", name) for name in ("one.png", "two.jpg", "one-2.png")]
    assert [i["source"] for i in images] == sources
    assert [i["picture"] for i in images] == drawn
    assert [i["image_id"] for i in images] == [1, 2, 3]
    total = 0
    for image, one in zip(images, detector.predict(sources, 0.001, max_detections=4), strict=True):
        expected = one.to_dict()
        assert image["detections"] == expected["detections"]
        assert image["size_hw"] == expected["size_hw"]
        total += len(one)
    assert total > 0
    assert document == {
        "model": "tiny-det",
        "license": "Apache-2.0",
        "threshold": 0.001,
        "size_hw": list(detector.size_hw),
        "resize_filter": "bilinear-antialias",
        "pictures": 3,
        "detections": total,
        "failed": 0,
    }
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == sources
    assert lines[0].split()[1] == "40x60"
    assert lines[3:] == [f"3 pictures, {total} detections, 0 failed; annotated pictures in results{os.sep}"]
    assert sorted(os.listdir("results")) == ["one-2.png", "one.png", "two.jpg"]  # whole files only
    for name, size, kind in (("one.png", (60, 40), "PNG"), ("two.jpg", (50, 70), "JPEG"), ("one-2.png", (30, 30), "PNG")):
        with Image.open(Path("results", name)) as image:
            assert (image.size, image.format) == (size, kind)


def test_the_annotated_picture_is_what_draw_gives(predict, pictures, model):
    assert predict("photos/one.png", "--out", "drawn", "--quiet") == (0, "", "")
    expected = rapidetr.load(model).predict("photos/one.png", 0.001, max_detections=4)[0].draw("photos/one.png")
    with Image.open("drawn/one.png") as image:
        assert image.tobytes() == expected.tobytes()
    assert expected.tobytes() != Image.open("photos/one.png").tobytes()  # something was drawn


def test_json_is_the_only_thing_on_stdout(predict, pictures):
    status, out, err = predict("photos/one.png", "photos/two.jpg", "--json", "--save-json", "same.json", "--batch-size", "2")
    assert status == 0
    assert out.count("\n") == 1
    assert json.loads(out) == json.loads(Path("same.json").read_text())
    assert "2 pictures, " in err
    assert "annotated pictures in results" in err


def test_options_may_stand_between_the_sources(predict, pictures):
    status, out, _ = predict("photos/one.png", "--no-pictures", "photos/two.jpg")
    assert status == 0
    assert out.splitlines()[-1].startswith("2 pictures, ")
    assert not Path("results").exists()


def test_bad_pictures_are_reported_and_the_rest_is_done(predict, pictures):
    (pictures / "empty.jpg").touch()
    status, out, err = predict("photos/one.png", "nix.jpg", "photos/empty.jpg", "*.gif", "--json", "--batch-size", "3")
    document = json.loads(out)
    assert status == 1
    assert (document["pictures"], document["failed"]) == (1, 3)
    assert [i["source"] for i in document["images"]] == ["photos/one.png", "photos/empty.jpg", "nix.jpg", "*.gif"]
    errors = [i["error"] for i in document["images"][1:]]
    assert errors[:2] == ["photos/empty.jpg is empty (0 bytes); copy or download it again", "nix.jpg is not there; check the path"]
    assert errors[2].startswith("*.gif matches no pictures; ")
    assert [line for line in err.splitlines() if line.startswith("rapidetr: error: ")] == [f"rapidetr: error: {e}" for e in errors]
    assert os.listdir("results") == ["one.png"]


def test_nothing_done_is_2(predict, pictures):
    (pictures / "empty.jpg").touch()
    assert predict("photos/empty.jpg", "--quiet") == (
        2,
        "",
        "rapidetr: error: photos/empty.jpg is empty (0 bytes); copy or download it again\n",
    )
    status, _, err = predict("a.jpg", "b.jpg")
    assert (status, err) == (2, "rapidetr: error: a.jpg is not there; check the path; b.jpg is not there; check the path\n")


def test_classes_are_names_or_indices_and_a_name_goes_first(run, model, pictures):
    def found(classes):
        words = ("--model", model, "--threshold", "0.001", "--max-detections", "9999", "--no-pictures", "--json", "--quiet")
        out = run("predict", "photos/one.png", *words, "--classes", classes)[1]
        return {d["class_id"] for d in json.loads(out)["images"][0]["detections"]}

    assert found("dog") == found("1") == {1}
    assert found("7") == {2}  # a class is called so
    assert found("cat,7") == {0, 2}
    assert found("2,cat,1") == {0, 1, 2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--classes", "cat,bird"), "unknown class 'bird'; this model knows: cat, dog, 7"),
        (("--threshold", "3"), "threshold is 3.0; expected 0 to 1"),
        (("--overlap", "1", "--tile", "32"), "tiles of 32x32 with overlap 1.0; expected at least one pixel and 0 <= overlap < 1"),
        (("--out", "photos"), "photos: holds pictures that are to be predicted; choose another --out, or --no-pictures"),
        (("--out", "photos/one.png"), "photos/one.png: is a file; expected a folder for the annotated pictures"),
        (
            ("--save-json", "photos/one.png"),
            "photos/one.png: is a picture that is to be predicted, or named twice; choose another file to write",
        ),
        (
            ("--save-json", "a.json", "--coco", "a.json"),
            "a.json: is a picture that is to be predicted, or named twice; choose another file to write",
        ),
        (("--save-json", "photos"), "photos: is a folder; expected the name of a file to write"),
        (("--decoder-layers", "9"), "decoder_layers is 9; tiny-det has 1 to 2"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(run, model, pictures, tmp_path, words, message):
    before = sorted(tmp_path.rglob("*"))
    assert run("predict", "photos/one.png", "--model", model, *words) == (2, "", f"rapidetr: error: {message}\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_input_size_is_height_by_width(predict, pictures, model):
    step = rapidetr.load(model).config.divisor
    out = predict("photos/one.png", "--size", f"{step}x{3 * step}", "--no-pictures", "--json", "--quiet")[1]
    assert json.loads(out)["size_hw"] == [step, 3 * step]


def test_options_reach_the_detector(run, model, pictures, monkeypatch):
    seen = {}
    load, iterate = rapidetr.load, rapidetr.Detector.predict_iter

    def note_load(source, **options):
        seen.update(options)
        return load(source, **{**options, "model": None})

    def note_predict(self, images, threshold, **options):
        seen.update(options, threshold=threshold)
        return iterate(self, images, threshold, **{**options, "tile": None})

    monkeypatch.setattr(rapidetr, "load", note_load)
    monkeypatch.setattr(rapidetr.Detector, "predict_iter", note_predict)
    words = (
        "--variant base --device cpu --threads 1 --seed 5 --dtype float32 --decoder-layers 1 --queries 3 --accept-license PML-1.0 "
        "--threshold 0.2 --batch-size 3 --prefetch 2 --classes dog --max-detections 2 --nms 0.6 --one-label-per-query "
        "--include-unnamed --tile 30x20 --overlap 0.1 --max-pixels 9999 --no-pictures"
    )
    status, _, err = run("predict", "photos/one.png", "--model", model, *words.split())
    assert (status, err) == (0, "")
    limits = seen.pop("limits")
    assert limits.max_pixels == 9999
    assert seen == {
        "model": "base", "weights": "pretrained", "device": "cpu", "threads": 1, "seed": 5, "dtype": "float32", "size_hw": None,
        "decoder_layers": 1, "queries": 3, "accept_license": "PML-1.0", "threshold": 0.2, "batch_size": 3, "prefetch": 2,
        "classes": [1], "max_detections": 2, "nms": 0.6, "one_label_per_query": True, "include_unnamed": True, "tile": (30, 20),
        "overlap": 0.1,
    }  # fmt: skip


def test_the_limit_of_pixels_holds(predict, pictures):
    status, _, err = predict("photos/one.png", "photos/sub/one.png", "--max-pixels", "1000")
    assert status == 1
    assert err.startswith("rapidetr: error: photos/one.png is 40x60, more than ")


def test_coco_results_and_which_picture_has_which_number(predict, pictures):
    (pictures / "bad.jpg").touch()
    status, _, _ = predict("photos/bad.jpg", "photos/one.png", "photos/two.jpg", "--coco", "coco.json", "--no-pictures")
    results, images = (json.loads(Path(name).read_text()) for name in ("coco.json", "coco.json.images.json"))
    assert status == 1
    assert images == [
        {"id": 2, "file_name": "photos/one.png", "width": 60, "height": 40},
        {"id": 3, "file_name": "photos/two.jpg", "width": 50, "height": 70},
    ]
    assert {r["image_id"] for r in results} == {2, 3}
    assert {r["category_id"] for r in results} <= {10, 20, 30}


@pytest.mark.parametrize("form", ["rle", "polygons", "none"])
def test_masks_in_the_form_that_was_asked_for(run, make_model, pictures, form):
    words = ("--model", make_model("tiny_seg"), *OPTIONS, "--masks", form, "--json", "--quiet", "--no-pictures")
    status, out, _ = run("predict", "photos/one.png", *words)
    found = json.loads(out)["images"][0]["detections"]
    assert status == 0
    assert found
    for one in found:
        if form == "rle":
            assert int(counts_of_rle(one["mask"])[1::2].sum()) == one["area_px"]
        elif form == "polygons":
            assert all(isinstance(ring, list) and len(ring) % 2 == 0 for ring in one["mask"])
        else:
            assert one["mask"] is None


@pytest.mark.slow
def test_random_weights_are_reproducible(run, pictures):
    words = ("--weights", "random", "--threads", "1", "--no-pictures", "--json", "--quiet", "--size", "32", *OPTIONS)
    outs = [json.loads(run("predict", "photos/one.png", *words, "--seed", seed)[1])["images"][0]["detections"] for seed in (0, 0, 1)]
    assert outs[0] == outs[1] != outs[2]


def test_an_address_is_fetched_once_and_named_after_its_path(predict, pictures):
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(pictures)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/one.png?size=large"
        status, out, err = predict(address, "--json")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    image = json.loads(out)["images"][0]
    assert (status, image["source"], image["picture"]) == (0, address, os.path.join("results", "one.png"))
    assert asked == ["/one.png?size=large"], err


def test_a_picture_that_vanishes_before_it_is_drawn_fails_alone(predict, pictures, monkeypatch):
    from rapidetr.cli import results

    real = results.load_picture

    def vanish(source, limits):
        if source == "photos/one.png":
            os.unlink(source)
        return real(source, limits)

    monkeypatch.setattr(results, "load_picture", vanish)
    status, out, err = predict("photos/one.png", "photos/two.jpg")
    assert (status, err) == (1, "rapidetr: error: photos/one.png is not there; check the path\n")
    assert out.splitlines()[-1].startswith("1 picture, ")
    assert os.listdir("results") == ["two.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not have such names")
def test_pictures_of_any_name_and_side_are_drawn_and_a_full_disk_loses_no_json(predict, tmp_path, monkeypatch):
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.new("RGB", (40, 30)).save(folder / ("\u56fe" * 83 + ".png"))
    Image.new("RGB", (66_000, 2)).save(folder / "wide.bmp")
    status, _, err = predict("odd", "--save-json", "odd.json")
    assert (status, err) == (0, "")
    drawn = [Path(image["picture"]).name for image in json.loads(Path("odd.json").read_text())["images"]]
    assert drawn == ["wide.png", "\u56fe" * 66 + ".png"]
    monkeypatch.setattr(Image.Image, "save", lambda *args, **options: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    status, _, err = predict("odd", "--save-json", "full.json")
    assert status == 2
    assert "wide.bmp: its annotated picture cannot be written: [Errno 28] No space left on device" in err
    assert [len(image["detections"]) for image in json.loads(Path("full.json").read_text())["images"]] == [4, 4]
