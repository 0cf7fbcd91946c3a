# docker build -t unified-backend .
FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY . .
# kafka-tls: TLS and SASL/SCRAM for Kafka. It compiles an OpenSSL of its own (perl and make are in this
# image), which takes some minutes and leaves nothing to install beside the binary.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/build/target \
    cargo build --locked --profile dist --package unified-backend --features kafka-tls \
    && install -D target/dist/unified-backend /out/unified-backend \
    && mkdir /out/data

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/unified-backend /usr/local/bin/unified-backend
# Where SQLite's file goes when no DATABASE_URL is set.
COPY --from=build --chown=nonroot:nonroot /out/data /data
WORKDIR /
VOLUME /data
# Not loopback, as nobody outside could reach that; the service then wants API_ALLOW_UNAUTHENTICATED=true,
# because it has no access control of its own. Say so only where the network in front has one.
ENV API_HOST=0.0.0.0 LOGGING_FORMAT=json
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/usr/local/bin/unified-backend", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/unified-backend"]
CMD ["serve"]
