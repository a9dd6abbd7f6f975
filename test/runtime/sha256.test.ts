import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { Sha256, sha256 } from '../../runtime/sha256.ts';

/** Messages and digests of FIPS 180-4's examples (NIST "SHA256.pdf" and "SHA2_Additional.pdf"). */
const vectors: readonly (readonly [message: string, repeat: number, digest: string])[] = [
  ['', 1, 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'],
  ['abc', 1, 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'],
  [
    'abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq',
    1,
    '248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1',
  ],
  ['a', 1_000_000, 'cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0'],
];

test('the FIPS 180-4 test vectors hold', () => {
  for (const [message, repeat, digest] of vectors)
    assert.equal(sha256(new TextEncoder().encode(message.repeat(repeat))), digest);
});

test('any length gives the same hash as node:crypto, in any pieces', () => {
  const bytes = Uint8Array.from({ length: 300 }, (_, i) => (i * 131) & 0xff);
  for (let length = 0; length <= 200; length++) {
    const part = bytes.subarray(0, length);
    const wanted = createHash('sha256').update(part).digest('hex');
    assert.equal(sha256(part), wanted, `length ${length}`);
    for (const step of [1, 7, 63, 64, 65]) {
      const hash = new Sha256();
      for (let at = 0; at < length; at += step) hash.update(part.subarray(at, at + step));
      assert.equal(hash.hex(), wanted, `length ${length} in pieces of ${step}`);
    }
  }
});
