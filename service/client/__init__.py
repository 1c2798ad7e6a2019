"""The client: a service's calls as typed functions. Needs httpx alone; Pillow and NumPy only where a caller uses them.

::

    from service.client import TiTokClient

    with TiTokClient("http://127.0.0.1:8000") as titok:
        code = titok.encode("photo.jpg").code            # a path, bytes, a Pillow image, an array, or a list of them
        titok.decode(code).save("back.png")
        titok.generate("cat", seed=7)[0].picture.save("cat.png")
"""

from service.client.asynchronous import AsyncTiTokClient
from service.client.blocking import TiTokClient
from service.client.connection import Progress
from service.client.errors import (
    BadRequest,
    ConnectionFailed,
    ContentTooLarge,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    RevisionMismatch,
    ServiceDeadlineExceeded,
    ServiceFailed,
    ServiceProblem,
    TiTokError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnexpectedAnswer,
    UnsupportedMediaType,
)
from service.client.images import ImageSource
from service.client.results import (
    Encoded,
    Generated,
    GeneratorInfo,
    ImageClass,
    Limits,
    Mixed,
    Model,
    Picture,
    Reconstruction,
    Step,
    Tokenized,
)
from service.client.retrying import RetryPolicy

__all__ = [
    "AsyncTiTokClient",
    "BadRequest",
    "ConnectionFailed",
    "ContentTooLarge",
    "DeadlineExceeded",
    "Encoded",
    "Generated",
    "GeneratorInfo",
    "ImageClass",
    "ImageSource",
    "InvalidRequest",
    "Limits",
    "Mixed",
    "Model",
    "NotFound",
    "Picture",
    "Progress",
    "Reconstruction",
    "RetryPolicy",
    "RevisionMismatch",
    "ServiceDeadlineExceeded",
    "ServiceFailed",
    "ServiceProblem",
    "Step",
    "TiTokClient",
    "TiTokError",
    "Tokenized",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "UnexpectedAnswer",
    "UnsupportedMediaType",
]
