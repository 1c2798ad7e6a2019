"""The cache of rendered images holds what was used last, within its bytes."""

from __future__ import annotations

from service.operations.rendered_images import RenderedImageCache


def test_what_was_used_last_stays_and_the_bytes_are_never_more_than_the_room() -> None:
    cache = RenderedImageCache(10)
    cache.put("a", b"1234")
    cache.put("b", b"1234")
    assert cache.get("a") == b"1234"
    cache.put("c", b"123")
    assert cache.get("b") is None
    assert cache.get("a") == b"1234"
    assert cache.currsize == 7


def test_a_file_that_comes_again_is_counted_once() -> None:
    cache = RenderedImageCache(10)
    for file in (b"12345678", b"1234", b"123456"):
        cache.put("a", file)
    assert cache.get("a") == b"123456"
    assert cache.currsize == 6


def test_a_file_larger_than_all_room_drives_nothing_out() -> None:
    cache = RenderedImageCache(10)
    cache.put("a", b"1234")
    cache.put("b", b"12345678901")
    assert cache.get("b") is None
    assert cache.get("a") == b"1234"


def test_without_room_nothing_is_kept() -> None:
    cache = RenderedImageCache(0)
    cache.put("a", b"1")
    assert cache.get("a") is None
