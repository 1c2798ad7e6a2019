"""The tokenizer and the generator that are served, and checks that a request means them."""

from __future__ import annotations

import re
from functools import cached_property

from service.engine import Engine
from service.errors import ErrorDetail
from service.inference.model_info import GeneratorInfo, ModelInfo
from service.operations.classes import ClassIndex
from service.operations.errors import ModelsNotLoaded, NotServed, RevisionMismatch, UnknownModel


class ServedModels:
    """What is known of the models. ``loaded`` is None until the engine has started for the first time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.loaded: ModelInfo | None = None

    def set_model_info(self, info: ModelInfo) -> None:
        """Called by the engine when its models are loaded."""
        self.loaded = info

    @property
    def info(self) -> ModelInfo:
        """The models served. Raises ``ModelsNotLoaded`` with the reason."""
        if self.loaded is None:
            raise ModelsNotLoaded(f"No models are loaded yet: {self._engine.state.reason}.")
        return self.loaded

    @property
    def generator(self) -> GeneratorInfo:
        """The generator served. Raises ``NotServed`` if there is none."""
        if self.info.generator is None:
            raise NotServed(f"No generator is served for {self.info.name}.")
        return self.info.generator

    @cached_property
    def classes(self) -> ClassIndex:
        """The generator's classes, by name. Raises ``NotServed`` if there is no generator."""
        return ClassIndex(self.generator.class_names, model=self.info.name)

    def check(self, name: str | None, revision: str | None = None) -> None:
        """Refuses another tokenizer's name or revision. Raises ``UnknownModel`` or ``RevisionMismatch``."""
        info = self.info
        if name is not None and name != info.name:
            raise UnknownModel(
                f"No model {name[:80]!r} is served here; {info.name} is.",
                errors=[ErrorDetail(pointer="/model", detail="not served", value=name[:80], expected=info.name)],
            )
        if revision is not None and _without_preprocessing(revision) != _without_preprocessing(info.revision):
            raise RevisionMismatch(
                f"The tokens are of revision {revision[:80]!r}; {info.name} is served in revision {info.revision}.",
                errors=[
                    ErrorDetail(pointer="/revision", detail="not served", value=revision[:80], expected=info.revision)
                ],
            )


def _without_preprocessing(revision: str) -> str:
    """What decides the meaning of tokens: weights and precision. How images were decoded before does not."""
    return re.sub(r"-p\w+", "", revision, count=1)
