# The same image as that of `make image`, for those who build with Docker, for the platform
# that they name. docs/image.md says what is in it.
ARG GO_VERSION=1.26.8

FROM --platform=$BUILDPLATFORM golang:${GO_VERSION}-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    mkdir -p /image/etc/ssl/certs \
    && go -C image run ./certificates/print >/image/etc/ssl/certs/ca-certificates.crt
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$VERSION" \
    -o /image/usr/local/bin/mnsrelay ./cmd/mnsrelay

FROM scratch
COPY --from=build /image/ /
ARG VERSION=dev
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="mnsrelay" \
      org.opencontainers.image.description="Moves messages from Alibaba Cloud MNS queues to RabbitMQ, AMQP 1.0 brokers and webhooks" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
ENV PATH=/usr/local/bin
WORKDIR /
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/mnsrelay", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/mnsrelay"]
CMD ["run", "--config", "/etc/mnsrelay/mnsrelay.yaml"]
