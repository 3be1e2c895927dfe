# The image: the relay and its load generator, on a base that has glibc and CA certificates but no shell. The
# file works for amd64 and arm64, and with builders other than BuildKit.
ARG RUST_IMAGE=rust:1.95-slim-trixie
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian13:nonroot

FROM ${RUST_IMAGE} AS build
WORKDIR /build
# Keeps the names of functions for backtraces of the relay, and removes what only a debugger reads.
ENV CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_STRIP=debuginfo

# The dependencies, built for two empty crates with the same targets. Only a change of a manifest rebuilds
# this layer.
COPY Cargo.toml Cargo.lock ./
COPY benches/load/Cargo.toml benches/load/Cargo.toml
RUN mkdir -p src benches/load/src \
 && touch src/lib.rs benches/load/src/lib.rs \
 && echo 'fn main() {}' | tee src/main.rs >benches/load/src/main.rs \
 && sed -n '/^\[\[bench\]\]/,/^$/s/^name *= *"\(.*\)".*/\1/p' Cargo.toml \
    | while read -r bench; do touch "benches/$bench.rs"; done \
 && cargo build --release --locked --workspace --bins

# The crates. COPY keeps the times of the files, which can be older than the empty crates, so `touch` tells
# cargo that they are newer.
COPY config/default.toml config/default.toml
COPY src src
COPY benches/load/src benches/load/src
ARG REVISION=unknown
RUN touch src/lib.rs src/main.rs benches/load/src/lib.rs benches/load/src/main.rs \
 && SWITCHBOARD_REVISION="$REVISION" cargo build --release --locked --workspace --bins \
 && target/release/switchboard check >/dev/null \
 && strip target/release/switchboard-bench

FROM ${RUNTIME_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="switchboard" \
      org.opencontainers.image.description="A WebSocket relay between two people that says what became of every message" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /build/target/release/switchboard /build/target/release/switchboard-bench /usr/local/bin/
# All addresses, because no other container reaches loopback. Metrics and health have a separate port, so
# that only the port for users needs to be published.
ENV SWITCHBOARD__SERVER__LISTEN=0.0.0.0:8080 \
    SWITCHBOARD__ADMIN__LISTEN=0.0.0.0:9090
EXPOSE 8080 9090
# A number, because Kubernetes cannot check runAsNonRoot for a name.
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 \
    CMD ["/usr/local/bin/switchboard", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/switchboard"]
