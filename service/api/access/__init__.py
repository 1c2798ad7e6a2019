"""Who may call what, and how much: API keys, their roles, and rates by key.

::

    request ── keys.py   which key is this? ──── none, unknown ──> 401
            ── roles.py  does it have the role? ────────── no ──> 403
            ── rates.py  is there room in its rate? ────── no ──> 429
"""
