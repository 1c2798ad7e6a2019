"""``titok serve``: opens the ports, prints their addresses, and runs the service in one or several processes."""

from __future__ import annotations

import logging
import os
import signal

from service.api.access.key_store import load_keys
from service.http.sockets import allow_descriptors, listen, url
from service.processes.process import block_signals, configure_process, limit_spinning
from service.settings import Settings
from service.version import VERSION

log = logging.getLogger(__name__)

_OWN_DESCRIPTORS = 512  # besides those of connections, twice as many because old ones may still be closing


def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT, then drains. Returns the exit status."""
    block_signals()  # until the event loop has handlers
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # also in the processes that are started
    inline = settings.workers == "inline"
    name = "front end 0" if inline else "supervisor"
    configure_process(name, log_level=settings.log_level, log_format=settings.log_format)
    _log_settings(settings)
    try:
        load_keys(settings)
    except (OSError, ValueError) as error:
        log.error("API keys: %s", error)  # noqa: TRY400  no traceback needed
        return 1
    allow_descriptors(2 * settings.max_connections + _OWN_DESCRIPTORS)
    try:
        public, admin = listen(settings.host, settings.port), listen(settings.admin_host, settings.admin_port)
    except (OSError, UnicodeError) as error:  # the latter for a host name that cannot be encoded
        log.error("cannot listen: %s", error)  # noqa: TRY400  no traceback needed
        return 1
    address = url(public, settings.host)
    metrics = f"{url(admin, settings.admin_host)}/metrics"
    print(f"TiTok is at {address}  (API: {address}/docs, metrics: {metrics})\n", end="", flush=True)  # in one piece
    if inline:
        limit_spinning()
        from service.processes.single_process import serve_inline  # imports torch; the supervisor does not

        return serve_inline(settings, public, admin)
    from service.processes.supervisor import supervise

    return supervise(settings, public, admin)


def _log_settings(settings: Settings) -> None:
    for name in sorted(os.environ):
        if name.startswith("TITOK_") and name.removeprefix("TITOK_").lower() not in Settings.model_fields:
            log.warning("%s is not a setting of this version and is ignored (docs/configuration.md)", name)
    log.info("titok-service %s, %s", VERSION, ", ".join(settings.given) or "all settings at their defaults")
