"""``titok serve``: opens the ports, says where, and runs the service in one process or in several."""

from __future__ import annotations

import logging
import os

from service.listening import listen, url
from service.process import begin_process, hold_signals, limit_spinning
from service.settings import Settings
from service.version import VERSION

__all__ = ["serve"]

log = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT, then drains. Gives the exit status."""
    hold_signals()  # until there is an event loop that knows what to do with them
    inline = settings.workers == "inline"
    name = "front end 0" if inline else "supervisor"
    begin_process(name, log_level=settings.log_level, log_format=settings.log_format)
    _log_settings(settings)
    try:
        public, admin = listen(settings.host, settings.port), listen(settings.host, settings.admin_port)
    except OSError as error:
        log.error("cannot listen: %s", error)  # noqa: TRY400  the message is all there is to say
        return 1
    address = url(public, settings.host)
    metrics = f"{url(admin, settings.host)}/metrics"
    print(f"TiTok is at {address}  (API: {address}/docs, metrics: {metrics})", flush=True)
    if inline:
        limit_spinning()
        from service.single_process import serve_inline  # brings torch, which the supervisor does without

        return serve_inline(settings, public, admin)
    from service.supervisor import supervise

    return supervise(settings, public, admin)


def _log_settings(settings: Settings) -> None:
    for name in sorted(os.environ):
        if name.startswith("TITOK_") and name.removeprefix("TITOK_").lower() not in Settings.model_fields:
            log.warning("%s is no setting of this version, and does nothing (docs/configuration.md)", name)
    log.info("titok-service %s, %s", VERSION, ", ".join(settings.given) or "every setting at its default")
