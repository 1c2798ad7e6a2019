# syntax=docker/dockerfile:1
# For an NVIDIA GPU: docker build --build-arg TORCH_INDEX=https://pypi.org/simple . (PyPI has the CUDA 13 build)
# Without a network: docker build --build-context wheels=FOLDER --build-arg PIP_NO_INDEX=1 . (docs/deployment.md)
ARG PYTHON=3.12-slim-bookworm

FROM scratch AS wheels

FROM python:${PYTHON} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG PIP_NO_INDEX=0
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/titok
COPY requirements/image.lock requirements/cuda.lock requirements/
RUN --mount=type=bind,from=wheels,target=/wheels \
    /opt/titok/bin/pip install --find-links /wheels --extra-index-url "${TORCH_INDEX}" \
    -r requirements/image.lock -c requirements/cuda.lock
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY service service
# Headers, programs and tests of packages are not needed to run them.
RUN --mount=type=bind,from=wheels,target=/wheels \
    PIP_FIND_LINKS=/wheels /opt/titok/bin/pip install --no-deps . \
    && /opt/titok/bin/pip uninstall --yes pip \
    && find /opt/titok -type d \( -name tests -o -name test -o -path '*/torch/include' \) -prune -exec rm -rf {} + \
    && find /opt/titok -path '*/torch/bin/*' ! -name torch_shm_manager -delete

FROM python:${PYTHON}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="titok-service" \
      org.opencontainers.image.description="Images to 32 tokens and back, over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin titok \
    && install -d -o titok -g 0 -m 0775 /weights \
    && pip uninstall --yes --root-user-action=ignore pip
COPY --from=build /opt/titok /opt/titok
ENV HF_HOME=/weights \
    PATH=/opt/titok/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TITOK_HOST=0.0.0.0
VOLUME /weights
USER 10001
EXPOSE 8000 8001
HEALTHCHECK --interval=15s --timeout=10s --start-period=600s --retries=3 CMD ["titok", "health"]
ENTRYPOINT ["titok"]
CMD ["serve"]
