# The wheels: every one checked against the lock's hashes.
FROM python:3.13-slim AS wheels
WORKDIR /src
COPY constraints-image.txt .
RUN pip wheel --no-cache-dir --require-hashes --requirement constraints-image.txt --wheel-dir /wheels
COPY pyproject.toml README.md LICENSE ./
COPY peerlane peerlane
COPY config config
COPY tasks tasks
COPY workers workers
RUN pip install --no-cache-dir --no-index --find-links /wheels hatchling \
 && pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /wheels .

# From those wheels, what a gateway, beat and Flower need; the tools of developers stay behind. The user's number stays the
# same in each image: volumes keep their files' owner by number.
FROM python:3.13-slim
LABEL org.opencontainers.image.title="Peerlane" \
      org.opencontainers.image.description="WireGuard peers for a fleet of gateways: gateway, beat, Flower, exporter" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    python -m venv /opt/peerlane \
 && /opt/peerlane/bin/pip install --no-cache-dir --no-index --find-links /wheels "peerlane[gateway,flower,exporter]" \
 && useradd --system --uid 947 --home-dir /var/lib/peerlane peerlane \
 && install --directory --owner peerlane --mode 0755 /var/lib/peerlane /var/lib/peerlane/flower \
 && install --directory --mode 0755 /etc/peerlane
ENV PATH=/opt/peerlane/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /var/lib/peerlane
USER peerlane
# Of a gateway that PEERLANE_GATEWAY names; compose.yaml has one for each service.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
  CMD ["sh", "-c", "test -z \"$PEERLANE_GATEWAY\" || exec peerlane gateway alive \"$PEERLANE_GATEWAY\""]
CMD ["peerlane", "--help"]
