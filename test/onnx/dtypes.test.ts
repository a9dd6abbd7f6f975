import assert from 'node:assert/strict';
import { test } from 'node:test';
import onnxProto from 'onnx-proto';
import { decodeModel } from '../../compiler/onnx/read.ts';
import type { TensorProto } from '../../compiler/onnx/schema.ts';
import { encodeMessage, fromNumber } from '../../compiler/onnx/wire.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import type { DType } from '../../runtime/tensor.ts';
import { bytesFor, bytesOf, dtypes } from '../../runtime/tensor.ts';
import { outlineModel } from '../support/model-outline.ts';

const { onnx } = onnxProto;
const numeric = (Object.keys(dtypes) as DType[]).filter((dtype) => dtype !== 'string');

/** A model made by onnx-proto, not by our own writer: one constant, returned as it is. */
function modelWith(tensor: onnxProto.onnx.ITensorProto, dtype: number): Uint8Array {
  return onnx.ModelProto.encode({
    irVersion: 13,
    opsetImport: [{ version: 25 }],
    graph: {
      name: 'g',
      node: [{ opType: 'Identity', input: ['w'], output: ['y'] }],
      initializer: [{ name: 'w', ...tensor }],
      output: [
        { name: 'y', type: { tensorType: { elemType: dtype, shape: { dim: [{ dimValue: 3 }] } } } },
      ],
    },
  }).finish();
}

function weightOf(bytes: Uint8Array): {
  bytes: Uint8Array;
  dtype: DType;
  shape: readonly number[];
} {
  const [constant] = decodeModel(bytes).graph.constants;
  assert.ok(constant?.weight !== undefined);
  const { weight } = constant;
  return { bytes: weight.bytes(), dtype: weight.dtype, shape: weight.shape };
}

test('raw data of every dtype is read and survives a round trip', () => {
  for (const dtype of numeric) {
    const rawData = Uint8Array.from({ length: bytesFor(dtype, 3) }, (_, i) => (i * 37 + 11) & 0xff);
    const bytes = modelWith(
      { dataType: dtypes[dtype].onnx, dims: [3], rawData },
      dtypes[dtype].onnx,
    );
    const read = weightOf(bytes);
    assert.deepEqual([read.dtype, read.shape], [dtype, [3]]);
    assert.deepEqual(Buffer.from(read.bytes), Buffer.from(rawData), dtype);
    const model = decodeModel(bytes);
    assert.deepEqual(outlineModel(decodeModel(encodeModel(model))), outlineModel(model), dtype);
  }
});

/** Typed storage of three elements by dtype, as the comments of onnx.proto describe it. */
const typed: Readonly<
  Record<Exclude<DType, 'string'>, [onnxProto.onnx.ITensorProto, ArrayBufferView]>
> = {
  f32: [{ floatData: [1.5, -2, 3e38] }, Float32Array.of(1.5, -2, 3e38)],
  c64: [{ floatData: [1, 2, 3, 4, 5, 6] }, Float32Array.of(1, 2, 3, 4, 5, 6)],
  f64: [{ doubleData: [1e300, -2, 0.1] }, Float64Array.of(1e300, -2, 0.1)],
  c128: [{ doubleData: [1, 2, 3, 4, 5, 6] }, Float64Array.of(1, 2, 3, 4, 5, 6)],
  i64: [{ int64Data: [1, -1, 2 ** 40] }, BigInt64Array.of(1n, -1n, 2n ** 40n)],
  u64: [{ uint64Data: [1, 2 ** 52, 0] }, BigUint64Array.of(1n, 2n ** 52n, 0n)],
  u32: [{ uint64Data: [1, 2 ** 32 - 1, 0] }, Uint32Array.of(1, 2 ** 32 - 1, 0)],
  i32: [{ int32Data: [1, -5, 2 ** 31 - 1] }, Int32Array.of(1, -5, 2 ** 31 - 1)],
  i16: [{ int32Data: [1, -5, 32767] }, Int16Array.of(1, -5, 32767)],
  u16: [{ int32Data: [1, 5, 65535] }, Uint16Array.of(1, 5, 65535)],
  f16: [{ int32Data: [0x3c00, 0xbc00, 0x7bff] }, Uint16Array.of(0x3c00, 0xbc00, 0x7bff)],
  bf16: [{ int32Data: [0x3f80, 0xbf80, 0x7f7f] }, Uint16Array.of(0x3f80, 0xbf80, 0x7f7f)],
  i8: [{ int32Data: [1, -5, 127] }, Int8Array.of(1, -5, 127)],
  u8: [{ int32Data: [1, 5, 255] }, Uint8Array.of(1, 5, 255)],
  bool: [{ int32Data: [1, 0, 1] }, Uint8Array.of(1, 0, 1)],
  f8e4m3fn: [{ int32Data: [1, 0x80, 0xff] }, Uint8Array.of(1, 0x80, 0xff)],
  f8e4m3fnuz: [{ int32Data: [1, 0x80, 0xff] }, Uint8Array.of(1, 0x80, 0xff)],
  f8e5m2: [{ int32Data: [1, 0x80, 0xff] }, Uint8Array.of(1, 0x80, 0xff)],
  f8e5m2fnuz: [{ int32Data: [1, 0x80, 0xff] }, Uint8Array.of(1, 0x80, 0xff)],
  f8e8m0: [{ int32Data: [1, 0x80, 0xff] }, Uint8Array.of(1, 0x80, 0xff)],
  // two elements a byte, the first in the low bits; four for the 2-bit types
  i4: [{ int32Data: [0x7f, 0x0a] }, Uint8Array.of(0x7f, 0x0a)],
  u4: [{ int32Data: [0x7f, 0x0a] }, Uint8Array.of(0x7f, 0x0a)],
  f4e2m1: [{ int32Data: [0x7f, 0x0a] }, Uint8Array.of(0x7f, 0x0a)],
  i2: [{ int32Data: [0x2d] }, Uint8Array.of(0x2d)],
  u2: [{ int32Data: [0x2d] }, Uint8Array.of(0x2d)],
};

