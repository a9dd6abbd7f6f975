/**
 * Messages to bytes and back through protobufjs, and the integers it has no good type for.
 *
 * Decoding copies nothing: byte fields and unknown fields are views of the input.
 */
import protobuf from 'protobufjs/light.js';
import type { ErrorPlace } from '../../runtime/errors.ts';
import { FettleError } from '../../runtime/errors.ts';
import { concatBytes, plainBytes } from '../files.ts';
import type { Long, Messages, Unknowns } from './schema.ts';
import { messageType } from './schema.ts';

/**
 * Decodes one message.
 *
 * @throws FettleError MODEL_INVALID with the byte offset where decoding stopped
 */
export function decodeMessage<Name extends keyof Messages>(
  name: Name,
  bytes: Uint8Array,
): Messages[Name] {
  // a Buffer's slice() would not copy, which everybody who gets a view relies on
  const reader = new protobuf.Reader(plainBytes(bytes));
  reader.discardUnknown = false;
  try {
    return messageType(name).decode(reader) as Messages[Name];
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new FettleError(
      'MODEL_INVALID',
      `The bytes are no ONNX ${name}, or are damaged: ${reason} (at byte ${reader.pos} of ${bytes.length}).`,
      { at: { offset: reader.pos }, fix: 'Get or export the model again.', cause: error },
    );
  }
}

/** Encodes one message. Fields come in the order of their numbers, carried bytes after them. */
export function encodeMessage<Name extends keyof Messages>(
  name: Name,
  message: Messages[Name],
): Uint8Array {
  return plainBytes(messageType(name).encode(message).finish());
}

/** Views of the fields of a message that the schema does not list. */
export function unknownFields(message: Unknowns): readonly Uint8Array[] {
  return Object.hasOwn(message, '$unknowns') ? (message.$unknowns ?? []) : [];
}

/** A copy of the fields of a message that the schema does not list; undefined when there are none. */
export function unknownsOf(message: Unknowns): Uint8Array | undefined {
  const fields = unknownFields(message);
  return fields.length === 0 ? undefined : concatBytes(fields);
}

/** Fields that the schema does not list, for {@link encodeMessage}. */
export function carry(fields: Uint8Array | readonly Uint8Array[] | undefined): Unknowns {
  if (fields === undefined) return {};
  return { $unknowns: fields instanceof Uint8Array ? [fields] : [...fields] };
}

/** Whether a field is present on the wire, and not protobufjs's default. */
export function has<M extends object>(message: M, field: keyof M): boolean {
  return Object.hasOwn(message, field);
}

/** A wire integer as bigint, signed. */
export function toBigInt(value: Long): bigint {
  return (BigInt(value.high | 0) << 32n) | BigInt(value.low >>> 0);
}

/** A bigint for the wire. */
export function fromBigInt(value: bigint): Long {
  return { low: Number(BigInt.asIntN(32, value)), high: Number(BigInt.asIntN(32, value >> 32n)) };
}

/** A whole number below 2^53 for the wire. */
export function fromNumber(value: number): Long {
  return { low: value | 0, high: Math.floor(value / 2 ** 32) | 0 };
}

/**
 * A wire integer that must be a size.
 *
 * @param what - what it is, for the message
 * @throws FettleError MODEL_INVALID when it is negative or above 2^53
 */
export function toSize(value: Long, what: string, at: ErrorPlace): number {
  const size = value.high * 2 ** 32 + (value.low >>> 0);
  if (Number.isSafeInteger(size) && size >= 0) return size;
  throw new FettleError('MODEL_INVALID', `${what} is ${toBigInt(value)}; wanted 0 to 2^53 - 1.`, {
    at,
    fix: 'Export the model again; a size that is not known has a name (dim_param) or no value.',
  });
}

/** How many varints the bytes hold. */
export function countVarints(chunks: readonly Uint8Array[]): number {
  let count = 0;
  for (const chunk of chunks) for (const byte of chunk) if (byte < 0x80) count++;
  return count;
}

/** Calls `take` with the low and the high 32 bits of every varint. */
export function eachVarint(
  chunks: readonly Uint8Array[],
  take: (low: number, high: number, index: number) => void,
): void {
  let index = 0;
  for (const chunk of chunks) {
    let low = 0;
    let high = 0;
    let shift = 0;
    for (const byte of chunk) {
      const bits = byte & 0x7f;
      // a shift by 32 or more wraps around in JavaScript, hence the three cases
      if (shift < 28) low |= bits << shift;
      else if (shift === 28) {
        low |= bits << 28;
        high = bits >>> 4;
      } else if (shift < 64) high |= bits << (shift - 32);
      shift += 7;
      if (byte >= 0x80) continue;
      take(low, high, index++);
      low = 0;
      high = 0;
      shift = 0;
    }
  }
}
