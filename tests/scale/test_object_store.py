"""Object storage by its URL and settings alone: S3's protocol, over HTTP, on the loopback interface."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.kvcache_pages import PAGE, found_in, key, pages
from tests.scale.needs import package
from tests.scale.s3 import Bucket

from infer_accel import errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with Bucket() as running:
        yield running


def open_tier(bucket: Bucket, **options: Any) -> Any:
    package("obstore")
    from obstore.store import S3Store

    from infer_accel.integrations.object_store import ObjectStoreTier

    store = S3Store(
        "pages",
        prefix="a/prefix",
        endpoint=bucket.endpoint,
        region="here",
        access_key_id="a",
        secret_access_key="b",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    times = {"deadline": 20.0, "write_deadline": 20.0, "retry_seconds": 0.01}
    return ObjectStoreTier(store, **{"page_bytes": PAGE, "fingerprint": b"s3", **times, **options})


def wait_until_up(tier: Any) -> None:
    while not tier.stats().up:
        tier.contains([key(0)])
        time.sleep(0.01)


def test_pages_go_to_s3_and_come_back(bucket: Bucket) -> None:
    numbers = list(range(30))
    with open_tier(bucket) as tier:
        assert tier.store([key(n) for n in numbers], pages(numbers)) == 30
        assert tier.store([key(n) for n in numbers], pages(numbers)) == 0
        assert all(found_in(tier, numbers))
        assert found_in(tier, [3, 99]) == [True, False]
    assert len(bucket.objects) == 30
    assert all(name.startswith("/pages/a/prefix/") for name in bucket.objects)
    with open_tier(bucket, fingerprint=b"another model") as tier:
        assert not any(found_in(tier, numbers))


def test_a_flipped_bit_in_s3(bucket: Bucket) -> None:
    with open_tier(bucket) as tier:
        tier.store([key(1)], pages([1]))
        (name,) = bucket.objects
        damaged = bytearray(bucket.objects[name])
        damaged[-5] ^= 4
        bucket.objects[name] = bytes(damaged)
        assert found_in(tier, [1]) == [False]
        assert tier.stats().corrupt_pages == 1
        assert not bucket.objects


def test_s3_that_fails(bucket: Bucket) -> None:
    with open_tier(bucket) as tier:
        tier.store([key(1)], pages([1]))
        for status, code in ((503, "storage.io"), (403, "storage.io"), (507, "storage.io")):
            bucket.status = status
            assert found_in(tier, [1]) == [False]
            assert tier.stats().up == 0
            with pytest.raises(errors.StorageError) as caught:
                tier.store([key(2)], pages([2]))
            assert caught.value.code == code
            bucket.status = None
            wait_until_up(tier)
            assert found_in(tier, [1]) == [True]


def test_s3_that_never_answers(bucket: Bucket) -> None:
    with open_tier(bucket, deadline=0.3, write_deadline=0.3) as tier:
        tier.store([key(1)], pages([1]))
        bucket.may_answer.clear()
        assert found_in(tier, [1, 2]) == [False, False]
        assert tier.stats().late_pages == 2
        bucket.may_answer.set()
        wait_until_up(tier)
        assert found_in(tier, [1]) == [True]


def test_s3_by_url_and_settings(bucket: Bucket) -> None:
    package("obstore")
    from infer_accel.integrations.object_store import ObjectStoreTier

    settings = {
        "endpoint": bucket.endpoint,
        "region": "here",
        "access_key_id": "a",
        "secret_access_key": "b",
        "virtual_hosted_style_request": "false",
    }
    with ObjectStoreTier(
        "s3://pages/below",
        page_bytes=PAGE,
        fingerprint=b"",
        config=settings,
        client_options={"allow_http": True},
    ) as tier:
        tier.store([key(1)], pages([1]))
        assert found_in(tier, [1]) == [True]
    assert next(iter(bucket.objects)).startswith("/pages/below/")


def test_a_directory_is_shared(tmp_path: Path) -> None:
    package("obstore")
    from infer_accel.integrations.object_store import ObjectStoreTier

    with ObjectStoreTier(tmp_path.as_uri(), page_bytes=PAGE, fingerprint=b"") as tier:
        tier.store([key(1)], pages([1]))
    with ObjectStoreTier(tmp_path.as_uri(), page_bytes=PAGE, fingerprint=b"") as tier:
        assert found_in(tier, [1]) == [True]
