"""Fuzzing: images that were damaged on purpose, and requests made from the OpenAPI document.

::

    seeds.py ──> structure.py ──> mutations.py ──> images.py ── pipe ──> decoder.py, a process of its own
    real files   where what is    Hypothesis          └── a sample ──> POST /v1/encode, /v1/decode  ──┐
                                                                                                   a real server
    /openapi.json ──> Schemathesis (schemathesis.toml, hooks.py) ── requests.py ────────────────────┘

``python -m tests.fuzz`` is the long run; ``test_fuzz.py`` a short one.
"""
