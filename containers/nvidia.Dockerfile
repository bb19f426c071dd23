# `digseg serve` on an NVIDIA GPU by ONNX Runtime's CUDA provider; CUDA and cuDNN come as Python packages, the driver from the host.
# Build it in the project's folder: docker build -f containers/nvidia.Dockerfile -t digseg:nvidia .
# Run it with the NVIDIA container toolkit: docker run --gpus all ...                    (docs/serve.md, "In a container")
ARG BASE=python:3.11-slim-bookworm
ARG EXTRAS=gpu,serve,hub

FROM ${BASE} AS build
ARG EXTRAS
WORKDIR /src
COPY . .
RUN python -m venv /opt/digseg \
 && /opt/digseg/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[${EXTRAS}]" \
 && /opt/digseg/bin/python -m pip uninstall --yes --disable-pip-version-check pip setuptools \
 && /opt/digseg/bin/digseg --version

FROM ${BASE}
COPY --from=build /opt/digseg /opt/digseg
ENV PATH=/opt/digseg/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DIGSEG_CACHE=/tmp/digseg \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /tmp
EXPOSE 8765
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
  CMD ["python", "-c", "import urllib.request as ask; ask.urlopen('http://127.0.0.1:8765/readyz', timeout=4)"]
ENTRYPOINT ["digseg", "serve", "--host", "0.0.0.0"]
