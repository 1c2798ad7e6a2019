"""Authorization: API keys, their roles, and rate limits by key (``authorization.py``).

::

    request ── keys.py, key_store.py  identifies the key ── none, unknown ──> 401
            ── roles.py               roles of the route ─────── missing ──> 403
            ── rate_limiter.py        images of the key ──────── used up ──> 429
"""
