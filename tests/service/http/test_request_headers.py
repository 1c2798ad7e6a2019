"""Headers by their names."""

from __future__ import annotations

from service.http.request_headers import header_of


def test_of_equal_names_the_first_counts_and_bytes_are_latin_1() -> None:
    scope = {"headers": [(b"accept", b"first"), (b"x-name", b"\xe9"), (b"accept", b"second")]}
    assert [header_of(scope, name) for name in (b"accept", b"x-name", b"absent")] == ["first", "\xe9", None]


def test_headers_are_those_of_one_request() -> None:
    assert header_of({"headers": [(b"accept", b"one")]}, b"accept") == "one"
    assert header_of({"headers": []}, b"accept") is None
