import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { FettleError } from '../../runtime/errors.ts';
import type { DType } from '../../runtime/tensor.ts';
import { bytesFor, tensor, viewBytes } from '../../runtime/tensor.ts';
import { readNpy, writeNpy } from '../../models/npy.ts';

/** A .npy file with a header of our own choice. */
function file(header: string, body: Uint8Array, version = 1): Uint8Array {
  const text = new TextEncoder().encode(`${header}\n`);
  const prefix = version === 1 ? 10 : 12;
  const bytes = new Uint8Array(prefix + text.length + body.length);
  bytes.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, version, 0]);
  const view = new DataView(bytes.buffer);
  if (version === 1) view.setUint16(8, text.length, true);
  else view.setUint32(8, text.length, true);
  bytes.set(text, prefix);
  bytes.set(body, prefix + text.length);
  return bytes;
}

describe('npy', () => {
  const kinds: DType[] = ['f32', 'f64', 'f16', 'i8', 'i16', 'i32', 'i64', 'u8', 'u16', 'u32'];
  kinds.push('u64', 'bool', 'c64', 'c128');
  for (const dtype of kinds)
    it(`keeps a ${dtype} tensor through a round trip`, () => {
      for (const shape of [[], [0], [5], [2, 3], [2, 1, 4]]) {
        const count = shape.reduce((a, b) => a * b, 1);
        const bytes = Uint8Array.from({ length: bytesFor(dtype, count) }, (_, i) => (i * 37) & 1);
        const value = tensor(dtype, shape, viewBytes(dtype, bytes));
        assert.deepEqual(readNpy(writeNpy(value)), value);
      }
    });

  it('aligns the elements to 64 bytes, as numpy does', () => {
    const bytes = writeNpy(tensor('u8', [3], Uint8Array.of(7, 8, 9)));
    assert.equal((bytes.length - 3) % 64, 0);
    assert.equal(
      new TextDecoder().decode(bytes.subarray(10, 70)).trimEnd(),
      "{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }",
    );
  });

  it('turns column-major arrays around', () => {
    const header = "{'descr': '<i2', 'fortran_order': True, 'shape': (2, 3), }";
    // rows [1 2 3] [4 5 6] stored column by column
    const body = new Uint8Array(Int16Array.of(1, 4, 2, 5, 3, 6).buffer);
    for (const version of [1, 2, 3])
      assert.deepEqual(
        readNpy(file(header, body, version)),
        tensor('i16', [2, 3], Int16Array.of(1, 2, 3, 4, 5, 6)),
      );
  });

  it('reads big-endian numbers', () => {
    const header = "{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }";
    const body = Uint8Array.of(0x3f, 0x80, 0, 0);
    assert.deepEqual(readNpy(file(header, body)).data, Float32Array.of(1));
  });

  const good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }";
  const refused: Record<string, [Uint8Array, RegExp]> = {
    'a file of another kind': [new TextEncoder().encode('not an array at all'), /magic/],
    'an empty file': [new Uint8Array(0), /magic/],
    'a header cut short': [file(good, new Uint8Array(8)).slice(0, 20), /ends within its header/],
    'too few elements': [file(good, new Uint8Array(7)), /takes 8 bytes, 7 follow/],
    'too many elements': [file(good, new Uint8Array(9)), /takes 8 bytes, 9 follow/],
    'python objects': [file(good.replace('<f4', '|O'), new Uint8Array(8)), /element type is "\|O"/],
    strings: [file(good.replace('<f4', '<U8'), new Uint8Array(8)), /element type is "<U8"/],
    records: [file(good.replace("'<f4'", "[('a', '<f4')]"), new Uint8Array(8)), /records/],
    'an absurd shape': [
      file(good.replace('(2,)', '(99999999999, 99999999999)'), new Uint8Array(8)),
      /takes Infinity/,
    ],
    'a shape of words': [file(good.replace('(2,)', '(two,)'), new Uint8Array(8)), /header reads/],
    'a newer version': [file(good, new Uint8Array(8), 9), /version 9/],
  };
  for (const [what, [bytes, message]] of Object.entries(refused))
    it(`refuses ${what}`, () => {
      assert.throws(
        () => readNpy(bytes, 'x.npy'),
        (error) =>
          error instanceof FettleError &&
          error.code === 'MODEL_INVALID' &&
          error.at['file'] === 'x.npy' &&
          message.test(error.message),
      );
    });

  it('says which dtypes NumPy does not have', () => {
    assert.throws(() => writeNpy(tensor('u4', [2], Uint8Array.of(1))), /got u4/);
  });

  const digits = '../shared/data/digits-test-images.npy';
  it('reads what numpy wrote', { skip: existsSync(digits) ? false : `${digits} is absent` }, () => {
    const images = readNpy(readFileSync(digits), digits);
    assert.equal(images.dtype, 'u8');
    assert.equal(images.shape[0], 1500);
    assert.equal(writeNpy(images).length, readFileSync(digits).length);
  });
});
