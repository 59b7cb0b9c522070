"""The floor: which passes each stage needs by its design, and that a pass does the work it is timed for."""

from __future__ import annotations

from contextlib import closing
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from benchmarks import floor as floors
from benchmarks.floor import Design, Floor, Passes, floor
from benchmarks.floor_calls import AEGIS256, SUITES, XCHACHA20, Buffers, Cost, Suite, measure
from benchmarks.stores import store_url
from broker.blobs.open import open_blobs
from protocol.cipher import Suite as Product
from protocol.messages import Kind, hashes_plaintext

NAMES = {each.name for each in fields(Passes)}


def test_what_each_stage_has_to_do_over_a_directory() -> None:
    design = Design()
    assert design.load() == Passes(read=1, decrypt=1, hash=2, copy=1)
    assert design.form() == Passes(read=2, decrypt=2, subtract=2, norm=1, encrypt=1, hash=2, write=1)
    assert design.upload() == Passes()
    assert design.admission() == Passes(read=1, decrypt=1, hash=2, norm=1)
    assert design.merge(4) == Passes(read=6, decrypt=6, axpy=5, average=1, encrypt=2, hash=4, write=2)


def test_a_filter_that_measures_nothing_looks_at_the_base_once() -> None:
    assert Design(measuring=False).form() == Passes(read=1, decrypt=1, subtract=1, encrypt=1, hash=2, write=1)


def test_a_suite_whose_tags_suffice_hashes_no_plaintext_but_a_new_models() -> None:
    aegis = Design(suite=AEGIS256)
    assert [aegis.load().hash, aegis.form().hash, aegis.admission().hash, aegis.merge(4).hash] == [1, 1, 1, 3]


@pytest.mark.parametrize("suite", SUITES.values(), ids=list(SUITES))
def test_plaintext_is_hashed_where_the_product_hashes_it(suite: Suite) -> None:
    design, named = Design(suite=suite), Product.named(suite.name)
    update, model, average = (hashes_plaintext(kind, named) for kind in (Kind.UPDATE, Kind.VERSION, Kind.STATE))
    assert design.form().hash == design.admission().hash == 1 + update
    assert design.merge(4).hash == 2 + model + average


def test_a_remote_store_is_asked_once_for_everything_and_what_it_gave_is_kept() -> None:
    design = Design(remote=True)
    assert design.load() == Passes(get=1, keep=1, decrypt=1, hash=1, copy=1)
    assert design.upload() == Passes(read=1, put=1)
    assert design.admission() == Passes(get=1, keep=1, decrypt=1, hash=1, norm=1)
    merged = design.merge(2)
    assert (merged.write, merged.put, merged.keep, merged.read, merged.get) == (0, 2, 2, 4, 0)


def test_a_version_is_every_sites_stages_and_one_merge() -> None:
    design = Design()
    site = design.load() + design.form() + design.upload() + design.admission()
    assert design.version(3) == site + site + site + design.merge(3)


def test_the_floor_is_the_processors_or_the_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "LANES", 2)
    prices = dict.fromkeys(NAMES, Cost(seconds=5.0, cpu=1.0))
    assert floor(Passes(decrypt=6), prices, 500_000_000) == Floor(wall=1.5, cpu=3.0, raw=0.0)
    assert floor(Passes(decrypt=6, write=1), prices, 10**9) == Floor(wall=5.0, cpu=7.0, raw=0.0)
    assert floor(Passes(decrypt=6, get=1, put=1), prices, 10**9) == Floor(wall=5.0, cpu=8.0, raw=10.0)


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_a_suite_encrypts_and_decrypts_the_record(suite: Suite) -> None:
    buffers = Buffers(suite.overhead)
    encrypt, decrypt = suite.calls(buffers)
    encrypt()
    assert any(buffers.sealed[-suite.overhead :])
    decrypt()
    np.testing.assert_array_equal(buffers.out, buffers.record)
    buffers.sealed[1000] ^= 1
    with pytest.raises(RuntimeError, match="refuses"):
        decrypt()


def test_every_pass_of_the_design_has_a_price(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    local = measure(work, XCHACHA20, size=1 << 20)
    with store_url("s3", tmp_path) as url, closing(open_blobs(url)) as store:
        remote = measure(work, XCHACHA20, url=url, size=1 << 20)
        assert list(store.list("")) == []
    assert (set(local), set(remote)) == (NAMES - {"get", "put"}, NAMES)
    assert min(cost.seconds for cost in remote.values()) > 0
    assert local["copy"].cpu < local["decrypt"].cpu
    assert list(work.iterdir()) == []
