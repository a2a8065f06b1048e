"""Batches are a function of seed, epoch and place alone: whatever the workers, the ranks, or where a resumed run begins."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_sets import NAMES, scenes, write_roboflow

from rapidetr.core.errors import ConfigError, DatasetError, ImageMissing
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.data import jpeg
from rapidetr.data.batches import Loader, TrainBatch
from rapidetr.data.read import read_dataset
from rapidetr.data.records import Annotation, Dataset, ImageRecord
from rapidetr.data.samples import Sample
from rapidetr.data.sampling import EpochOrder
from rapidetr.data.sources import ItemSource, RecordSource
from rapidetr.pixels.decode import load_picture
from rapidetr.pixels.prepare import prepare

SIZE, PREPROCESSING = (48, 64), Preprocessing()
LABELS = LabelSpace(NAMES, (1, 2, 3), (4, 0, 2), 6)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = write_roboflow(tmp_path_factory.mktemp("set"), {"train": scenes(1, 12)})
    return read_dataset(root, "train")


def load(dataset: Any, batch: int = 3, **options: Any) -> Loader:
    order = EpochOrder(len(dataset), batch, seed=7, world=options.pop("world", 1))
    return Loader(dataset, order, SIZE, PREPROCESSING, **{"transforms": "small-data", **options})


def equal(a: TrainBatch, b: TrainBatch) -> bool:
    truths = [(x, y) for s, t in zip(a.targets, b.targets, strict=True) for x, y in zip(s, t, strict=True)]
    same = [(x is None) == (y is None) and (x is None or torch.equal(x, y)) for x, y in [*truths, (a.pixels, b.pixels)]]
    return all(same) and a.sources == b.sources


def own_code(sample: Sample, rng: np.random.Generator) -> Sample:
    """A user's callable that draws from every global generator."""
    shift = int(rng.integers(3)) + random.randrange(3) + int(np.random.randint(3)) + int(torch.randint(3, ()))
    return Sample(np.roll(sample.pixels, shift), sample.boxes_xyxy_px, sample.class_ids, sample.masks, sample.source)


def test_without_augmentation_a_batch_is_what_prepare_gives(dataset: Dataset) -> None:
    batch = next(load(dataset, transforms="none", labels=LABELS, masks=True).epoch(0))
    assert len(batch.targets) == len(batch.sources) == 3
    for pixels, truth, source in zip(batch.pixels, batch.targets, batch.sources, strict=True):
        record = next(r for r in dataset.images if r.path == source)
        picture = load_picture(source).pixels
        wanted = prepare([picture], SIZE, PREPROCESSING, filter="bilinear-antialias").pixels[0]
        assert np.array_equal(pixels.numpy(), wanted)
        assert truth.labels.tolist() == [LABELS.rows[c] for c in record.class_ids]
        h, w = picture.shape[:2]
        x0, y0, x1, y1 = record.boxes_xyxy_px.T
        unit = np.stack([(x0 + x1) / 2 / w, (y0 + y1) / 2 / h, (x1 - x0) / w, (y1 - y0) / h], 1)
        np.testing.assert_allclose(truth.boxes.numpy(), unit, atol=1e-6)  # float32
        assert (truth.boxes.dtype, truth.labels.dtype, truth.masks.dtype) == (torch.float32, torch.int64, torch.bool)
        assert truth.masks.shape == (len(record), *SIZE)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "counts"), [("fork", (1, 2)), ("spawn", (2,))])
def test_workers_change_nothing(dataset: Dataset, method: str, counts: tuple[int, ...]) -> None:
    options = {"masks": True, "custom": own_code}
    wanted = {epoch: list(load(dataset, **options).epoch(epoch)) for epoch in (0, 3)}
    assert not equal(wanted[0][0], wanted[3][0])
    for workers in counts:
        loader = load(dataset, workers=workers, start_method=method, cache_bytes=10**6, **options)
        next(loader.epoch(1))  # an epoch that is broken off leaves nothing behind
        for epoch, batches in wanted.items():
            made = list(loader.epoch(epoch))
            assert len(made) == len(batches) == len(loader) == 5
            assert all(map(equal, made, batches))
        assert all(map(equal, loader.epoch(3, start=3), wanted[3][3:]))


