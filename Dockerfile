# The init container of a proxy: one static program and empty volumes. The image has no shell, no user names and no
# other file but the roots of the public web, by which AWS Secrets Manager is known. docs/init.md says how it is used.
FROM golang:1.26 AS build
WORKDIR /src
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags=-s -o /image/countersign ./cmd/countersign
RUN mkdir -m 0700 /volumes /volumes/tls /volumes/proxy

FROM scratch
COPY --from=build /image/countersign /countersign
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# 101 is the user of NGINX's image; HAProxy's is 99. The proxy has to be the user whom the files belong to.
COPY --from=build --chown=101:101 /volumes /
# /tls is for the certificates, /proxy for what else the proxy writes (--run-dir).
VOLUME /tls /proxy
USER 101:101
ENTRYPOINT ["/countersign"]
CMD ["init", "--from", "env", "--to", "/tls"]
