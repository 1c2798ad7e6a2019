"""Settings: what the environment says, checked; and the page that describes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from docs.settings_table import settings_document
from service.cli.options import load_settings
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


def test_empty_variables_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(f"TITOK_{name.upper()}", "")
    settings = Settings()
    assert settings.given == []
    assert {name: getattr(settings, name) for name in Settings.model_fields} == {
        name: field.get_default() for name, field in Settings.model_fields.items()
    }
    assert load_settings(host="", tokenizer="").given == []  # flags of unset shell variables


@pytest.mark.parametrize("given", ["proxy.example", "10.0.0.1/8", "10.0.0.0/99", "1.2.3"])
def test_a_trusted_proxy_is_an_address_or_a_network(given: str) -> None:
    with pytest.raises(ValidationError, match="trusted_proxies"):
        Settings(trusted_proxies=given)  # type: ignore[arg-type]
    assert Settings(trusted_proxies="10.0.0.0/8, ::1").trusted_proxies == ("10.0.0.0/8", "::1")  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["titok", "/titok/", "/", "/a b", "https://x/titok"])
def test_a_root_path_begins_with_a_slash_and_ends_without_one(given: str) -> None:
    with pytest.raises(ValidationError, match="root_path"):
        Settings(root_path=given)


def test_keys_are_never_shown() -> None:
    assert "secret" not in repr(Settings(api_keys="secret"))  # type: ignore[arg-type]


def test_a_request_must_fit_into_the_queue() -> None:
    with pytest.raises(ValidationError, match="max_images 64 is more than queue_images 10"):
        Settings(queue_images=10)
