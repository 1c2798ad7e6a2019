"""Settings: what the environment says, checked; and the page that describes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from docs.settings_table import settings_document
from service.settings import Settings


def test_the_configuration_page_is_what_the_settings_say() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text() == settings_document(), "run: make docs"


def test_the_environment_sets_what_flags_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TITOK_PORT", "9000")
    monkeypatch.setenv("TITOK_MAX_IMAGES", "5")
    monkeypatch.setenv("TITOK_API_KEYS", " one,two ,")
    settings = Settings(port=9001)
    assert (settings.port, settings.max_images) == (9001, 5)
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]


def test_keys_are_never_shown() -> None:
    assert "secret" not in repr(Settings(api_keys="secret"))  # type: ignore[arg-type]


def test_a_request_must_fit_into_the_queue() -> None:
    with pytest.raises(ValidationError, match="max_images 64 is more than queue_images 10"):
        Settings(queue_images=10)
