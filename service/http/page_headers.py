"""Security headers of HTML pages: content security policy, framing, permissions, referrer."""

from __future__ import annotations

from collections.abc import Mapping

# No page uses sensors, devices or anything that identifies a person.
_PERMISSIONS = ", ".join(
    f"{feature}=()"
    for feature in (
        *("accelerometer", "browsing-topics", "camera", "display-capture", "geolocation", "gyroscope", "magnetometer"),
        *("microphone", "midi", "payment", "publickey-credentials-get", "usb"),
    )
)
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}


def page_headers(policy: Mapping[str, str]) -> dict[str, str]:
    """Headers of a page and of its files. ``policy``: directives of its Content-Security-Policy that replace or extend those
    of every page.
    """
    directives = {**_POLICY, **policy}
    return {
        "Content-Security-Policy": "; ".join(f"{directive} {sources}" for directive, sources in directives.items()),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": _PERMISSIONS,
        "Referrer-Policy": "no-referrer",
    }
