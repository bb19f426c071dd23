"""Shards: the same batches as from the folder they were packed from, read from anywhere, and every fault named."""

import functools
import http.server
import io
import itertools
import json
import os
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from dataset_trees import ade20k, grey, kvasir, label_map, own, picture, voc2012
from PIL import Image

from digseg_engine.commands.main import dispatch
from digseg_engine.data import shard_cache, storage
from digseg_engine.data.datasets import dataset_splits, open_dataset
from digseg_engine.data.loader import CropLoader, CropReader
from digseg_engine.data.packing import pack
from digseg_engine.data.shard_cache import ShardCache
from digseg_engine.data.shard_index import SUFFIX, index_of, scan
from digseg_engine.data.shard_order import ShardOrder
from digseg_engine.data.shards import is_shards, shard_splits
from digseg_engine.data.storage import find_blob
from digseg_engine.data.survey import survey
from digseg_engine.errors import InputError, MissingPackageError, UsageError

SIZE = 40_000  # of a shard: about four of the small pictures


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIGSEG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    own(tmp_path / "data", count=10)
    return tmp_path / "data"


@pytest.fixture
def shards(folder, tmp_path):
    pack({"all": open_dataset(folder)}, tmp_path / "shards", SIZE)
    return tmp_path / "shards"


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("pictures", "variants", "images", "ids"))


def crops(dataset, steps=range(6), workers=0, readers="threads", **options):
    load = CropLoader(CropReader(dataset, 24, 3, **options), workers, readers)
    return [load(step, 3) for step in steps]


def all_same(a, b):
    return all(map(same, a, b))


def rewritten(path, change):
    """A shard whose members `change` maps, (name, body) pairs to others, and without index."""
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    with tarfile.open(path, "w") as tar:
        for name, body in change(members):
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    Path(f"{path}{SUFFIX}").unlink(missing_ok=True)


# The same as a folder


def test_shards_give_the_bits_of_their_folder_whatever_the_workers(folder, shards):
    plain, packed = open_dataset(folder), open_dataset(shards)
    assert len(list(shards.glob("*.tar"))) == 3 and len(packed) == len(plain) == 10
    assert [r.name for r in packed.records] == [r.name for r in plain.records]
    for options in ({}, {"echo": 2}, {"variants": 2}, {"odds": np.arange(1.0, 11)}):
        wanted = crops(plain, **options)
        assert all_same(crops(packed, **options), wanted)
        assert all_same(crops(packed, workers=2, **options), wanted)
    assert not all_same(crops(packed), crops(packed, steps=range(1, 7)))


def test_processes_read_the_same_from_shards(folder, shards):
    order = ShardOrder(open_dataset(shards).records.starts, 2, 0)
    assert all_same(crops(open_dataset(shards), workers=2, readers="processes"), crops(open_dataset(folder)))
    assert all_same(crops(open_dataset(shards), workers=2, readers="processes", order=order),
                    crops(open_dataset(folder), order=order))  # fmt: skip


@pytest.mark.parametrize("make", [own, ade20k, voc2012, kvasir])
def test_every_kind_of_mask_survives_packing(make, tmp_path):
    make(tmp_path / "data")
    names = dataset_splits(tmp_path / "data")
    splits = {name: open_dataset(tmp_path / "data", split=name) for name in names if name != "all" or len(names) == 1}
    pack(splits, tmp_path / "shards", SIZE)
    assert set(dataset_splits(tmp_path / "shards")) == set(splits)
    for name, plain in splits.items():
        packed = open_dataset(tmp_path / "shards", split=name)
        assert packed.queries == plain.queries and len(packed) == len(plain) > 0
        assert packed.table.absent == plain.table.absent and packed.table.templates == plain.table.templates
        for a, b in zip(packed, plain):
            assert a.name == b.name and np.array_equal(a.image, b.image) and np.array_equal(a.ids, b.ids)


def test_the_same_files_give_the_same_shards_and_a_seed_another_order(folder, tmp_path):
    whole = open_dataset(folder)
    for name, seed in (("a", None), ("b", None), ("c", 1), ("d", 1)):
        pack({"all": whole}, tmp_path / name, SIZE, seed)
    bodies = {name: [p.read_bytes() for p in sorted((tmp_path / name).glob("*.tar"))] for name in "abcd"}
    assert bodies["a"] == bodies["b"] != bodies["c"] == bodies["d"]
    assert {r.name for r in open_dataset(tmp_path / "c").records} == {r.name for r in whole.records}
    assert max(map(len, bodies["a"])) <= SIZE + tarfile.RECORDSIZE


