# docker build -t lookalike .
#
# Build arguments:
#   TORCH_INDEX  take torch and torchvision from this package index instead of the default one, e.g.
#                https://download.pytorch.org/whl/cpu for an image without CUDA (2 GB instead of 6)
#   BAKE_MODEL, BAKE_WEIGHTS
#                put these weights into the image, e.g. resnet50 and IMAGENET1K_V1; without them the
#                service downloads its weights into the volume at the first start
ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS build
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1
RUN python -m venv /opt/venv && /opt/venv/bin/python -m pip install --quiet --no-cache-dir 'uv>=0.8'
WORKDIR /build
COPY docker/requirements.lock docker/install-dependencies ./
ARG TORCH_INDEX=
RUN ./install-dependencies requirements.lock "$TORCH_INDEX"
ARG BAKE_MODEL=resnet50
ARG BAKE_WEIGHTS=
COPY docker/bake-weights ./
RUN ./bake-weights "$BAKE_MODEL" "$BAKE_WEIGHTS" /opt/torch
COPY pyproject.toml README.md LICENSE ./
COPY app app
RUN /opt/venv/bin/uv pip install --quiet --python /opt/venv/bin/python --no-deps . \
    && /opt/venv/bin/uv pip uninstall --quiet --python /opt/venv/bin/python uv

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/torch /opt/torch
COPY --from=build /opt/venv /opt/venv
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin lookalike \
    && install --directory --owner lookalike --group lookalike /data \
    # Without weights in the image, torch's home is the volume, so that what is downloaded stays.
    && { [ -e /opt/torch/hub ] || { rmdir /opt/torch && ln -s /data /opt/torch; }; }
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/data \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TORCH_HOME=/opt/torch \
    LOOKALIKE_HOST=0.0.0.0 \
    LOOKALIKE_DATA_DIR=/data \
    LOOKALIKE_CACHE_DIR=/data/cache
USER lookalike
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=15s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('LOOKALIKE_PORT', '8000')}/health/ready\", timeout=14)"]
ENTRYPOINT ["lookalike"]
CMD ["serve"]
