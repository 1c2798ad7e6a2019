"""Content negotiation (RFC 9110): ``Accept``, ``Content-Type`` and ``If-None-Match``."""

from __future__ import annotations

from collections.abc import Sequence

from service.errors import ErrorDetail
from service.http.problems import NotAcceptable, Problem, UnsupportedMediaType


def media_type_of(content_type: str | None) -> str:
    """The media type of a ``Content-Type`` header, lower case, without parameters; empty if there is none."""
    return (content_type or "").partition(";")[0].strip().lower()


def unsupported_content_type(media_type: str, *, detail: str, advice: str, expected: Sequence[str]) -> Problem:
    """The error for a body's media type (empty: no Content-Type); ``advice`` says how to send the body instead."""
    if media_type == "application/x-www-form-urlencoded":
        advice += (
            " curl -d declares a form: for JSON add -H 'Content-Type: application/json', for a file use --data-binary."
        )
    return UnsupportedMediaType(
        f"Content-Type is {media_type[:80] or 'absent'}. {advice}",
        errors=[
            ErrorDetail(
                pointer="header/Content-Type",
                detail=detail,
                value=media_type[:80] or None,
                expected=", ".join(expected),
            )
        ],
    )


def require_json(content_type: str | None) -> None:
    """Raises ``UnsupportedMediaType`` for a ``Content-Type`` header other than JSON."""
    media_type = media_type_of(content_type)
    if media_type != "application/json":
        raise unsupported_content_type(
            media_type, detail="not JSON", advice="Send application/json.", expected=["application/json"]
        )


def holds_etag(if_none_match: str | None, etag: str) -> bool:
    """Whether an ``If-None-Match`` header names the entity tag, so that 304 is the answer."""
    return etag in (tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(","))


def choose_media_type(accept: str | None, offers: Sequence[str]) -> str:
    """The offer with the highest quality in ``Accept``, the first of equals (section 12.5.1). Raises ``NotAcceptable``."""
    if not accept or accept == "*/*":
        return offers[0]
    ranges = _parse(accept)
    best, best_quality = None, 0.0
    for offer in offers:
        quality = _quality(offer, ranges)
        if quality > best_quality:
            best, best_quality = offer, quality
    if best is None:
        raise NotAcceptable(
            f"Accept is {accept!r}; the response is available as {', '.join(offers)}.",
            errors=[
                ErrorDetail(
                    pointer="header/Accept", detail="allows no offered type", value=accept, expected=", ".join(offers)
                )
            ],
        )
    return best


def _parse(accept: str) -> list[tuple[str, float]]:
    ranges = []
    for item in accept.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                try:
                    quality = min(max(float(value), 0.0), 1.0)
                except ValueError:
                    quality = 0.0
        if name:
            ranges.append((name, quality))
    return ranges


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The quality of the most specific range that matches the offer; 0 if none does."""
    for pattern in (offer, offer.partition("/")[0] + "/*", "*/*"):
        for name, quality in ranges:
            if name == pattern:
                return quality
    return 0.0