def test_names_with_dots_folders_and_accents(tmp_path):
    names = ("a.b/c.d", "e\u0301t\u00e9", "x")
    for n, name in enumerate(names):
        picture(tmp_path / f"data/images/{name}.png", n)
        grey(tmp_path / f"data/masks/{name}.png", label_map([0, 1], n))
    (tmp_path / "data/classes.json").write_text('{"classes": ["road", "car"]}')
    plain = open_dataset(tmp_path / "data", split="all")
    pack({"all": plain}, tmp_path / "shards", SIZE)
    assert [r.name for r in open_dataset(tmp_path / "shards").records] == [r.name for r in plain.records]
    with tarfile.open(tmp_path / "shards/shard-000000.tar") as tar:
        assert all(Path(name).name.count(".") in (1, 2) for name in tar.getnames())  # as WebDataset splits names


def test_foreign_shards_are_read_too(tmp_path):
    """Written by another program: other suffixes, other members between, ./ before names, GNU format, no index."""
    own(tmp_path / "data", count=2)
    (tmp_path / "s").mkdir()
    (tmp_path / "s/classes.json").write_text((tmp_path / "data/classes.json").read_text())
    with tarfile.open(tmp_path / "s/part-0.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for n in range(2):
            Image.open(tmp_path / f"data/images/p{n}.png").save(tmp_path / "x.webp", lossless=True)
            for name, path in ((f"./p{n}.json", tmp_path / "data/classes.json"), (f"./p{n}.WEBP", tmp_path / "x.webp"),
                               (f"./p{n}.depth.png", tmp_path / "x.webp"),
                               (f"./p{n}.seg.png", tmp_path / f"data/masks/p{n}.png")):  # fmt: skip
                tar.add(path, name)
    for a, b in zip(open_dataset(tmp_path / "s/part-*.tar"), open_dataset(tmp_path / "data")):
        assert np.array_equal(a.image, b.image) and np.array_equal(a.ids, b.ids)


def test_splits_are_told_by_the_shards_names(shards, tmp_path):
    assert dataset_splits(shards) == ("all",)
    for n, name in enumerate(("city-train-000.tar", "city-train-001.tar", "val-0.tar")):
        (shards / f"shard-{n:06d}.tar").rename(shards / name)
    assert shard_splits(str(shards)).keys() == {"train", "val"}
    sizes = {name: len(open_dataset(shards, split=name)) for name in ("train", "val", "all")}
    assert sizes["train"] + sizes["val"] == sizes["all"] == 10
    assert dataset_splits(str(shards / "val-{0..0}.tar")) == ("val",)
    assert len(open_dataset(str(shards / "city-train-{000..001}.tar"))) == sizes["train"]
    with pytest.raises(UsageError, match=r"has no split 'test'; expected one of train, val, all"):
        open_dataset(shards, split="test")
    with pytest.raises(UsageError, match=r"shards, which have one layout, got --layout ade20k"):
        open_dataset(shards, "ade20k")


def test_what_counts_as_shards(folder, shards):
    assert is_shards(shards) and is_shards("a-{00..11}.tar") and is_shards("s3://bucket/set")
    (folder / "download.tar").write_bytes(b"")  # what a folder was unpacked from
    assert not is_shards(folder) and not is_shards("scenes:objects") and not is_shards("nothing")


def test_the_command_packs_and_judges_shards(folder, tmp_path, capsys):
    arguments = ["data", str(folder), "-o", str(tmp_path / "a.png")]
    assert dispatch([*arguments, "--pack", str(tmp_path / "s"), "--shard-size", "0.1", "--shuffle", "0"]) == 0
    assert "1 shard of 10 pictures written to" in capsys.readouterr().out
    assert dispatch(["data", str(tmp_path / "s"), "-o", str(tmp_path / "b.png")]) == 0
    assert "10 of 10 pictures are sound" in capsys.readouterr().out
    assert dispatch([*arguments, "--pack", str(tmp_path / "s")]) == 0  # shards of before make way
    with pytest.raises(UsageError, match=r"is not a folder of shards .*choose another with --pack"):
        dispatch([*arguments, "--pack", str(folder)])
    with pytest.raises(UsageError, match=r"--shard-size has no effect without --pack"):
        dispatch([*arguments, "--shard-size", "1"])
    (folder / "masks/p3.png").write_bytes(b"none")
    assert dispatch([*arguments, "--pack", str(tmp_path / "t")]) == 2 and not (tmp_path / "t").exists()
    assert "1 problem in" in (said := capsys.readouterr().err) and "nothing was packed" in said


# Windows of shards


def test_windows_slide_over_all_shards_and_hold_the_pictures_that_are_drawn(shards):
    dataset = open_dataset(shards)
    starts = dataset.records.starts
    order = ShardOrder(starts, 2, 7)
    seen = [order.window(n) for n in range(0, 40)]
    assert seen[:10] == [ShardOrder(starts, 2, 7).window(n) for n in range(0, 10)]  # nothing is remembered
    assert {n for window in seen[:10] for n in window} == {0, 1, 2}
    assert all(order.coming(n)[:2] == seen[n] for n in range(40))
    assert all(set(a[1:]) <= set(b) for a, b in itertools.pairwise(seen))  # one at a time
    reader = CropReader(dataset, 24, 3, order=order)
    for step in range(30):
        window = order.window(step * 3)
        shard = np.searchsorted(starts, reader.choose(step, 3)[0], side="right") - 1
        assert set(shard.tolist()) <= set(window)
    drawn = np.concatenate([reader.choose(step, 3)[0] for step in range(60)])
    assert len(np.unique(drawn)) == 10
    rare = CropReader(dataset, 24, 3, order=order, odds=np.where(np.arange(10) == 4, 1.0, 0.0) + 1e-9)
    holding = int(np.searchsorted(starts, 4, side="right")) - 1
    assert all((rare.choose(s, 3)[0] == 4).all() for s in range(20) if holding in order.window(s * 3))


def test_a_resumed_run_and_processes_in_turn_read_what_one_run_reads(shards):
    order = ShardOrder(open_dataset(shards).records.starts, 2, 7)
    for echo in (1, 2):
        whole = crops(open_dataset(shards), range(40), order=order, echo=echo)
        assert all_same(crops(open_dataset(shards), range(23, 40), 2, order=order, echo=echo), whole[23:])
        turns = [crops(open_dataset(shards), range(first, 40, 2), 2, order=order, echo=echo) for first in (0, 1)]
        assert all_same([turns[s % 2][s // 2] for s in range(40)], whole)
        assert not np.array_equal(whole[0].pictures, whole[1].pictures)


# From afar


@pytest.fixture
def far(shards):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for path in shards.iterdir():
        memory.pipe(f"/bucket/set/{path.name}", path.read_bytes())
    yield "memory://bucket/set"
    memory.store.clear()


def test_shards_in_memory_over_fsspec(folder, shards, far):
    wanted = crops(open_dataset(folder))
    addresses = (far, f"{far}/*.tar", f"{far}/shard-{{000000..000002}}.tar", f"file://{shards}")
    for address in addresses:
        dataset = open_dataset(address)
        assert all_same(crops(dataset, workers=2), wanted) and not survey(dataset).problems
    assert sorted(r.name for r in open_dataset(far).records) == [f"p{n}" for n in range(10)]


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, with ranges, as object stores serve them."""

    def log_message(self, *arguments):
        return

    def send_head(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return None
        body, wanted = path.read_bytes(), self.headers.get("Range")
        first, last = 0, len(body) - 1
        if wanted:
            first, last = (int(text) for text in wanted.removeprefix("bytes=").split("-"))
            last = min(last, len(body) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{len(body)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        return io.BytesIO(body[first : last + 1])


def test_shards_over_http(folder, shards):
    pytest.importorskip("aiohttp")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranges, directory=str(shards)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/shard-{{000000..000002}}.tar"
        assert all_same(crops(open_dataset(address), workers=2), crops(open_dataset(folder)))
        with pytest.raises(InputError, match=r"shard-000003\.tar: file not found"):
            open_dataset(address.replace("02}", "03}"))
    finally:
        server.shutdown()
        server.server_close()


def test_copies_stay_within_their_limit_and_change_no_result(folder, far, tmp_path):
    pytest.importorskip("filelock")
    dataset = open_dataset(far)
    blobs = [shard.blob for shard in dataset.records.store.shards]
    order = ShardOrder(dataset.records.starts, 1, 0)
    wanted = crops(open_dataset(folder), range(20), order=order)
    limit = sum(sorted(blob.size for blob in blobs)[-2:])
    cache = dataset.records.store.cache = ShardCache(tmp_path / "copies", limit)
    most = 0
    for step, expected in enumerate(wanted):
        (got,) = crops(dataset, [step], order=order)
        cache.wait()
        most = max(most, sum(path.stat().st_size for path in cache.folder.glob("*")))
        assert same(got, expected), step
    assert 0 < most <= limit
    held = [blob for blob in blobs if not cache.nearest(blob).remote]
    assert 1 <= len(held) <= 2
    copy = Path(cache.nearest(held[0]).address)
    assert copy.read_bytes() == held[0].read(0, held[0].size)
    for path in cache.folder.glob("*.tar"):  # read from the copies: damage there is met
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(InputError, match=r"is not at byte"):
        crops(open_dataset_with(cache, far), range(20))


def open_dataset_with(cache, address):
    dataset = open_dataset(address)
    dataset.records.store.cache = cache
    return dataset


def test_the_least_recently_used_copy_makes_way_and_what_is_too_large_is_never_copied(far, tmp_path):
    pytest.importorskip("filelock")
    blobs = [shard.blob for shard in open_dataset(far).records.store.shards]
    cache = ShardCache(tmp_path / "copies", sum(sorted(blob.size for blob in blobs)[-2:]))
    for blob in blobs[:2]:
        cache.copy([blob])
    os.utime(cache.nearest(blobs[1]).address, (1, 1))
    cache.copy([blobs[2]])
    assert [cache.nearest(blob).remote for blob in blobs] == [False, True, False]
    small = ShardCache(tmp_path / "none", 1000)
    small.copy(blobs)
    assert not list(small.folder.glob("*.tar"))


def test_only_one_process_copies(far, tmp_path):
    filelock = pytest.importorskip("filelock")
    blobs = [shard.blob for shard in open_dataset(far).records.store.shards]
    cache = ShardCache(tmp_path / "copies", 10**9)
    cache.folder.mkdir()
    with filelock.FileLock(cache.folder / "lock"):
        cache.copy(blobs)
        assert not list(cache.folder.glob("*.tar"))
    cache.copy(blobs)
    assert len(list(cache.folder.glob("*.tar"))) == 3


def test_passing_faults_of_the_network_are_tried_again(far, monkeypatch):
    import fsspec

    monkeypatch.setattr(storage.time, "sleep", lambda seconds: waits.append(seconds))
    waits: list[float] = []
    memory = fsspec.filesystem("memory")
    real, faults = memory.cat_file, [OSError("reset"), TimeoutError("slow")]

    def flaky(*arguments, **named):
        if "start" in named and faults:
            raise faults.pop()
        return real(*arguments, **named)

    monkeypatch.setattr(memory, "cat_file", flaky)
    assert open_dataset(far)[0].name == "p0" and waits == [0.5, 1.0]
    faults += [OSError("reset")] * 10
    with pytest.raises(InputError, match=r"shard-000000\.tar cannot be read: reset"):
        open_dataset(far, strict=False)[1]


def test_a_missing_package_or_protocol_is_one_line(monkeypatch):
    storage._protocol.cache_clear()
    with pytest.raises(InputError, match=r"nosuch:// is no kind of address"):
        open_dataset("nosuch://bucket/set")
    with pytest.raises(InputError, match=r"memory://nothing/at/all.*file not found; check the address"):
        open_dataset("memory://nothing/at/all")
    monkeypatch.setattr("digseg_engine.extras.find_spec", lambda module: None)
    storage._protocol.cache_clear()
    with pytest.raises(MissingPackageError, match=r"needs the packages fsspec, filelock.*\[remote\]"):
        open_dataset("memory://bucket/set")
    storage._protocol.cache_clear()


# Indexes


def test_an_index_is_kept_and_made_anew_when_the_shard_changes(shards, tmp_path, monkeypatch):
    path = shards / "shard-000000.tar"
    written = index_of(find_blob(str(path)))
    assert written == scan(find_blob(str(path)))  # what --pack wrote beside it is what a walk finds
    Path(f"{path}{SUFFIX}").unlink()
    monkeypatch.setattr("digseg_engine.data.shard_index.scan", lambda blob: pytest.fail("scanned again"))
    assert index_of(find_blob(str(path))) == written
    monkeypatch.undo()
    monkeypatch.setenv("DIGSEG_CACHE", str(tmp_path / "cache"))
    rewritten(path, lambda members: members[2:])
    assert [place.name for place in index_of(find_blob(str(path)))] == [place.name for place in written[2:]]
    for text in (
        "no json",
        "[]",
        '{"format": "other"}',
        json.dumps({"format": "digseg.shard/1", "bytes": 1, "members": []}),
    ):
        Path(f"{path}{SUFFIX}").write_text(text)
        os.utime(path)
        assert len(index_of(find_blob(str(path)))) == len(written) - 2


def test_an_index_of_other_contents_is_found_out(shards):
    path = shards / "shard-000000.tar"
    index = Path(f"{path}{SUFFIX}").read_text()
    rewritten(path, lambda members: [*members[2:], *members[:2]])
    Path(f"{path}{SUFFIX}").write_text(index)
    with pytest.raises(
        InputError, match=r"shard-000000\.tar: p0.*is not at byte \d+; the shard is damaged, or was changed"
    ):
        list(open_dataset(shards, strict=False))


# Faults


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: [x for x in m if x[0] != "p1.mask.png"], r"shard-000000\.tar: p1\.png has no mask; expected .*p1\.mask\.png"),
        (lambda m: [*m, ("p1.jpg", b"x")], r"shard-000000\.tar: p1\.jpg and p1\.png are two pictures of one sample"),
        (lambda m: [*m, ("p1.seg.png", b"x")], r"shard-000000\.tar: p1\.seg\.png and p1\.mask\.png are two masks of one sample"),
        (lambda m: [*m, ("p9.png", b"x"), ("p9.mask.png", b"x")], r"sample p9 is in .*shard-00000\d\.tar too"),
        (lambda m: [(n, b"none" if n == "p0.mask.png" else b) for n, b in m], r"tar: p0\.mask\.png.*is not a picture"),
        (lambda m: [(n, b[:900] if n == "p0.png" else b) for n, b in m], r"shard-000000\.tar: p0\.png cannot be decoded"),
        (lambda m: [(n, b"" if n == "p0.png" else b) for n, b in m], r"shard-000000\.tar: p0\.png is empty \(0 bytes\)"),
    ],
)  # fmt: skip
def test_a_bad_sample_is_named(shards, change, said):
    rewritten(shards / "shard-000000.tar", change)
    with pytest.raises(InputError, match=said):
        list(open_dataset(shards))


def test_a_damaged_shard_is_named(shards):
    path = shards / "shard-000001.tar"
    Path(f"{path}{SUFFIX}").unlink()
    body = path.read_bytes()
    places = scan(find_blob(str(path)))
    cases = {
        r"is no whole tar file: .* after member p": body[: places[-1].offset + 40],
        r"ends without an end mark": body[: places[3].offset - 512],
        r"holds no header where one is due, at byte \d+ after member p": body.replace(
            places[4].name.encode(), b"x" * 4, 1
        ),
        r"is no whole tar file: .* at its beginning": b"x" * 2000,
    }
    for said, damaged in cases.items():
        path.write_bytes(damaged)
        with pytest.raises(
            InputError, match=r"shard-000001\.tar (" + said + "|is damaged or cut short: it " + said + ")"
        ):
            open_dataset(shards)
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "b.png"
        tar.addfile(link)
    with pytest.raises(InputError, match=r"shard-000001\.tar: member a\.png is a link"):
        open_dataset(shards)
    with tarfile.open(path, "w:gz") as tar:
        pass
    with pytest.raises(InputError, match=r"is no whole tar file.*not compressed"):
        open_dataset(shards)


def test_missing_classes_and_shards_are_said(shards, tmp_path):
    (shards / "classes.json").rename(tmp_path / "classes.json")
    with pytest.raises(InputError, match=r"classes\.json not found; expected a classes\.json beside the shards"):
        open_dataset(str(shards / "*.tar"))
    with pytest.raises(InputError, match=r"nothing-\*\.tar means no file"):
        open_dataset(str(shards / "nothing-*.tar"))
    (tmp_path / "classes.json").rename(shards / "classes.json")
    with pytest.raises(InputError, match=r"nothing-1\.tar: file not found"):
        open_dataset(str(shards / "nothing-{1..2}.tar"))


def test_masks_without_pictures_are_a_problem(shards):
    rewritten(shards / "shard-000000.tar", lambda members: [m for m in members if m[0] != "p2.png"])
    problems = survey(open_dataset(shards, strict=False)).problems
    assert len(problems) == 1 and "p2.mask.png has no picture" in problems[0]
    assert shard_cache.LIMIT > 0
