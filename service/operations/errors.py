"""Why the models served cannot answer a request.

::

    OperationError
    ├── ModelsNotLoaded    the models are still being loaded
    ├── NotServed          the service runs without a generator, or does not know the codebook
    ├── UnknownModel       another model's name
    ├── UnknownClass       a class id or name that the generator does not know
    ├── RevisionMismatch   tokens of another revision
    ├── TooManyImages      more images than one request may have
    └── InvalidArgument    an ambiguous class name, or a seed out of range
"""

from __future__ import annotations

from service.errors import ServiceError


class OperationError(ServiceError):
    """Base class of the errors of this package."""


class ModelsNotLoaded(OperationError):
    """The models are still being loaded, or could not be."""


class NotServed(OperationError):
    """The service runs without a generator, or does not know the tokenizer's codebook."""


class UnknownModel(OperationError):
    """The name of a model that is not served."""


class UnknownClass(OperationError):
    """A class id or name that the generator was not trained on."""


class RevisionMismatch(OperationError):
    """Tokens of another revision of the tokenizer."""


class TooManyImages(OperationError):
    """More images than one request may have."""


class InvalidArgument(OperationError):
    """A value that is well-formed but has no meaning for the models served."""