def test_resuming_decodes_nothing_before_the_start(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(load(dataset).epoch(2))
    seen: list[int] = []
    draw = RecordSource.__call__
    monkeypatch.setattr(RecordSource, "__call__", lambda self, index: (seen.append(index), draw(self, index))[1])
    rest = list(load(dataset, transforms="none").epoch(2, start=3))
    assert len(seen) == 6
    assert [b.sources for b in rest] == [b.sources for b in whole[3:]]
    assert all(map(equal, load(dataset).epoch(2, start=3), whole[3:]))
    assert list(load(dataset).epoch(2, start=5)) == []


def test_two_ranks_are_one_rank_with_twice_the_batch(dataset: Dataset) -> None:
    alone = load(dataset, batch=4).epoch(1)
    ranks = [load(dataset, batch=2, world=2, rank=rank).epoch(1) for rank in range(2)]
    for one, left, right in zip(alone, *ranks, strict=True):
        assert torch.equal(one.pixels, torch.cat([left.pixels, right.pixels]))
        assert one.sources == left.sources + right.sources


def test_global_generators_are_left_alone(dataset: Dataset) -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    wanted = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    batches = list(load(dataset, custom=own_code).epoch(0))
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == wanted
    assert all(map(equal, load(dataset, custom=own_code).epoch(0), batches))


def test_cache_keeps_to_its_bytes_and_changes_nothing(dataset: Dataset) -> None:
    plain = list(load(dataset, transforms="official").epoch(0))
    distinct = len({source for batch in plain for source in batch.sources})
    for cache_bytes in (30_000, 10**7):
        cached = load(dataset, transforms="official", cache_bytes=cache_bytes)
        for _ in range(2):
            assert all(map(equal, cached.epoch(0), plain))
        held = cached.maker.source.cached
        assert 0 < sum(p.nbytes for p in held.values()) <= cache_bytes
        assert (len(held) == distinct) == (cache_bytes == 10**7)


def test_resized_batches(dataset: Dataset) -> None:
    batch = next(load(dataset).epoch(0))
    small = batch.resized((32, 96))
    assert small.pixels.shape == (3, 3, 32, 96)
    assert torch.equal(small.pixels, torch.nn.functional.interpolate(batch.pixels, (32, 96), mode="bilinear"))
    assert small.targets is batch.targets
    assert batch.resized(SIZE) is batch


def test_crowds_go_and_empty_pictures_stay(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (9, 9, 9)).save(tmp_path / "a.png")
    crowd = [Annotation(0, 0, (1, 1, 9, 9), crowd=True)]
    some = [*crowd, Annotation(1, 2, (30, 20, 50, 60)), Annotation(2, 1, (5, 5, 5, 9))]
    common = {"path": str(tmp_path / "a.png"), "split": "train", "size_hw": (30, 40), "file": "a.json"}
    images = tuple(ImageRecord.build(a, image_id=i, **common) for i, a in enumerate([crowd, some]))
    made = Dataset(str(tmp_path), "train", "coco", images, LabelSpace.contiguous(NAMES))
    source = RecordSource(made, masks=True)
    assert [len(source(i).class_ids) for i in range(2)] == [0, 1]
    assert source(0).masks.shape == (0, 30, 40)
    assert source(1).boxes_xyxy_px.tolist() == [[30, 20, 40, 30]]
    assert source(1).masks.sum() == 100
    batch = next(load(made, batch=4, masks=True).epoch(0))
    assert all(t.masks.shape == (len(t.labels), *SIZE) and t.boxes.shape == (len(t.labels), 4) for t in batch.targets)


class Items(torch.utils.data.Dataset):
    """A user's dataset, one item for each accepted kind of picture."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def test_a_torch_dataset_of_any_picture_kind() -> None:
    array = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    target = {"boxes": torch.tensor([[2.0, 3, 50, 9]]), "labels": torch.tensor([1]), "masks": torch.ones(1, 30, 40, dtype=torch.uint8)}
    tensor = torch.from_numpy(array).permute(2, 0, 1) / 255
    items = Items((array, target), (Image.fromarray(array), target), (tensor, target), (array, {"boxes": [], "labels": [], "masks": []}))
    source = ItemSource(items, LABELS, masks=True)
    for index in range(4):
        sample = source(index)
        assert np.array_equal(sample.pixels, array)
        assert sample.boxes_xyxy_px.tolist() == [[2, 3, 40, 9]][: 3 - index]
        assert sample.masks.shape == (len(sample.class_ids), 30, 40)
    batch = next(load(items, batch=8, labels=LABELS, transforms="none").epoch(0))
    assert {tuple(t.labels.tolist()) for t in batch.targets} == {(0,), ()}
    assert set(batch.sources) <= {f"item {i} of the dataset" for i in range(4)}


ARRAY = np.zeros((30, 40, 3), np.uint8)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (ARRAY, "is a ndarray; expected (image, {boxes, labels})"),
        ((ARRAY, {"boxes": [], "category": []}), "is (ndarray, {boxes, category}); expected (image, {boxes, labels})"),
        ((ARRAY, {"boxes": [[0, 0, 5, 5]], "labels": [3]}), "gave label 3; expected class indices 0..2; map its ids to indices"),
        ((ARRAY, {"boxes": [[0, 0, 5, 5]], "labels": [1.0]}), "has labels of type float64; expected whole numbers, class indices"),
        (
            (ARRAY, {"boxes": [0, 0, 5, 5], "labels": [1]}),
            "gave boxes float32 [4]; expected float32 [1, 4] for 1 objects in 30x40 pixels",
        ),
    ],
)
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_broken_items_are_named(item: Any, message: str, workers: int) -> None:
    with pytest.raises(DatasetError) as caught:
        next(load(Items(item), labels=LABELS, workers=workers).epoch(0))
    assert str(caught.value) == f"item 0 of the dataset {message}"


def test_wrong_arguments_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Items(0))
    assert str(caught.value) == "labels are missing: a Items does not say what its classes are called; pass a LabelSpace"
    with pytest.raises(ConfigError) as caught:
        load(dataset, labels=LabelSpace.contiguous(("x",)))
    assert str(caught.value) == "the model has classes ['x'], the dataset ['ant', 'bee', 'cat']; expected the same"
    with pytest.raises(ConfigError) as caught:
        Loader(dataset, EpochOrder(5, 2), SIZE, PREPROCESSING)
    assert str(caught.value) == "the order is for 5 images, the dataset has 12; expected equally many"
    with pytest.raises(DatasetError) as caught_data:
        next(load(dataset, custom=lambda s, rng: Sample(s.pixels / 255, s.boxes_xyxy_px, s.class_ids)).epoch(0))
    assert str(caught_data.value).startswith("the last transform gave pixels float64 [48, 64, 3]; expected uint8 [48, 64, 3] for ")
    with pytest.raises(ImageMissing):
        next(load(Dataset("", "train", "coco", (ImageRecord.build((), path=str(tmp_path / "no.jpg"), image_id=1, split="train",
             size_hw=None, file="a.json"),), LabelSpace.contiguous(NAMES))).epoch(0))  # fmt: skip


def save_jpeg(path: Path, mode: str = "RGB", **options: Any) -> Path:
    coarse = np.random.default_rng(5).integers(0, 256, (9, 13, 3), np.uint8)
    Image.fromarray(coarse).resize((131, 87), Image.Resampling.BICUBIC).convert(mode).save(path, "JPEG", **options)
    return path


def test_fast_jpeg_gives_pillows_pixels(tmp_path: Path) -> None:
    pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = {"a": {}, "g": {"mode": "L"}, "p": {"progressive": True}, "c": {"mode": "CMYK"}, "t": {"exif": turned}, "s": {"subsampling": 0}}
    fast = jpeg.fast_decoder()
    assert fast is not None
    for name, options in kinds.items():
        path = save_jpeg(tmp_path / f"{name}.jpg", **options)
        assert (fast(path.read_bytes()) is None) == (name in "ct")  # those are left to Pillow
        assert np.array_equal(jpeg.load_pixels(str(path)), load_picture(str(path)).pixels)
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.jpg is damaged or cut off"):
        jpeg.load_pixels(str(tmp_path / "cut.jpg"))


def test_a_decoder_with_other_pixels_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        @staticmethod
        def decode_jpeg(data: bytes) -> np.ndarray:
            return np.zeros((45, 61, 3), np.uint8)

    monkeypatch.setattr(jpeg, "import_module", lambda name: Other)
    jpeg.fast_decoder.cache_clear()
    try:
        assert jpeg.fast_decoder() is None
        path = str(save_jpeg(tmp_path / "a.jpg"))
        assert np.array_equal(jpeg.load_pixels(path), load_picture(path).pixels)
    finally:
        jpeg.fast_decoder.cache_clear()


def test_what_a_users_transform_gave_lies_inside_and_the_right_way_round(dataset: Dataset) -> None:
    def moved(sample: Sample, rng: np.random.Generator) -> Sample:
        return replace(sample, boxes_xyxy_px=sample.boxes_xyxy_px + np.float32(20))

    def mirrored(sample: Sample, rng: np.random.Generator) -> Sample:
        return replace(sample, boxes_xyxy_px=sample.size_hw[1] - sample.boxes_xyxy_px)

    for batch in load(dataset, custom=moved).epoch(0):
        for truth in batch.targets:
            low, high = truth.boxes[:, :2] - truth.boxes[:, 2:] / 2, truth.boxes[:, :2] + truth.boxes[:, 2:] / 2
            assert (low >= -1e-6).all()
            assert (high <= 1 + 1e-6).all()
            assert (truth.boxes[:, 2:] > 0).all()
    with pytest.raises(DatasetError, match=r"^the last transform gave the box \[.*\]; expected x0 <= x1 and y0 <= y1$"):
        next(load(dataset, custom=mirrored).epoch(0))
