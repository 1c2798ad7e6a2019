"""Codes asked for by digest; the device is a fake that gives the mean brightness as every id."""

from __future__ import annotations

import hashlib

import pytest

from tests.service.api.test_overload import PNG, HeldDevice, picture
from tests.service.application import service

pytestmark = pytest.mark.anyio

UNKNOWN = "0" * 64


def digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


@pytest.fixture
def device() -> HeldDevice:
    device = HeldDevice()
    device.release.set()
    return device


async def test_what_was_encoded_is_known_by_its_digest_and_the_rest_is_missing(device: HeldDevice) -> None:
    seven, eight = picture(7), picture(8)
    async with service(device) as client:
        for image in (seven, eight):
            await client.post("/v1/encode", content=image, headers=PNG)
        asked = [digest(eight), UNKNOWN, digest(seven).upper()]
        answer = (await client.post("/v1/codes:lookup", json={"sha256": asked})).json()
        assert [(item["sha256"], item["tokens"][0]) for item in answer["data"]] == [
            (digest(eight), 8),
            (digest(seven), 7),
        ]
        assert answer["missing"] == [UNKNOWN]
        one = await client.get(f"/v1/codes/{digest(seven)}")
        assert one.json()["code"] == "BwcHBw"
        assert (await client.get(f"/v1/codes/{UNKNOWN}")).status_code == 404


async def test_with_a_scope_each_key_knows_only_what_it_has_sent(device: HeldDevice) -> None:
    image = picture(7)
    async with service(device, cache_scope="key", api_keys="ann,bob") as client:
        ann, bob = ({"X-API-Key": key} for key in ("ann", "bob"))
        await client.post("/v1/encode", content=image, headers={**PNG, **ann})
        assert (await client.get(f"/v1/codes/{digest(image)}", headers=ann)).status_code == 200
        assert (await client.get(f"/v1/codes/{digest(image)}", headers=bob)).status_code == 404
        again = await client.post("/v1/encode", content=image, headers={**PNG, **bob})
        assert again.json()["data"][0]["cached"] is False


@pytest.mark.parametrize("off", [{"lookup": False}, {"cache": "off"}])
async def test_it_can_be_turned_off(device: HeldDevice, off: dict[str, object]) -> None:
    async with service(device, **off) as client:
        assert (await client.get(f"/v1/codes/{UNKNOWN}")).status_code == 404
        assert (await client.post("/v1/codes:lookup", json={"sha256": [UNKNOWN]})).status_code == 404


async def test_what_is_no_digest_is_refused_with_its_place(device: HeldDevice) -> None:
    async with service(device) as client:
        for asked, status, pointer in (
            ([UNKNOWN, "xyz"], 422, "/sha256/1"),
            ([UNKNOWN] * 1001, 413, "/sha256"),
            ([], 422, "/sha256"),
        ):
            answer = await client.post("/v1/codes:lookup", json={"sha256": asked})
            assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (status, pointer)
        assert (await client.get("/v1/codes/short")).status_code == 422
