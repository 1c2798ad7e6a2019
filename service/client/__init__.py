"""Python client of a TiTok service. Requires httpx only; Pillow and NumPy are optional.

::

    from titok_client import TiTokClient  # in the service's repository: from service.client

    with TiTokClient("http://127.0.0.1:8000") as titok:
        code = titok.encode("photo.jpg").code  # a path, bytes, a Pillow image, an array, or a list of them
        titok.decode(code).save("back.png")
        titok.generate("cat", seed=7)[0].picture.save("cat.png")
"""

from .asynchronous import AsyncTiTokClient
from .blocking import TiTokClient
from .connection import Progress
from .errors import (
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
from .images import ImageSource
from .results import (
    Encoded,
    EncodedLatents,
    Generated,
    GeneratorInfo,
    ImageClass,
    Latents,
    Limits,
    Mixed,
    Model,
    Picture,
    Reconstruction,
    Step,
    Tokenized,
)
from .retries import RetryPolicy

__all__ = [
    "AsyncTiTokClient",
    "BadRequest",
    "ConnectionFailed",
    "ContentTooLarge",
    "DeadlineExceeded",
    "Encoded",
    "EncodedLatents",
    "Generated",
    "GeneratorInfo",
    "ImageClass",
    "ImageSource",
    "InvalidRequest",
    "Latents",
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
