#!/usr/bin/env bash
# Installs the programs that the integration tests speak to, where it may (root, apt-get); elsewhere
# says in one line what is missing. A test whose program is missing is skipped on a laptop and fails
# when CI=true.
set -euo pipefail

# command=Debian package
peers=(curl=curl openssl=openssl wrk=wrk h2load=nghttp2-client)
# `go test -race` needs a C compiler and its headers; the product does not.
peers+=(gcc=gcc)

missing=() packages=()
for peer in "${peers[@]}"; do
	if ! command -v "${peer%%=*}" >/dev/null; then
		missing+=("${peer%%=*}")
		packages+=("${peer#*=}")
	fi
done
if [ "${#missing[@]}" -eq 0 ]; then
	echo "all there"
	exit 0
fi
case " ${missing[*]} " in *" gcc "*) packages+=(libc6-dev) ;; esac

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
	echo "installing ${packages[*]}"
	export DEBIAN_FRONTEND=noninteractive
	if { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}"; } </dev/null >/tmp/install-peers.$$ 2>&1; then
		rm -f /tmp/install-peers.$$
		exit 0
	fi
	tail -5 /tmp/install-peers.$$
	rm -f /tmp/install-peers.$$
fi
echo "missing: ${missing[*]} (Debian packages: ${packages[*]}); what needs them is skipped, or fails when CI=true"
