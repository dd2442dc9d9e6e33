"""Python's httpx does what a client does: httpx_client.py URL 1.1|2. It prints what it has seen."""

import hashlib
import sys
import uuid

import httpx

url, version = sys.argv[1], sys.argv[2]
body = bytes(i % 251 for i in range(1 << 20))
want = f"{hashlib.sha256(body).hexdigest()} {len(body)}\n"

with httpx.Client(http1=version == "1.1", http2=version == "2", verify=False, trust_env=False, timeout=60) as client:
    answer = client.get(url + "/bytes/100000")
    assert answer.status_code == 200 and answer.http_version == "HTTP/" + version, answer.http_version
    assert hashlib.sha256(answer.content).hexdigest() == answer.headers["X-Sum"]
    answer = client.post(url + "/sum", content=body)
    assert answer.text == want, answer.text

    def parts():
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    answer = client.post(url + "/sum", content=parts())
    assert answer.text == want, answer.text
    assert client.get(url + "/gzip").json() == "compressed by the application"
    name = uuid.uuid4().hex
    with client.stream("GET", f"{url}/hold/{name}") as stream:
        lines = stream.iter_lines()
        assert next(lines) == "first"
        assert client.get(f"{url}/release/{name}").status_code == 200
        assert list(lines) == ["last"]
    answer = client.head(url + "/bytes/1000")
    assert answer.status_code == 200 and answer.content == b"", answer
    # One connection serves all; HTTP/1.1 needed a second one beside the stream.
    connections = client._transport._pool.connections
    assert len(connections) == (1 if version == "2" else 2), connections
print("done")
