// Node's fetch does what a client does: fetch.mjs URL. It prints what it has seen.
import assert from 'node:assert';
import { createHash, randomUUID } from 'node:crypto';

const url = process.argv[2];
const body = Uint8Array.from({ length: 1 << 20 }, (_, i) => i % 251);
const sum = (bytes) => createHash('sha256').update(bytes).digest('hex');
const want = `${sum(body)} ${body.length}\n`;

let answer = await fetch(url + '/bytes/100000');
assert.equal(answer.status, 200);
assert.equal(sum(new Uint8Array(await answer.arrayBuffer())), answer.headers.get('x-sum'));

answer = await fetch(url + '/sum', { method: 'POST', body });
assert.equal(await answer.text(), want);

const parts = new ReadableStream({
	start(controller) {
		for (let at = 0; at < body.length; at += 100_000) controller.enqueue(body.slice(at, at + 100_000));
		controller.close();
	},
});
answer = await fetch(url + '/sum', { method: 'POST', body: parts, duplex: 'half' });
assert.equal(await answer.text(), want);

assert.equal(await (await fetch(url + '/gzip')).json(), 'compressed by the application');

const name = randomUUID();
answer = await fetch(`${url}/hold/${name}`);
const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
assert.equal((await reader.read()).value, 'first\n');
await (await fetch(`${url}/release/${name}`)).text();
assert.equal((await reader.read()).value, 'last\n');
assert.equal((await reader.read()).done, true);

answer = await fetch(url + '/bytes/1000', { method: 'HEAD' });
assert.equal(answer.status, 200);

const answers = await Promise.all(Array.from({ length: 50 }, () => fetch(url + '/bytes/1000').then((a) => a.arrayBuffer())));
assert(answers.every((a) => a.byteLength === 1000));
console.log('done');
