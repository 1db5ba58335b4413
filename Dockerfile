# The packaged Bento as an image. `wbc package` first, then
#   docker build -t wbc .                                    (the Bento is build/bento; elsewhere: --build-arg BENTO=DIR)
#   docker run -e WBC_API_KEYS_FILE=/run/secrets/keys -v ./keys:/run/secrets/keys:ro \
#     -e WBC_HOSTS=wbc.hospital.example -p 3000:3000 wbc     (the host name that callers use)
# The image holds no secret, and the server does not start without a key, since it listens on all addresses.
ARG BENTO=build/bento

FROM python:3.11.14-slim-bookworm AS builder
ARG BENTO
COPY ${BENTO}/env/python/requirements.txt /tmp/requirements.txt
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir -r /tmp/requirements.txt

FROM python:3.11.14-slim-bookworm
ARG BENTO
RUN useradd --system --uid 10001 --create-home --shell /usr/sbin/nologin wbc
COPY --from=builder /opt/venv /opt/venv
COPY ${BENTO} /srv/bento
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BENTOML_DO_NOT_TRACK=True \
    BENTOML_CONTAINERIZED=true \
    XDG_CACHE_HOME=/tmp/cache
WORKDIR /srv/bento/src
USER 10001
EXPOSE 3000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:3000/readyz', timeout=4)"]
CMD ["python", "-m", "serving.run", "--bento", "/srv/bento", "--host", "0.0.0.0", "--port", "3000"]