test('typed data of every dtype gives the same storage as raw data', () => {
  for (const dtype of numeric) {
    const [fields, expected] = typed[dtype as Exclude<DType, 'string'>];
    const { onnx: number } = dtypes[dtype];
    const read = weightOf(modelWith({ dataType: number, dims: [3], ...fields }, number));
    const wanted = new Uint8Array(expected.buffer, expected.byteOffset, expected.byteLength);
    assert.deepEqual(Buffer.from(read.bytes), Buffer.from(wanted), dtype);
  }
});

test('typed data that was not packed is read too', () => {
  // tag and value of every element on its own: int32_data is field 5, float_data field 4
  const looseInts = [0x28, 7, 0x28, 0xff, 0x01, 0x28, 9];
  const looseFloats = [1, 2, 3].flatMap((x) => [
    0x25,
    ...new Uint8Array(Float32Array.of(x).buffer),
  ]);
  const cases: [TensorProto, number[], ArrayBufferView][] = [
    [{ dataType: dtypes.i32.onnx }, looseInts, Int32Array.of(7, 255, 9)],
    [{ dataType: dtypes.f32.onnx }, looseFloats, Float32Array.of(1, 2, 3)],
  ];
  for (const [tensor, loose, expected] of cases) {
    const initializer = {
      name: 'w',
      dims: [fromNumber(3)],
      ...tensor,
      $unknowns: [Uint8Array.from(loose)],
    };
    const bytes = encodeMessage('ModelProto', {
      irVersion: fromNumber(8),
      opsetImport: [{ version: fromNumber(17) }],
      graph: { initializer: [initializer], output: [{ name: 'w' }] },
    });
    const wanted = new Uint8Array(expected.buffer);
    assert.deepEqual(Buffer.from(weightOf(bytes).bytes), Buffer.from(wanted));
  }
});

test('strings are read, and bytes that are not UTF-8 survive', () => {
  const stringData = [
    Buffer.from('plain'),
    Buffer.from('größe 🙂'),
    Buffer.from([0x61, 0xff, 0xc3, 0x28, 0x80]),
  ];
  const bytes = modelWith(
    { dataType: dtypes.string.onnx, dims: [3], stringData },
    dtypes.string.onnx,
  );
  const [constant] = decodeModel(bytes).graph.constants;
  assert.deepEqual((constant?.weight?.tensor().data as string[] | undefined)?.slice(0, 2), [
    'plain',
    'größe 🙂',
  ]);
  const written = onnx.ModelProto.decode(encodeModel(decodeModel(bytes))).graph?.initializer?.[0];
  assert.deepEqual(
    written?.stringData?.map((text) => Buffer.from(text)),
    stringData,
  );
});

test('bytes are views of the input, not copies', () => {
  const rawData = new Uint8Array(4096).fill(7);
  const bytes = modelWith({ dataType: dtypes.u8.onnx, dims: [4096], rawData }, dtypes.u8.onnx);
  assert.equal(weightOf(bytes).bytes.buffer, bytes.buffer);
});

test('the IR version written is at least what the dtypes need', () => {
  const { onnx: number } = dtypes.i2;
  const bytes = modelWith({ dataType: number, dims: [3], rawData: Uint8Array.of(1) }, number);
  const model = decodeModel(bytes);
  model.irVersion = 8;
  assert.equal(decodeModel(encodeModel(model)).irVersion, 13);
});

test('a scalar and an empty tensor are read', () => {
  const scalar = weightOf(modelWith({ dataType: 1, dims: [], floatData: [2.5] }, 1));
  assert.deepEqual(Buffer.from(scalar.bytes), Buffer.from(bytesOf(Float32Array.of(2.5))));
  assert.deepEqual(weightOf(modelWith({ dataType: 1, dims: [0, 5] }, 1)).shape, [0, 5]);
});

test('a model in a Buffer is read as one in a plain array', () => {
  for (let shift = 0; shift < 8; shift++) {
    const docString = 'x'.repeat(shift);
    const bytes = modelWith({ dataType: 1, dims: [3], docString, rawData: new Uint8Array(12) }, 1);
    const [constant] = decodeModel(Buffer.from(bytes)).graph.constants;
    assert.deepEqual(constant?.weight?.tensor().data, new Float32Array(3), 'at any alignment');
    assert.equal(Object.getPrototypeOf(encodeModel(decodeModel(bytes))), Uint8Array.prototype);
  }
});
