"""The deadline of a request, from the setting and from the header."""

from __future__ import annotations

import time

import pytest
from fastapi import Request

from service.http.deadlines import request_deadline
from service.http.problems import InvalidRequest


def request(**headers: str) -> Request:
    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "headers": pairs})


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, 30.0), ("1500", 1.5), ("1", 0.001), ("9999999999", 30.0), ("0030000", 30.0)]
)
def test_the_header_shortens_the_setting_and_never_extends_it(header: str | None, seconds: float) -> None:
    asked = request() if header is None else request(x_request_timeout_ms=header)
    before = time.monotonic()
    deadline = request_deadline(asked, 30.0)
    assert before + seconds <= deadline <= time.monotonic() + seconds


@pytest.mark.parametrize("header", ["0", "-1", "1.5", "", "soon", "10000000000", "\xb2"])
def test_what_is_not_a_whole_number_of_milliseconds_is_refused(header: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        request_deadline(request(x_request_timeout_ms=header), 30.0)
    assert refused.value.errors[0].pointer == "header/X-Request-Timeout-Ms"
