"""The fuzzers for seconds; ``python -m tests.fuzz`` runs them for longer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import Server, end, start_server
from tests.fuzz.__main__ import packed_codes
from tests.fuzz.decoder_process import Crashed, Decoder
from tests.fuzz.hostile import fuzz_bombs, fuzz_split_headers
from tests.fuzz.images import fuzz_decoding, fuzz_http
from tests.fuzz.requests import KEY, SETTINGS, fuzz_requests
from tests.fuzz.seeds import seeds
from tests.fuzz.structure import numbers_of, parts_of, with_valid_checksums

SEED = 20_261
MiB = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """With the limits and the key of a fuzzing run."""
    started = start_server(**SETTINGS)
    started.wait_until_ready()
    yield started
    end(started)


def test_damaged_images_become_images_or_problems_and_leak_nothing(tmp_path: Path) -> None:
    tally = fuzz_decoding(400, first_seed=SEED, keep=tmp_path)

    assert tally.failures == []
    assert (tally.images, tally.crashes) == (400, 0)
    assert {name.split()[0] for name in tally.outcomes} >= {"200", "400", "413"}
    assert {"JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"} <= set(tally.formats)
    assert tally.resident[-1] - tally.resident[0] < 16 * MiB


def test_a_process_that_ends_is_logged_and_replaced() -> None:
    with Decoder() as decode:
        assert decode(seeds()["png-RGB"]).name == "PNG"
        assert decode._process is not None
        decode._process.kill()
        decode._process.wait(10)
        with pytest.raises(Crashed, match="-9"):
            decode(seeds()["png-RGB"])
        assert decode(seeds()["jpeg"]).name == "JPEG"


@pytest.mark.parametrize("name", seeds())
def test_the_structure_of_every_seed_is_known(name: str) -> None:
    data = seeds()[name]

    parts = parts_of(data)
    assert len(parts) > 1
    assert len(numbers_of(data)) > 2
    assert all(0 <= part.start < part.end <= len(data) for part in parts)
    assert with_valid_checksums(data) == data


def test_a_checksum_is_made_right_again() -> None:
    data = bytearray(seeds()["png-RGB"])
    data[40] ^= 1  # in the pixels

    repaired = with_valid_checksums(bytes(data))

    assert repaired != data
    assert repaired[:41] == data[:41]


def test_damaged_images_and_codes_have_the_same_result_over_http(server: Server) -> None:
    with httpx.Client(base_url=server.url, headers={"X-API-Key": KEY}, timeout=60) as client:
        statuses, failures = fuzz_http(client, 60, first_seed=SEED, packed_codes=packed_codes(client))

    assert failures == []
    assert statuses.total() >= 120
    assert {"POST /v1/encode 200", "POST /v1/encode 400", "POST /v1/decode 200", "POST /v1/decode 422"} <= set(statuses)


def test_json_bombs_are_refused_and_the_service_answers_meanwhile(server: Server) -> None:
    with httpx.Client(base_url=server.url, headers={"X-API-Key": KEY}, timeout=60) as client:
        statuses, failures = fuzz_bombs(client, 24, first_seed=SEED, size=4 * MiB)

    assert failures == []
    assert statuses.total() == 24


def test_requests_whose_headers_arrive_in_pieces_are_answered(server: Server) -> None:
    url = httpx.URL(server.url)
    statuses, failures = fuzz_split_headers(
        (url.host, url.port or 80), 24, first_seed=SEED, image=seeds()["jpeg"], key=KEY
    )

    assert failures == []
    assert statuses == {"POST /v1/encode 200": 48}


def test_the_service_does_what_its_openapi_document_says(server: Server, tmp_path: Path) -> None:
    outcome = fuzz_requests(server.url, examples=4, first_seed=SEED, phases="examples,fuzzing", folder=tmp_path)

    assert outcome.failures == [], (tmp_path / "schemathesis.log").read_text()[-4000:]
    assert outcome.requests > 60
    operations = {name.rpartition(" ")[0] for name in outcome.statuses}
    assert {"POST /v1/encode", "POST /v1/generate", "GET /v1/images/{tokenizer}/{code}.{extension}"} <= operations
