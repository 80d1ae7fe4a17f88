FROM debian:12 AS build
WORKDIR /src
COPY scripts/bootstrap scripts/bootstrap
RUN TERRACE_BOOTSTRAP=apt scripts/bootstrap && rm -rf /var/lib/apt/lists/*
COPY . .
RUN cmake --preset release && cmake --build build/release --target terraced terrace

FROM debian:12-slim
# Versions are those of Debian 12, which the base image pins.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
       libabsl20220623 libcapnp-0.9.2 libfmt9 libprometheus-cpp-core1.0 librocksdb7.8 libsodium23 \
       libspdlog1.10 liburing2 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/build/release/terraced /src/build/release/terrace /usr/local/bin/
COPY --from=build /src/LICENSE /usr/share/doc/terrace/
# Clients share memory with the daemon through its socket: mount /run/terrace into both. The seccomp
# profile must allow io_uring for the NVMe tier.
RUN useradd --system --home-dir /var/lib/terrace --create-home terrace \
    && mkdir -p /run/terrace && chown terrace /run/terrace
USER terrace
ENV XDG_STATE_HOME=/var/lib
VOLUME ["/run/terrace", "/var/lib/terrace"]
ENTRYPOINT ["terraced"]
