"""Domain errors become problem documents."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.api.error_table import to_problem
from service.engine import DeviceFailed, EngineError, QueueFull
from service.errors import ErrorDetail, ServiceError
from service.http.problems import InternalError, TooManyRequests
from service.imaging.errors import ImageError, UndecodableImage
from service.operations.errors import OperationError, UnknownClass


def concrete(kind: type[Exception]) -> Iterator[type[Exception]]:
    for one in kind.__subclasses__():
        yield from concrete(one) if one.__subclasses__() else [one]


@pytest.mark.parametrize("kind", [*concrete(ImageError), *concrete(OperationError)])
def test_every_domain_error_has_a_problem_of_its_own(kind: type[ServiceError]) -> None:
    problem = to_problem(kind("what was wrong"))
    assert problem.kind is not InternalError
    assert problem.detail == "what was wrong"


@pytest.mark.parametrize("kind", [kind for kind in concrete(EngineError) if kind is not DeviceFailed])
def test_every_engine_error_but_a_failed_device_has_a_problem_of_its_own(kind: type[EngineError]) -> None:
    error = kind.__new__(kind, "what was wrong")
    if isinstance(error, QueueFull):
        error.retry_after = 3.0
    assert to_problem(error).kind is not InternalError


def test_offending_values_and_extensions_are_kept() -> None:
    detail = ErrorDetail(pointer="/class", detail="unknown", value="tabby")
    document = to_problem(UnknownClass("No such class.", errors=[detail], near_matches=["tabby cat"])).document()
    assert document["errors"] == [detail.document()]
    assert document["near_matches"] == ["tabby cat"]
    assert document["status"] == 404


def test_problems_pass_unchanged_and_other_exceptions_become_internal_errors() -> None:
    problem = TooManyRequests("Full.", retry_after=1)
    assert to_problem(problem) is problem
    cause = ValueError("a bug")
    assert to_problem(cause).kind is InternalError
    assert to_problem(cause).__cause__ is cause
    assert to_problem(UndecodableImage("cut off")).__cause__ is not None
